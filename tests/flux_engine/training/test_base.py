import pytest
import torch

from flux_engine import load_engine
from flux_engine.defaults import model_folder
from flux_engine.errors import SettingError
from flux_engine.training.base import load_base
from flux_engine.weights.source import ModelSource

BUNDLED = model_folder("flux-shapes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_engines_transformer(dtype: torch.dtype) -> None:
    base = load_base("flux-shapes", dtype=dtype)
    engine = load_engine("flux-shapes", torch_dtype=dtype, device="cpu")
    assert base.folder == BUNDLED
    assert base.files == (BUNDLED / "flux1-shapes.safetensors",)
    assert base.fingerprint == engine.fingerprints["dit"]
    for name, parameter in base.dit.named_parameters():
        assert torch.equal(parameter, engine.dit.get_parameter(name))


def test_it_is_found_among_other_files() -> None:
    sources = [
        ModelSource(str(BUNDLED / name)) for name in ("ae.safetensors", "flux1-shapes.safetensors")
    ]
    base = load_base(sources)
    assert base.folder is None
    assert [file.name for file in base.files] == ["flux1-shapes.safetensors"]


def test_files_without_a_transformer_are_refused() -> None:
    with pytest.raises(SettingError, match=r"one transformer is to be trained, .* have: none"):
        load_base([ModelSource(str(BUNDLED / "ae.safetensors"))])
