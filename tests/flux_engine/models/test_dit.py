import pytest
import torch
from torch import Tensor

from flux_engine.latents import position_ids
from flux_engine.models.dit import FluxSpec, FluxTransformer
from tests.flux_engine.asking import noise

TINY = FluxSpec(
    width=64, heads=2, axes=(4, 14, 14), inner=128, double_blocks=2, single_blocks=3,
    text_width=24, pooled_width=40,
)  # fmt: skip
TEXT = 5


@pytest.fixture
def dit() -> FluxTransformer:
    torch.manual_seed(0)
    return FluxTransformer(TINY).eval().requires_grad_(False)


def velocity(
    dit: FluxTransformer, x_BSC: Tensor, height: int, width: int, text: Tensor | None = None
) -> Tensor:
    """For latents of so many cells; the noise level falls from row to row."""
    batch = len(x_BSC)
    text_BTW = noise(1, 1, TEXT, 24).expand(batch, -1, -1) if text is None else text
    sigma_B, guidance_B = torch.linspace(1, 0.5, batch), torch.full((batch,), 3.5)
    condition = dit.condition(sigma_B, noise(2, 1, 40).expand(batch, -1), guidance_B)
    table = dit.rotation(position_ids(TEXT, height, width))
    out: Tensor = dit(x_BSC, text_BTW, dit.modulate(condition), table)
    return out


@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (10, 6), (2, 26)])
def test_every_size_in_whole_patches_is_served(
    dit: FluxTransformer, height: int, width: int
) -> None:
    x_BSC = noise(0, 3, height * width // 4, 64)
    out = velocity(dit, x_BSC, height, width)
    assert out.shape == x_BSC.shape
    assert out.isfinite().all()
    assert torch.equal(out, velocity(dit, x_BSC, height, width))


def test_rows_do_not_see_each_other(dit: FluxTransformer) -> None:
    x_BSC = noise(0, 3, 12, 64)
    changed = x_BSC.clone()
    changed[1] = float("nan")
    out, among = velocity(dit, x_BSC, 8, 6), velocity(dit, changed, 8, 6)
    assert torch.equal(out[[0, 2]], among[[0, 2]])
    assert among[1].isnan().all()


def test_the_order_of_text_tokens_means_nothing_to_the_transformer(dit: FluxTransformer) -> None:
    x_BSC, text = noise(0, 1, 12, 64), noise(1, 1, TEXT, 24)
    out = velocity(dit, x_BSC, 8, 6, text)
    torch.testing.assert_close(velocity(dit, x_BSC, 8, 6, text.flip(1)), out)
    assert (velocity(dit, x_BSC, 8, 6, -text) - out).abs().max() > 1e-3


def test_the_shape_of_the_picture_counts_and_not_only_its_tokens(dit: FluxTransformer) -> None:
    x_BSC = noise(0, 1, 12, 64)
    assert (velocity(dit, x_BSC, 8, 6) - velocity(dit, x_BSC, 6, 8)).abs().max() > 1e-3


def test_the_table_has_a_row_for_every_modulation(dit: FluxTransformer) -> None:
    rows = dit.modulate(noise(0, 3, 64))
    assert rows.shape == (3, 2 * 12 + 3 * 3 + 2, 64)
    parts = [part.modulate(noise(0, 3, 64)) for part in dit.modulated_parts()]
    assert torch.equal(rows, torch.cat(parts, dim=1))


def test_levels_and_guidance_are_embedded_a_thousandfold(dit: FluxTransformer) -> None:
    pooled, level = torch.zeros(1, 40), torch.tensor([0.5])
    a = dit.condition(level, pooled, torch.tensor([3.5]))
    b = dit.condition(level, pooled, torch.tensor([3.5005]))
    assert (a - b).abs().max() > 1e-3


def test_without_a_guidance_embedder_guidance_has_no_effect() -> None:
    torch.manual_seed(0)
    schnell = FluxTransformer(FluxSpec(**{**vars(TINY), "guidance": False})).eval()
    assert schnell.guidance_in is None
    level, pooled = torch.tensor([0.5]), noise(0, 1, 40)
    a, b = (schnell.condition(level, pooled, torch.tensor([g])) for g in (1.0, 7.0))
    assert torch.equal(a, b)


def test_conditions_come_in_the_type_of_the_weights() -> None:
    dit = FluxTransformer(TINY).bfloat16()
    condition = dit.condition(torch.tensor([0.3]), noise(0, 1, 40).bfloat16(), torch.tensor([3.5]))
    assert condition.dtype == torch.bfloat16


def test_flux_dev_has_its_published_parameters() -> None:
    with torch.device("meta"):
        dit = FluxTransformer(FluxSpec())
    sizes = {name: p.numel() for name, p in dit.named_parameters()}
    assert sum(sizes.values()) == 11_901_408_320
    modulation = [n for name, n in sizes.items() if "_mod." in name or ".modulation." in name]
    assert sum(modulation) == 3_228_567_552
