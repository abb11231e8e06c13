"""The shipped weights draw what they are asked."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shapes.examination import Questions, answers
from shapes.flow import Velocity
from shapes.folder import AUTOENCODER, SAMPLING, TRANSFORMER, load_autoencoder, load_transformer
from shapes.ruler import score
from shapes.text import SEQUENCE_LENGTH, TextEncoders
from shapes.world import keyed

FOLDER = Path(__file__).parents[2] / "flux_engine" / "bundled" / "flux-shapes"
DEFAULTS = json.loads((FOLDER / SAMPLING).read_text())


def drawn(questions: Questions, guidance: float) -> torch.Tensor:
    with torch.no_grad():
        return answers(
            Velocity(load_transformer(FOLDER)),
            load_autoencoder(FOLDER),
            TextEncoders.load(FOLDER),
            questions,
            steps=DEFAULTS["num_inference_steps"],
            shift=DEFAULTS["sigma_shift"],
            guidance=guidance,
        )


@pytest.mark.parametrize("unseen", [True, False])
def test_prompts_are_followed(unseen: bool) -> None:
    questions = Questions.pick(64, unseen=unseen)
    made = drawn(questions, DEFAULTS["embedded_guidance"])
    assert score(made, questions.rows).all >= 0.93
    shuffled = questions.rows[torch.randperm(64, generator=keyed("shuffle"))]
    assert score(made, shuffled).all < 0.05


def test_embedded_guidance_changes_the_picture() -> None:
    questions = Questions.pick(8, unseen=True)
    assert (drawn(questions, 1.0) - drawn(questions, 5.0)).abs().mean() > 0.002


def test_the_folder_is_small_and_in_bfloat16() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*")) < 12_000_000
    for name in (TRANSFORMER, AUTOENCODER, "text_encoder_2/model.safetensors"):
        with safe_open(FOLDER / name, "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_defaults_are_complete() -> None:
    assert set(DEFAULTS) == {
        "height", "width", "num_inference_steps", "embedded_guidance", "t5_sequence_length",
        "sigma_shift",
    }  # fmt: skip
    assert DEFAULTS["t5_sequence_length"] == SEQUENCE_LENGTH
