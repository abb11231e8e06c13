"""The image engine: FLUX.1 models, requests in, pictures out. Needs no Ray and no job files."""

from flux_engine.assembly import load_engine
from flux_engine.engine import FluxEngine
from flux_engine.errors import (
    CheckpointError,
    EngineError,
    NumbersBroke,
    RequestError,
    SettingError,
    SourceError,
)
from flux_engine.pipeline import FluxImagePipeline, ModelConfig
from flux_engine.request import Generation, GenerationRequest

__all__ = [
    "CheckpointError",
    "EngineError",
    "FluxEngine",
    "FluxImagePipeline",
    "Generation",
    "GenerationRequest",
    "ModelConfig",
    "NumbersBroke",
    "RequestError",
    "SettingError",
    "SourceError",
    "load_engine",
]
