import pytest
import torch

from flux_engine.errors import TrainingError
from tests.flux_engine.asking import noise
from tests.flux_engine.training.rows import LATENT, draws, row


def test_data_is_drawn_from_moments_where_a_row_has_them() -> None:
    mean, logvar = noise(1, *LATENT), noise(2, *LATENT) - 3
    material = row(moments=torch.cat([mean, logvar]))
    assert torch.equal(material.x0("sft", None), mean)
    drawn = torch.stack([material.x0("sft", draws(i)) for i in range(400)])
    torch.testing.assert_close(drawn.std(0), (0.5 * logvar).exp(), rtol=0.3, atol=0)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.25, rtol=0)


def test_data_is_the_latent_or_where_a_path_ends() -> None:
    assert torch.equal(row().x0("sft", draws()), noise(2, *LATENT))
    states = noise(5, 3, *LATENT)
    assert torch.equal(row(latent_ZHW=None, states=states).x0("sft", draws()), states[-1])


def test_a_row_without_data_is_named() -> None:
    with pytest.raises(TrainingError, match=r"row 7: has no latent, which prior needs"):
        row(7, latent_ZHW=None).x0("prior", draws())


def test_a_row_without_a_mask_counts_whole() -> None:
    assert torch.equal(row().mask_like(noise(0, *LATENT)), torch.ones(1, 4, 6))


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (torch.ones(1, 2, 6), "the mask is"),
        (torch.zeros(1, 4, 6), "nothing to learn"),
        (torch.full((1, 4, 6), -0.5), "below 0"),
        (torch.full((1, 4, 6), float("nan")), "below 0, or none"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused(mask: torch.Tensor, why: str) -> None:
    with pytest.raises(TrainingError, match=f"row 3: .*{why}"):
        row(3, mask_1HW=mask).mask_like(noise(0, *LATENT))
