"""A look at a job before it begins."""

from pathlib import Path
from typing import Any

import pytest

from batch.errors import BatchError, JobError
from batch.training.look import checked
from flux_engine.defaults import model_folder
from flux_engine.errors import (
    CheckpointError,
    EngineError,
    SettingError,
    SourceError,
    TrainingError,
)
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson
from tests.batch.training.tables import write_table

FOLDER = model_folder("flux-shapes")
DIT = str(next(FOLDER.glob("flux1-*.safetensors")))
ALONE = {"model": None, "model_paths": [DIT]}


@pytest.mark.parametrize(
    ("values", "error", "told"),
    [
        ({"lora_target_modules": "qkw"}, SettingError, "'qkw' matches no linear layer"),
        ({"lora_target_modules": ""}, SettingError, "auto: no layer of the blocks has both"),
        ({"ranks": {"txt_attn.qkv": 2}}, SettingError, "means no layer that is trained"),
        ({"optimizer": {"kind": "torch.optim.Nothing"}}, SettingError, "no Nothing in torch"),
        ({"optimizer": {"options": {"warp": 9}}}, SettingError, "does not take warp"),
        ({"task": "direct_distill"}, TrainingError, "has no num_inference_steps"),
        ({"embedded_guidance": "row"}, TrainingError, "has no embedded_guidance"),
        ({"caption_dropout": 0.5, "trigger_word": "zorb", **ALONE}, JobError, "captions have no"),
        ({"sample_prompts": ["a"], **ALONE}, JobError, "without the autoencoder"),
    ],
)
def test_what_would_fail_later_is_refused_now(
    values: dict[str, Any], error: type[Exception], told: str, tmp_path: Path, targets: Targets
) -> None:
    with pytest.raises(error, match=told):
        checked(lesson(tmp_path / "out", targets("cache"), **values))
    assert not (tmp_path / "out").exists()


def test_a_lora_to_go_on_from_is_looked_at(tmp_path: Path, targets: Targets) -> None:
    learned(lesson(tmp_path / "out", targets("cache"), max_steps=1))
    file = str(tmp_path / "out" / "lora.safetensors")
    job = lesson(tmp_path / "again", targets("cache"), lora_checkpoint=file)
    checked(job)
    checked(lesson(tmp_path / "again", targets("cache"), preset_lora_path=file))
    with pytest.raises(CheckpointError, match="has rank 4, trained is 2"):
        checked(lesson(tmp_path / "again", targets("cache"), lora_checkpoint=file, lora_rank=2))
    missing = str(tmp_path / "nothing.safetensors")
    with pytest.raises(EngineError, match=r"nothing\.safetensors"):
        checked(lesson(tmp_path / "again", targets("cache"), preset_lora_path=missing))


def test_a_cache_needs_neither_autoencoder_nor_encoders(tmp_path: Path, targets: Targets) -> None:
    job = lesson(tmp_path / "out", targets("cache"), **ALONE)
    assert checked(job).wanted == []
    worker, outcome = learned(job)  # the job names no other files: there are none to load
    assert outcome.complete
    assert set(worker.parts.files) == {"dit"}
    assert worker.texts.encoded == 0


def test_pictures_need_the_autoencoder(tmp_path: Path) -> None:
    table = write_table(tmp_path / "rows")
    with pytest.raises(BatchError, match="without the autoencoder, and pictures"):
        checked(lesson(tmp_path / "out", table, **ALONE))


def test_a_tokenizer_that_cannot_be_opened_is_refused(tmp_path: Path, targets: Targets) -> None:
    nowhere, void = tmp_path / "nowhere", tmp_path / "void"
    void.mkdir()
    table = write_table(tmp_path / "rows")
    for dataset in (table, targets("cache")):
        with pytest.raises(SourceError, match=r"nowhere( is not a folder|: no tokenizer here)"):
            checked(lesson(tmp_path / "out", dataset, tokenizer_2_path=str(nowhere)))
        with pytest.raises(SourceError, match="void: no tokenizer here"):
            checked(lesson(tmp_path / "out", dataset, tokenizer_1_path=str(void)))
    checked(lesson(tmp_path / "out", table, tokenizer_1_path=str(FOLDER / "tokenizer")))
