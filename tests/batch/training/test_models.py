"""The files of a job's model."""

from pathlib import Path

import pytest

from batch.errors import JobError
from batch.training.models import ModelParts
from flux_engine.defaults import model_folder
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson

FOLDER = model_folder("flux-shapes")
DIT = next(FOLDER.glob("flux1-*.safetensors"))


def test_parts_are_known_by_what_they_hold(tmp_path: Path) -> None:
    paths = [str(FOLDER / "ae.safetensors"), str(DIT)]
    parts = ModelParts(lesson(tmp_path, tmp_path, model=None, model_paths=paths))
    assert parts.named == {"vae": paths[0], "dit": paths[1]}
    assert parts.root is None
    whole = ModelParts(lesson(tmp_path, tmp_path))
    assert parts.fingerprints["dit"] == whole.fingerprints["dit"]
    assert set(whole.files) == {"dit", "vae", "clip", "t5"}
    assert whole.root == FOLDER


def test_what_is_needed_and_not_there_is_named(tmp_path: Path) -> None:
    parts = ModelParts(lesson(tmp_path, tmp_path, model=None, model_paths=[str(DIT)]))
    with pytest.raises(JobError, match="without the autoencoder, and it is wanted; there is the"):
        parts.need("vae", "it is wanted")
    vae = str(FOLDER / "ae.safetensors")
    with pytest.raises(JobError, match="without the transformer"):
        ModelParts(lesson(tmp_path, tmp_path, model=None, model_paths=[vae]))
    twice = [str(DIT), str(DIT)]
    with pytest.raises(JobError, match="both are the transformer"):
        ModelParts(lesson(tmp_path, tmp_path, model=None, model_paths=twice))


def test_eight_bits_are_for_the_transformer(tmp_path: Path) -> None:
    paths = [str(FOLDER / "ae.safetensors"), str(DIT)]
    ModelParts(
        lesson(tmp_path, tmp_path, model=None, model_paths=paths, fp8_models=[str(DIT)])
    )  # its own name
    with pytest.raises(JobError, match="is not the transformer, which alone"):
        ModelParts(lesson(tmp_path, tmp_path, model=None, model_paths=paths, fp8_models=paths[:1]))


def test_a_dataset_of_other_encoders_is_refused(
    tmp_path: Path, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    parts = ModelParts(lesson(tmp_path, targets("cache")))
    same = {name: files for name, files in parts.fingerprints.items() if name != "dit"}
    encoded = {
        "vae": {"weights": same["vae"]},
        "text": {"clip": same["clip"], "t5": same["t5"]},
        "latent": {"scale": 0.3611, "shift": 0.1159, "channels": 16},
    }
    assert parts.refuse_strangers(encoded, "rows") == []
    alone = ModelParts(lesson(tmp_path, tmp_path, model=None, model_paths=[str(DIT)]))
    assert alone.refuse_strangers(encoded, "rows") == ["vae", "clip", "t5"]
    tokens = {name: parts.tokenizer_fingerprints[name] for name in ("tokenizer", "tokenizer_2")}
    parts.refuse_strangers(encoded | {"text": encoded["text"] | tokens}, "rows")
    assert "captions were read" not in caplog.text
    tokens["tokenizer_2"] = {"spiece.model": "0" * 64}
    parts.refuse_strangers(encoded | {"text": encoded["text"] | tokens}, "rows")
    assert "captions were read with another tokenizer_2" in caplog.messages
    other = encoded | {"vae": {"weights": {"ae.safetensors": "0" * 64}}}
    with pytest.raises(JobError, match="rows: was made with other files of the autoencoder"):
        parts.refuse_strangers(other, "rows")
    wide = encoded | {"latent": {"scale": 0.3611, "shift": 0.1159, "channels": 4}}
    with pytest.raises(JobError, match="latents have 4 channels"):
        parts.refuse_strangers(wide, "rows")
    scaled = encoded | {"latent": {"scale": 1.0, "shift": 0.0, "channels": 16}}
    with pytest.raises(JobError, match="are scaled by"):
        parts.refuse_strangers(scaled, "rows")
