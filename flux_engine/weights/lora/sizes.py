"""How deep and wide the models are that a LoRA file was made for, as far as the file tells."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from flux_engine.models.dit import FluxSpec
from flux_engine.weights.lora.changes import Change
from flux_engine.weights.lora.names import Catalogue, Sizes, flat
from flux_engine.weights.stored import most_common

DEPTHS = {
    "double": re.compile(
        r"(?:.*_)?(?:double_blocks|(?<!single_)transformer_blocks|(?<!single_)(?<!transformer_)blocks)"
        r"_(\d+)_.*"
    ),
    "single": re.compile(r"(?:.*_)?(?:single_blocks|single_transformer_blocks)_(\d+)_.*"),
    "clip": re.compile(r".*text_model_encoder_layers_(\d+)_.*|.*encoder_layers_(\d+)_.*"),
    "t5": re.compile(r".*encoder_block_(\d+)_.*"),
}  # fmt: skip
FROM_WIDTH = re.compile(
    r"double_blocks\.\d+\.(\w+_mod\.lin|\w+_attn\.(qkv|proj)|\w+_mlp\.0)"
    r"|single_blocks\.\d+\.(linear1|modulation\.lin)|\w+_in\.out_layer|final_layer\..*"
)
FROM_INNER = re.compile(r"double_blocks\.\d+\.\w+_mlp\.2")
FROM_BOTH = re.compile(r"single_blocks\.\d+\.linear2")
PUBLISHED = FluxSpec()


def sizes_of(changes: Mapping[str, Change]) -> Sizes:
    """Sizes told by a file's module names and the shapes of their changes; else FLUX.1-dev's."""
    names = [flat(name) for name in changes]
    spec = replace(
        PUBLISHED,
        double_blocks=depth(names, "double", PUBLISHED.double_blocks),
        single_blocks=depth(names, "single", PUBLISHED.single_blocks),
    )
    sizes = Sizes(spec, depth(names, "clip", 12), depth(names, "t5", 24))
    catalogue = Catalogue(sizes)
    columns: dict[str, list[int]] = {}
    rows: dict[str, list[int]] = {}
    for name, change in changes.items():
        place = catalogue.find(name)
        if place is not None and place.role == "dit" and len(change.shape) == 2:
            columns.setdefault(place.module, []).append(change.shape[1])
            rows.setdefault(place.module, []).append(change.shape[0])
    width = most_common(matching(columns, FROM_WIDTH), PUBLISHED.width)
    inner = most_common(
        [
            *matching(columns, FROM_INNER),
            *(count - width for count in matching(columns, FROM_BOTH)),
        ],
        4 * width,
    )
    norms = [c.shape[0] for c in changes.values() if len(c.shape) == 1 and c.shape[0] < width]
    heads = width // most_common(norms, min(128, width))
    return replace(
        sizes,
        dit=replace(
            spec,
            width=width,
            heads=max(1, heads),
            inner=inner,
            channels_in=most_common(columns.get("img_in", ()), PUBLISHED.channels_in),
            channels_out=most_common(rows.get("final_layer.linear", ()), PUBLISHED.channels_out),
            text_width=most_common(columns.get("txt_in", ()), PUBLISHED.text_width),
            pooled_width=most_common(columns.get("vector_in.in_layer", ()), PUBLISHED.pooled_width),
        ),
    )


def depth(names: Iterable[str], stack: str, at_least: int) -> int:
    """The published depth, or more if a name goes beyond it: names alone do not show less."""
    found = (match for name in names if (match := DEPTHS[stack].fullmatch(name)))
    numbers = [int(number) for match in found for number in match.groups() if number]
    return max([at_least, *(number + 1 for number in numbers)])


def matching(sizes: Mapping[str, Iterable[int]], pattern: re.Pattern[str]) -> list[int]:
    return [size for name, found in sizes.items() if pattern.fullmatch(name) for size in found]
