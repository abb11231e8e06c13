"""Which of the known layouts a set of keys is in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from flux_engine.errors import CheckpointError
from flux_engine.weights.keymaps import autoencoder, text, transformer
from flux_engine.weights.keymaps.recipe import Blueprint
from flux_engine.weights.stored import Shapes

PREFIX = "model.diffusion_model."  # some community files carry it before every key

LAYOUTS: Mapping[str, Callable[[str], bool]] = {
    transformer.BFL: transformer.is_bfl,
    transformer.DIFFUSERS: transformer.is_diffusers,
    autoencoder.BFL: autoencoder.is_bfl,
    autoencoder.DIFFUSERS: autoencoder.is_diffusers,
    text.CLIP: text.is_clip,
    text.T5: text.is_t5,
}


def prefix_of(keys: Iterable[str]) -> str:
    """What stands before every one of these keys and means nothing, or nothing."""
    return PREFIX if all(key.startswith(PREFIX) for key in keys) else ""


def recognise(keys: Iterable[str], where: str) -> str:
    """The one layout that these keys (without a prefix) are in."""
    keys = list(keys)
    found = [name for name, is_theirs in LAYOUTS.items() if any(map(is_theirs, keys))]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(where, reason=f"layouts are mixed: {', '.join(found)}")
    some = ", ".join(sorted(keys)[:5]) or "no tensors"
    raise CheckpointError(
        where, reason=f"none of {', '.join(LAYOUTS)}; {len(keys)} keys, such as {some}"
    )


def blueprint(
    shapes: Shapes, where: str, *, axes: Sequence[int] | None = None, config: Path | None = None
) -> Blueprint:
    """The model that these tensors (without a prefix) make, and how."""
    match layout := recognise(shapes, where):
        case transformer.BFL | transformer.DIFFUSERS:
            return transformer.transformer_blueprint(shapes, where, layout, axes)
        case autoencoder.BFL | autoencoder.DIFFUSERS:
            return autoencoder.autoencoder_blueprint(shapes, where, layout)
        case text.CLIP:
            return text.clip_blueprint(shapes, where, config)
        case _:
            return text.t5_blueprint(shapes, where, config)
