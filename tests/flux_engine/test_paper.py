from pathlib import Path

import torch

from flux_engine.assembly import load_engine
from flux_engine.models.dit import FluxTransformer
from flux_engine.paper import card_of, models_of, planned, published
from flux_engine.vram.estimates import GIB
from flux_engine.vram.units import named_tensors
from schemas.engine import EngineConfig, ModelEntry


def test_the_shipped_model_on_paper_is_the_one_that_is_loaded() -> None:
    models, assumed = models_of(EngineConfig())
    assert assumed == ()
    engine = load_engine(device="cpu")
    for name, model in engine.models.items():
        shapes = {key: tuple(t.shape) for key, t in named_tensors(model).items()}
        assert shapes == {key: tuple(t.shape) for key, t in named_tensors(models[name]).items()}


def test_files_that_are_not_here_are_taken_for_flux_dev(tmp_path: Path) -> None:
    entry = ModelEntry(model_id="nobody/here", origin_file_pattern="flux1-dev.safetensors")
    models, assumed = models_of(EngineConfig(model=(entry,)))
    assert isinstance(models["dit"], FluxTransformer)
    assert models["dit"].spec == published("dit").spec
    assert assumed == ("dit, vae, clip, t5: not here yet, taken to be FLUX.1-dev's",)


def test_without_a_gpu_one_is_assumed_and_told() -> None:
    if torch.cuda.is_available():
        return
    for limit, memory in ((None, 139), (8.0, 8), (-10.0, 129), (1000.0, 139)):
        machine, told = card_of(EngineConfig(vram_limit=limit), torch.bfloat16)
        assert machine is not None
        assert machine.memory == memory * GIB
        assert told == ("no GPU here: planned for an H200, from figures of its kind",)
    assert card_of(EngineConfig(device="cpu"), torch.bfloat16) == (None, ())
    assert planned(EngineConfig(device="cpu")).planning.machine is None
