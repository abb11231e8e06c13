"""Which layers of the transformer a list of patterns means, in any of three vocabularies.

Names are our own (those of the published files), DiffSynth-Studio's or diffusers'. A pattern means
the names that it matches whole or behind a dot (`img_attn.qkv`, `double_blocks.*.img_mlp.?`), or
with `re:` before it the names that the expression matches whole. Of the three vocabularies the
first counts in which it matches anything.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache

from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxSpec
from flux_engine.weights.lora.names import World, module_shapes, spellings

REGEX = "re:"
WORLDS: tuple[World, ...] = ("bfl", "diffsynth", "diffusers")
BLOCKS = ("double_blocks.*", "single_blocks.*")
# of a single block attention shares both of its layers with the MLP
ATTENTION = ("*.???_attn.qkv", "*.???_attn.proj", "single_blocks.*.linear?")
PRESETS: Mapping[str, tuple[str, ...]] = {
    "all": BLOCKS,  # what DiffSynth-Studio's scripts list
    "attention": ATTENTION,
    "all+globals": ("*",),
}
AUTO, LEAST = "auto", 512  # as DiffSynth-Studio chooses: in the blocks, neither side less than this


@cache
def linear_layers(spec: FluxSpec) -> Mapping[str, tuple[int, int]]:
    """Rows and columns of every linear layer, by our names, in the model's order."""
    return {
        name: (shape[0], shape[1]) for name, shape in module_shapes(spec).items() if len(shape) == 2
    }


def chosen_layers(
    patterns: Sequence[str], spec: FluxSpec, *, exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """The layers meant, in the model's order; a preset's name stands for its patterns.

    SettingError for a pattern that matches nothing, and for names of a part of a layer (as
    diffusers' `to_q`) without those of its other parts.
    """
    if not patterns:
        raise SettingError(
            f"no layers are named; there are {', '.join([*PRESETS, AUTO])}, or names"
        )
    wanted, left_out = (matched(expanded(some, spec), spec) for some in (patterns, exclude))
    chosen = tuple(n for n in linear_layers(spec) if n in wanted and n not in left_out)
    if not chosen:
        raise SettingError(f"of {', '.join(patterns)} nothing is left without {', '.join(exclude)}")
    return chosen


def expanded(patterns: Iterable[str], spec: FluxSpec) -> list[str]:
    """Patterns with what a preset's name stands for; SettingError if `auto` means nothing."""
    out: list[str] = []
    for pattern in patterns:
        out += large(spec) if pattern == AUTO else PRESETS.get(pattern, (pattern,))
    return out


def large(spec: FluxSpec) -> list[str]:
    found = [
        name
        for name, sides in linear_layers(spec).items()
        if min(sides) >= LEAST and any(fnmatchcase(name, blocks) for blocks in BLOCKS)
    ]
    if not found:
        raise SettingError(
            f"{AUTO}: no layer of the blocks has both sides of {LEAST} or more; name layers, or "
            f"{', '.join(PRESETS)}"
        )
    return found


def matched(patterns: Iterable[str], spec: FluxSpec) -> set[str]:
    """The layers that these patterns mean together."""
    parts: dict[str, set[str]] = {}
    whole: set[str] = set()
    for pattern in patterns:
        world, names = first_match(pattern, spec)
        for name in names:
            layer, pieces = vocabulary(spec, world)[name]
            if len(pieces) == 1:
                whole.add(layer)
            else:
                parts.setdefault(layer, set()).add(name)
    for layer, named in parts.items():
        others = {n for n, (of, _) in vocabulary(spec, "diffusers").items() if of == layer} - named
        if layer not in whole and others:
            raise SettingError(
                f"{', '.join(sorted(named))}: only a part of {layer}, which is one layer here: "
                f"name {', '.join(sorted(others))} too, or none of them"
            )
    return whole | set(parts)


def first_match(pattern: str, spec: FluxSpec) -> tuple[World, list[str]]:
    for world in WORLDS:
        found = [name for name in vocabulary(spec, world) if means(pattern, name)]
        if found:
            return world, found
    some = ", ".join(
        ["img_attn.qkv", "double_blocks.*.img_mlp.?", "single_blocks.*.linear1", *PRESETS, AUTO]
    )
    raise SettingError(f"{pattern!r} matches no linear layer; patterns are such as {some}")


def means(pattern: str, name: str) -> bool:
    if pattern.startswith(REGEX):
        try:
            return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
        except re.error as error:
            raise SettingError(f"{pattern!r} is no regular expression: {error}") from None
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


@cache
def vocabulary(spec: FluxSpec, world: World) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """A world's names: the layer of ours that each means, and all names that this layer has."""
    out: dict[str, tuple[str, tuple[str, ...]]] = {}
    for layer in linear_layers(spec):
        names = tuple(name for name, _ in spellings(layer, spec, world))
        out |= dict.fromkeys(names, (layer, names))
    return out


def by_pattern(
    values: Mapping[str, float], layers: Sequence[str], spec: FluxSpec, what: str
) -> dict[str, float]:
    """Of each of `layers` the value of the first pattern that means it.

    SettingError names a pattern that means none of them, or none that is left.
    """
    out: dict[str, float] = {}
    for pattern, value in values.items():
        meant = matched(expanded([pattern], spec), spec) & set(layers)
        if not meant:
            raise SettingError(f"{what}: {pattern!r} means no layer that is trained")
        if not meant - set(out):
            raise SettingError(f"{what}: all that {pattern!r} means is meant by patterns before it")
        out = {layer: value for layer in layers if layer in meant} | out
    return out
