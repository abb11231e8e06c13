"""The whole chain with the demo model, in one command: what is learned is seen in pictures."""

import subprocess
import sys
from pathlib import Path

import pytest

from shapes.chain import read_measured

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("chain")
    words = [sys.executable, "-m", "shapes.chain", "--folder", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return read_measured(folder)


def test_a_lora_learns_a_word_that_the_base_does_not_know(
    measured: dict[str, dict[str, float]],
) -> None:
    right = measured["right"]
    assert right["teacher, new word"] <= 0.05
    assert right["no prior, new word"] >= 0.90


def test_with_the_bases_own_pictures_it_learns_and_forgets_nothing(
    measured: dict[str, dict[str, float]],
) -> None:
    right = measured["right"]
    assert right["LoRA, new word"] >= 0.80
    assert right["LoRA, old prompts"] >= right["teacher, 16 steps"] - 0.02
    assert right["no prior, old prompts"] < right["LoRA, old prompts"]


def test_a_student_of_stored_pairs_arrives_in_one_step(
    measured: dict[str, dict[str, float]],
) -> None:
    right, error = measured["right"], measured["latent_error"]
    assert right["student, 1 step"] >= right["teacher, 16 steps"] - 0.03
    assert right["student, 1 step"] > right["teacher, 1 step"] + 0.2
    assert error["student, 1 step"] <= 0.2
