import pytest
import torch

from flux_engine.errors import CheckpointError
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.weights.keymaps.transformer import flux_spec
from flux_engine.weights.load import assemble
from flux_engine.weights.stored import shapes_of
from tests.flux_engine.weights.published import published
from tests.parity import diffusers_layout, tiny
from tests.parity.tiny import TinySpec

TINY = {"dev": TinySpec(), "schnell": TinySpec(guidance=False)}


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("flux1-dev", FluxSpec()),
        ("flux1-schnell", FluxSpec(guidance=False)),
        ("flux1-fill-dev", FluxSpec(channels_in=384)),
        ("flex2-preview", FluxSpec(channels_in=196, double_blocks=8)),
        ("flux1-dev-transformer-diffusers", FluxSpec()),
        ("flux1-schnell-transformer-diffusers", FluxSpec(guidance=False)),
    ],
)
def test_the_spec_is_read_from_the_shapes(name: str, spec: FluxSpec) -> None:
    assert flux_spec(shapes_of(published(name).meta())) == spec


@pytest.mark.parametrize("kind", TINY)
def test_both_layouts_of_one_model_are_equal_bit_for_bit(kind: str) -> None:
    weights = tiny.transformer_weights(TINY[kind])
    _, plain = assemble(weights, where="bfl", dtype=torch.float32)
    _, converted = assemble(
        diffusers_layout.transformer(weights), where="diffusers", dtype=torch.float32
    )
    assert isinstance(plain, FluxTransformer)
    assert plain.spec == TINY[kind].flux
    state = converted.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)


def test_the_final_modulation_is_shift_then_scale() -> None:
    weights = diffusers_layout.transformer(tiny.transformer_weights(TINY["dev"]))
    scale, shift = weights["norm_out.linear.bias"].chunk(2)
    _, model = assemble(weights, where="diffusers", dtype=torch.float32)
    bias = model.state_dict()["final_layer.adaLN_modulation.1.bias"]
    assert torch.equal(bias, torch.cat([shift, scale]))


@pytest.mark.parametrize(("double", "single"), [(1, 0), (0, 2), (3, 1)])
def test_any_width_and_depth_is_read(double: int, single: int) -> None:
    spec = FluxSpec(
        width=96, heads=2, axes=(8, 20, 20), inner=160, double_blocks=double, single_blocks=single,
        channels_in=20, channels_out=12, text_width=24, pooled_width=16, guidance=False,
    )  # fmt: skip
    state = FluxTransformer(spec).state_dict()
    assert flux_spec(shapes_of(state), axes=(8, 20, 20)) == spec


def test_heads_that_do_not_split_evenly_ask_for_axes() -> None:
    spec = FluxSpec(width=96, heads=2, double_blocks=1, single_blocks=1)
    with torch.device("meta"):
        shapes = shapes_of(FluxTransformer(spec).state_dict())
    with pytest.raises(CheckpointError, match=r"heads of 48 .* give the axes"):
        flux_spec(shapes)
    assert flux_spec(shapes, axes=(16, 16, 16)).axes == (16, 16, 16)


@pytest.mark.parametrize("axes", [(16, 16, 14), (15, 17, 16), (48, 0, 0)])
def test_axes_that_do_not_fill_a_head_are_refused(axes: tuple[int, ...]) -> None:
    spec = FluxSpec(width=96, heads=2, double_blocks=1, single_blocks=1)
    with torch.device("meta"):
        shapes = shapes_of(FluxTransformer(spec).state_dict())
    with pytest.raises(CheckpointError, match="are not even, or are not 48 in sum"):
        flux_spec(shapes, axes=axes)
