"""The formulas of rectified flow."""

import torch

from flux_engine.training.loss import (
    errors,
    flow_loss,
    flow_loss_per_sample,
    guided_target,
    masked_mean,
    noised,
    sample_sigmas,
    velocity_target,
)


def test_the_path_runs_from_data_to_noise_in_a_straight_line() -> None:
    x0, noise = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    x = noised(x0, noise, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(x[0], x0[0])
    torch.testing.assert_close(x[1], noise[1])
    torch.testing.assert_close(x[2], 0.75 * x0[2] + 0.25 * noise[2])


def test_a_step_along_the_target_velocity_reaches_the_data() -> None:
    x0, noise, sigma = torch.randn(2, 5), torch.randn(2, 5), torch.tensor([0.3, 0.9])
    x = noised(x0, noise, sigma)
    torch.testing.assert_close(x - sigma[:, None] * velocity_target(x0, noise), x0)


def test_guidance_extrapolates_each_sample_by_its_own_weight() -> None:
    u, c = torch.zeros(3, 2), torch.ones(3, 2)
    guided = guided_target(u, c, torch.tensor([0.0, 1.0, 4.0]))
    assert guided.tolist() == [[0, 0], [1, 1], [4, 4]]


def test_the_loss_is_the_mean_square_error_even_in_half_precision() -> None:
    target = torch.zeros(2, 3, 2)
    velocity = torch.stack([torch.ones(3, 2), torch.full((3, 2), 3.0)]).bfloat16()
    assert flow_loss_per_sample(velocity, target).tolist() == [1.0, 9.0]
    assert flow_loss(velocity, target).item() == 5.0
    assert flow_loss(velocity, target).dtype == torch.float32


def test_noise_levels_are_logit_normal_and_repeatable() -> None:
    first, again = (
        sample_sigmas(20_000, torch.Generator().manual_seed(0), mean=0.5, spread=0.8)
        for _ in range(2)
    )
    logits = torch.logit(first)
    assert abs(logits.mean().item() - 0.5) < 0.02
    assert abs(logits.std().item() - 0.8) < 0.02
    assert torch.equal(first, again)


def test_hubers_error_is_a_square_that_turns_straight() -> None:
    off = errors(torch.tensor([0.5, -4.0]), torch.zeros(2), "huber", delta=1.0)
    assert off.tolist() == [0.125, 3.5]
    assert errors(torch.tensor([-4.0]), torch.zeros(1), "mae").tolist() == [4.0]


def test_a_masked_mean_of_ones_is_the_mean() -> None:
    values = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        masked_mean(values, torch.ones(2, 1, 4, 4)), values.flatten(1).mean(1)
    )
