from dataclasses import replace

import torch

from flux_engine.models.dit import FluxSpec
from flux_engine.weights.lora.changes import Change, Difference
from flux_engine.weights.lora.sizes import sizes_of
from tests.flux_engine.weights.lora.written import TINY, bfl


def changes(spec: FluxSpec) -> dict[str, Change]:
    return {
        name: Difference(torch.empty(means.rows, means.columns, device="meta"))
        for name, means in bfl(spec).items()
    }


def test_widths_are_what_most_layers_agree_on() -> None:
    found = changes(TINY)
    found["double_blocks.0.img_attn.proj"] = Difference(torch.empty(9, 9))
    dit = sizes_of(found).dit
    for name in ("width", "inner", "channels_in", "channels_out", "text_width", "pooled_width"):
        assert getattr(dit, name) == getattr(TINY, name), name


def test_depth_is_the_published_one_or_what_names_go_beyond() -> None:
    sizes = sizes_of(changes(TINY))
    assert (sizes.dit.double_blocks, sizes.dit.single_blocks) == (19, 38)
    assert (sizes.clip_layers, sizes.t5_layers) == (12, 24)
    deep = sizes_of(changes(replace(TINY, double_blocks=21, single_blocks=40)))
    assert (deep.dit.double_blocks, deep.dit.single_blocks) == (21, 40)


def test_single_blocks_of_diffusers_say_nothing_of_double_ones() -> None:
    name = "transformer.single_transformer_blocks.37.proj_out"
    sizes = sizes_of({name: Difference(torch.empty(64, 320))})
    assert (sizes.dit.double_blocks, sizes.dit.single_blocks) == (19, 38)
