from dataclasses import replace

import pytest
import torch
from torch import nn

from flux_engine.adapters.lora import adding
from flux_engine.batching import Worn
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.models.fp8 import narrow_layers
from flux_engine.models.vae import AutoEncoder, VaeSpec
from flux_engine.vram.estimates import (
    HIDDEN_VECTORS,
    PIXEL_VECTORS,
    RESERVE,
    compute_seconds,
    decode_bytes,
    decode_seconds,
    flops,
    lora_bytes,
    of_kind,
    text_bytes,
    total,
    widening_bytes,
    working_bytes,
)
from flux_engine.vram.units import MODULATIONS
from tests.flux_engine.vram.live import Live
from tests.flux_engine.vram.published import card, flux_dev, square


def test_a_forward_pass_is_the_work_that_is_known_of_it() -> None:
    weights, sizes = flux_dev()
    products, attention = flops(square(1024), sizes, of_kind(weights, "dit", "block"))
    assert products == pytest.approx(59.4e12, rel=0.01)  # 59.5 with the embedders
    assert attention == pytest.approx(14.87e12, rel=0.01)
    guided = flops(square(1024, sides=2), sizes, of_kind(weights, "dit", "block"))
    assert guided == (2 * products, 2 * attention)


def test_a_step_on_an_h200_takes_what_its_rates_say() -> None:
    weights, sizes = flux_dev()
    step = compute_seconds(card(), square(1024), sizes, of_kind(weights, "dit", "block"))
    assert step == pytest.approx(0.100, rel=0.01)
    assert decode_seconds(card(), square(1024)) == pytest.approx(0.038, rel=0.01)


def test_weights_are_counted_by_model() -> None:
    weights, _ = flux_dev()
    assert total(weights, "dit") == 2 * 11_901_408_320
    assert total(weights, "t5", "clip") == pytest.approx(2 * (4_762_310_656 + 123_060_480), abs=1e4)


@pytest.mark.parametrize("bits", ["wide", "eight bits", "eight-bit products"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_forward_pass_lives_in_what_is_estimated_for_it(dtype: torch.dtype, bits: str) -> None:
    width, text, image, rows = 256, 64, 512, 2
    spec = FluxSpec(width, 2, (16, 56, 56), 4 * width, 2, 2, text_width=64, pooled_width=32)
    dit = FluxTransformer(spec).to(dtype).requires_grad_(False)
    for block in (*dit.double_blocks, *dit.single_blocks):
        if bits != "wide":
            narrow_layers(block, but=MODULATIONS, products="products" in bits)
    x, told = torch.randn(rows, image, 64).to(dtype), torch.randn(rows, text, 64).to(dtype)
    table = torch.randn(rows, 2 * 12 + 2 * 3 + 2, width).to(dtype)
    with torch.inference_mode(), Live() as live:
        dit(x, told, table, torch.randn(2, text + image, 64))
    vector = rows * (text + image) * width * dtype.itemsize
    assert 0.8 * HIDDEN_VECTORS < live.peak / vector < HIDDEN_VECTORS


def test_decoding_lives_in_what_is_estimated_for_it() -> None:
    spec, side = VaeSpec(widths=(32, 64, 128, 128)), 128
    vae = AutoEncoder(spec).bfloat16()
    with torch.inference_mode():
        for work in (vae.decode, vae.encode):
            shape = (1, 3, side, side) if work == vae.encode else (1, 16, side // 8, side // 8)
            with Live() as live:
                work(torch.randn(shape).bfloat16())
            assert live.peak / (side**2 * 32 * 2) < PIXEL_VECTORS


def test_layers_that_keep_eight_bits_are_widened_one_at_a_time() -> None:
    _, sizes = flux_dev()
    assert widening_bytes(sizes) == 0
    assert widening_bytes(replace(sizes, stored=1)) == 2 * 3072 * 21504


def test_more_rows_ask_for_more() -> None:
    _, sizes = flux_dev()
    one, two = (working_bytes(square(1024), sizes, batch) - RESERVE for batch in (1, 2))
    assert two == 2 * one == working_bytes(square(1024, sides=2), sizes, 1) - RESERVE
    assert 0.5e9 < one < 0.6e9
    assert text_bytes(512, sizes, 8) - RESERVE == 8 * (text_bytes(512, sizes, 1) - RESERVE)
    assert decode_bytes(square(1024), sizes, 1) - RESERVE == pytest.approx(2.4e9, rel=0.02)


@pytest.mark.parametrize("rows", [1, 2])
def test_loras_beside_the_weights_live_in_what_is_estimated_for_them(rows: int) -> None:
    width, text, image, rank = 256, 64, 512, 16
    spec = FluxSpec(width, 2, (16, 56, 56), 4 * width, 2, 2, text_width=64, pooled_width=32)
    dit = FluxTransformer(spec).requires_grad_(False)
    layers = {
        name: layer
        for name, layer in dit.named_modules()
        if isinstance(layer, nn.Linear) and "_blocks." in name and "mod" not in name
    }
    for layer in layers.values():
        down, up = torch.randn(1, rank, layer.in_features), torch.randn(1, layer.out_features, rank)
        hook = adding(down, up, torch.zeros(rows, dtype=torch.long), table=False)
        layer.register_forward_hook(hook)
    widest = max(layer.out_features for layer in layers.values())
    work = replace(square(256), image_tokens=image, text_tokens=text, steps=0)
    worn = replace(work, worn=Worn(gathered=rank * widest))
    sizes = replace(flux_dev()[1], width=width, itemsize=4, stored=4)
    x, told = torch.randn(rows, image, 64), torch.randn(rows, text, 64)
    table = torch.randn(rows, 2 * 12 + 2 * 3 + 2, width)
    with torch.inference_mode(), Live() as live:
        dit(x, told, table, torch.randn(2, text + image, 64))
    assert 0.8 < live.peak / (working_bytes(worn, sizes, rows) - RESERVE) < 1


def test_each_outfit_of_a_micro_batch_stands_on_the_card() -> None:
    _, sizes = flux_dev()
    worn = [replace(square(1024), worn=Worn(factors=1000, outfits=n)) for n in (1, 3, 9)]
    assert [lora_bytes(work, sizes, 4) for work in worn] == [2000, 6000, 8000]
    assert lora_bytes(square(1024), sizes, 4) == 0
