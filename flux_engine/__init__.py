"""The image engine: FLUX.1 models, requests in, pictures out. Needs no Ray and no job files.

Names are imported when they are first used, so that `flux_engine.errors` or `flux_engine.defaults`
do not bring torch along.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flux_engine.assembly import load_engine
    from flux_engine.engine import FluxEngine
    from flux_engine.errors import (
        CheckpointError,
        EngineError,
        NumbersBroke,
        RequestError,
        SettingError,
        SourceError,
        TrainingError,
    )
    from flux_engine.pipeline import FluxImagePipeline, ModelConfig
    from flux_engine.request import Generation, GenerationRequest, LoraUse

__all__ = [
    "CheckpointError",
    "EngineError",
    "FluxEngine",
    "FluxImagePipeline",
    "Generation",
    "GenerationRequest",
    "LoraUse",
    "ModelConfig",
    "NumbersBroke",
    "RequestError",
    "SettingError",
    "SourceError",
    "TrainingError",
    "load_engine",
]

HOMES = {
    "assembly": ["load_engine"],
    "engine": ["FluxEngine"],
    "errors": [name for name in __all__ if name.endswith(("Error", "Broke"))],
    "pipeline": ["FluxImagePipeline", "ModelConfig"],
    "request": ["Generation", "GenerationRequest", "LoraUse"],
}


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"flux_engine.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
