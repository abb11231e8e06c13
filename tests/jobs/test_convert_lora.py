from pathlib import Path

import pytest
from typer.testing import CliRunner

from flux_engine.weights.lora.read import read_lora
from jobs.convert_lora import app
from tests.flux_engine.weights.lora.written import LAYOUTS, TINY, dora


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def test_a_file_is_converted_and_said_to_be(tmp_path: Path) -> None:
    source = LAYOUTS["3 kohya"](TINY).save(tmp_path)
    code, told, _ = run(source, tmp_path / "out.safetensors", "--layout", "diffusers")
    assert code == 0
    assert told.endswith("out.safetensors: 100 tensors in float32\n")
    assert {p.target for p in read_lora(tmp_path / "out.safetensors").parts} == {
        p.target for p in read_lora(source).parts
    }


def test_what_a_rank_loses_is_printed(tmp_path: Path) -> None:
    source = LAYOUTS["3 kohya"](TINY).save(tmp_path)
    code, told, _ = run(source, tmp_path / "out", "--layout", "bfl", "--rank", 2)
    assert code == 0
    assert "of ‖ΔW‖ in single_blocks." in told
    code, told, _ = run(source, tmp_path / "out", "--dtype", "bfloat16")
    assert "rounded to bfloat16: at most" in told


def test_without_a_place_to_go_it_is_shown(tmp_path: Path) -> None:
    code, told, _ = run(LAYOUTS["9 LyCORIS LoKr"](TINY).save(tmp_path))
    assert code == 0
    assert "double_blocks.0.img_attn.qkv.weight" in told
    assert "Kronecker" in told


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--layout", "webui"], "--layout is 'webui'; allowed are diffusers, kohya"),
        (["--dtype", "int8"], "--dtype is 'int8'; allowed are float32"),
        (["--model", "nothing-here"], "nothing-here"),
        (["--layout", "diffsynth"], "has DoRA magnitudes, for which diffsynth has no place"),
        (["--model", "flux-shapes"], "not every tensor of this LoRA can be used"),
    ],
)
def test_what_cannot_be_done_is_said_with_status_2(
    words: list[str], reason: str, tmp_path: Path
) -> None:
    source = dora(TINY).save(tmp_path)
    code, _, told = run(source, tmp_path / "out", *words)
    assert code == 2
    assert reason in told
    assert not (tmp_path / "out").exists()


def test_the_file_that_is_read_is_not_written(tmp_path: Path) -> None:
    source = LAYOUTS["3 kohya"](TINY).save(tmp_path)
    assert run(source, source)[0] == 2
    assert run(tmp_path / "absent", tmp_path / "out")[0] == 2
