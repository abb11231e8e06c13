import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import flux_engine
from flux_engine import SettingError, SourceError, load_engine
from flux_engine.assembly import choose_device, code_digest, engine_of
from flux_engine.defaults import model_folder
from flux_engine.sampling.schedule import flux_shift
from flux_engine.weights.source import ModelSource
from schemas.engine import EngineConfig, ModelEntry
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import asked

FOLDER = model_folder("flux-shapes")
PARTS = {
    "transformer": "flux1-shapes.safetensors",
    "autoencoder": "ae.safetensors",
    "CLIP": "text_encoder/model.safetensors",
    "T5": "text_encoder_2/model.safetensors",
}
ON_CPU: dict[str, Any] = {"torch_dtype": torch.float32, "device": "cpu"}
SMALL = ON_CPU | {"text_batch": 2, "micro_batch": 2, "decode_batch": 2}


def sources(without: str = "") -> list[ModelSource]:
    return [ModelSource(str(FOLDER / file)) for part, file in PARTS.items() if part != without]


def test_a_name_a_folder_and_its_files_are_the_same_engine(shapes_engine: ShapesEngine) -> None:
    named = shapes_engine()
    (expected,) = named.generate([asked()])
    for model in (str(FOLDER), FOLDER, sources(), sources()[::-1]):
        engine = load_engine(model, **SMALL)
        assert engine.fingerprint == named.fingerprint
        (made,) = engine.generate([asked()])
        assert torch.equal(made.pixels, expected.pixels)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_is_named(part: str) -> None:
    with pytest.raises(SettingError, match=f"without the {part}"):
        load_engine(sources(without=part), **ON_CPU)


def test_no_files_at_all_lack_everything() -> None:
    with pytest.raises(SettingError, match=r"transformer, .*autoencoder, .*CLIP.*, .*T5"):
        load_engine([], **ON_CPU)


def test_an_unknown_name_is_told_what_is_bundled() -> None:
    with pytest.raises(SourceError, match=r"'flux-shape'.*flux-shapes"):
        load_engine("flux-shape", **ON_CPU)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"tokenizer_2: {tmp_path / 'none'} is not a folder"):
        load_engine(sources(), tokenizer_2=tmp_path / "none", **ON_CPU)


def test_batch_sizes_reach_their_stages() -> None:
    engine = load_engine(**ON_CPU, text_batch=3, micro_batch=5, decode_batch=7)
    assert engine.text.batch(512) == 3
    assert engine.batching.micro_batch(16) == 5
    assert engine.batching.decode_batch(64, 64) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_weights_are_in_the_type_asked_for_and_frozen(
    dtype: torch.dtype, shapes_engine: ShapesEngine
) -> None:
    engine = shapes_engine(torch_dtype=dtype)
    for model in (engine.dit, engine.vae, engine.text.models.clip, engine.text.models.t5):
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(SettingError, match=f"device is '{name}'.* allowed are auto, cpu"):
        load_engine([], device=name)  # before anything is read


def test_auto_is_the_card_if_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def linked(folder: Path, scheduler: object) -> Path:
    """The bundled folder with scheduler settings beside it."""
    for entry in FOLDER.iterdir():
        (folder / entry.name).symlink_to(entry)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.mark.parametrize("shifting", [True, False])
def test_the_folder_says_whether_levels_shift_with_the_size(shifting: bool, tmp_path: Path) -> None:
    engine = load_engine(linked(tmp_path, {"use_dynamic_shifting": shifting}), **ON_CPU)
    shift = engine.bucket(asked(height=1024, width=1024)).sigma_shift
    assert shift == (flux_shift(4096) if shifting else 1.0)


def test_a_guided_model_without_settings_shifts_as_flux_dev_does(
    shapes_engine: ShapesEngine,
) -> None:
    assert shapes_engine().bucket(asked()).sigma_shift == flux_shift(16)


def test_settings_that_are_no_object_are_refused_with_their_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"scheduler_config\.json: is not a JSON object"):
        load_engine(linked(tmp_path, [True]), **ON_CPU)


@pytest.mark.parametrize("listed", [False, True])
def test_a_jobs_engine_comes_with_its_fingerprint(listed: bool) -> None:
    entries = tuple(ModelEntry(path=str(FOLDER / file)) for file in PARTS.values())
    model = entries if listed else "flux-shapes"
    engine, fingerprint = engine_of(EngineConfig(model=model, device="cpu", micro_batch=3))
    assert engine.dtype == torch.bfloat16
    assert engine.batching.micro == 3
    assert set(fingerprint["weights"]) == {
        "flux1-shapes.safetensors",
        "ae.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    }
    assert fingerprint["code"] == code_digest()
    assert fingerprint["device"] == "cpu"
    assert fingerprint["versions"]["torch"] == torch.__version__


def test_every_public_name_has_a_home() -> None:
    assert all(getattr(flux_engine, name).__name__ == name for name in flux_engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'FluxPipeline'"):
        _ = flux_engine.FluxPipeline


def imported_by(code: str) -> set[str]:
    """The packages that are imported once a fresh Python has run this."""
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_the_engine_is_imported_without_the_batch_layers_libraries() -> None:
    names = imported_by("from flux_engine import FluxImagePipeline, load_engine")
    assert "torch" in names
    assert not names & {"ray", "pyarrow", "pydantic", "typer", "schemas", "batch", "jobs"}
    assert not names & {"diffusers", "diffsynth"}  # oracles, never dependencies


def test_names_and_defaults_are_known_without_torch() -> None:
    assert "torch" not in imported_by("from flux_engine.defaults import bundled_names")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"use_dynamic_shifting": True, "max_shift": 2.0}, "max_shift is 2.0.* has 1.15"),
        ({"use_dynamic_shifting": False, "shift": 3.0}, "shift is 3.0.* has 1.0"),
    ],
)
def test_settings_of_another_schedule_are_refused_by_name(
    tmp_path: Path, told: dict[str, object], why: str
) -> None:
    with pytest.raises(SettingError, match=why):
        load_engine(linked(tmp_path, told), **ON_CPU)
