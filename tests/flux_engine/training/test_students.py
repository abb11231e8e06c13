from typing import Any

import pytest
import torch
from torch import Tensor

from flux_engine.errors import TrainingError
from flux_engine.training.material import Material
from flux_engine.training.objective import Objective
from flux_engine.training.students import X0, Jump, Kd, KdW, Reflow
from flux_engine.training.timesteps import Fixed
from tests.flux_engine.asking import noise
from tests.flux_engine.training.rows import LATENT, Recorder, batch, draws, row

SIGMAS = (1.0, 0.8, 0.5, 0.2, 0.0)


def pair(number: int = 0, **other: Any) -> Material:
    return row(number, noise=noise(50 + number, *LATENT), embedded_guidance=3.5, **other)


def path(**other: Any) -> Material:
    """A walk whose segments have the velocities 1, 2, 3, 4."""
    states = [noise(60, *LATENT)]
    for k in range(4):
        states.append(states[-1] - (SIGMAS[k] - SIGMAS[k + 1]) * (k + 1))
    return row(
        latent_ZHW=None, states=torch.stack(states), sigmas=SIGMAS, embedded_guidance=3.5, **other
    )


def answers(**other: Any) -> Material:
    return row(
        noise=noise(70, 3, *LATENT),
        t=(0.9, 0.5, 0.1),
        guidances=(1.0, 3.5),
        v_cond=noise(71, 3, 2, *LATENT),
        v_uncond=noise(72, 3, *LATENT),
        **other,
    )


def drawn(objective: Objective, material: Material, count: int = 40) -> list[dict[str, Tensor]]:
    return [dict(objective.draw(material, draws(i)).tensors) for i in range(count)]


def test_reflow_learns_the_line_to_the_very_noise_of_the_picture() -> None:
    one = Reflow(timesteps=Fixed(0.3)).draw(pair(2), draws()).tensors
    latent, eps = noise(22, *LATENT), noise(52, *LATENT)
    torch.testing.assert_close(one["x"], 0.7 * latent + 0.3 * eps)
    torch.testing.assert_close(one["target"], eps - latent)
    assert one["guidance"] == 3.5


def test_reflow_takes_the_ends_of_a_path() -> None:
    material = path()
    assert material.states is not None
    one = Reflow(timesteps=Fixed(1.0)).draw(material, draws()).tensors
    torch.testing.assert_close(one["x"], material.states[0])
    torch.testing.assert_close(one["target"], material.states[0] - material.states[-1])


def test_a_jump_learns_each_segments_own_velocity() -> None:
    seen = {round(float(one["sigma"]), 3): one for one in drawn(Jump(), path())}
    assert set(seen) == {1.0, 0.8, 0.5, 0.2}
    for k, sigma in enumerate(SIGMAS[:-1]):
        expected = torch.full(LATENT, float(k + 1))
        torch.testing.assert_close(seen[sigma]["target"], expected, atol=1e-5, rtol=0)
        assert seen[sigma]["told"] == seen[sigma]["sigma"]


def test_a_jump_can_be_over_several_segments() -> None:
    seen = {round(float(one["sigma"]), 3): one for one in drawn(Jump(steps=2), path())}
    assert set(seen) == {1.0, 0.5}
    first = (0.2 * 1 + 0.3 * 2) / 0.5
    torch.testing.assert_close(seen[1.0]["target"], torch.full(LATENT, first), atol=1e-5, rtol=0)
    with pytest.raises(TrainingError, match="its path of 4 segments is not to be had in 3"):
        Jump(steps=3).draw(path(), draws())


def test_noise_and_picture_are_a_path_of_one_segment() -> None:
    one = Jump().draw(pair(1), draws()).tensors
    assert one["sigma"] == 1
    torch.testing.assert_close(one["x"], noise(51, *LATENT))
    torch.testing.assert_close(one["target"], noise(51, *LATENT) - noise(12, *LATENT))


def test_a_student_that_follows_the_path_has_no_loss() -> None:
    for objective, right in ((Jump(), lambda one: one["target"]), (X0(), ending)):
        one = batch(*(objective.draw(path(), draws(i)) for i in range(5)))
        loss = objective.loss(Recorder(answer=right(one.tensors)), one)
        torch.testing.assert_close(loss, torch.zeros(5), atol=1e-9, rtol=0)
        assert (objective.loss(Recorder(), one) > 0.1).all()


def ending(tensors: Any) -> Tensor:
    """The velocity that leads straight to where the path ends."""
    out: Tensor = (tensors["x"] - tensors["x0"]) / tensors["sigma"].reshape(-1, 1, 1, 1)
    return out


def test_x0_is_compared_where_the_student_would_arrive() -> None:
    one = batch(X0().draw(path(), draws(3)))
    off = one["x"] - one["sigma"].reshape(-1, 1, 1, 1) * (0.5 * one["x"]) - one["x0"]
    torch.testing.assert_close(X0().loss(Recorder(), one), off.square().mean()[None])


def test_kd_tells_the_student_the_guidance_that_it_learns() -> None:
    material = answers()
    assert material.v_cond is not None
    assert material.noise is not None
    combinations = set()
    for one in drawn(Kd(), material):
        m, g = material.t.index(round(float(one["told"]), 3)), (1.0, 3.5).index(one["guidance"])
        combinations.add((m, g))
        assert torch.equal(one["target"], material.v_cond[m, g])
        t = material.t[m]
        torch.testing.assert_close(one["x"], (1 - t) * noise(2, *LATENT) + t * material.noise[m])
    assert len(combinations) == 6


def test_kd_can_keep_to_one_guidance() -> None:
    assert {float(one["guidance"]) for one in drawn(Kd(guidance=3.5), answers())} == {3.5}
    with pytest.raises(TrainingError, match=r"no answer at guidance 2.0, which kd is to learn"):
        Kd(guidance=2.0).draw(answers(), draws())


def test_kd_w_learns_guidance_at_a_weight_that_it_is_told() -> None:
    material = answers()
    assert material.v_cond is not None
    assert material.v_uncond is not None
    weights = []
    for one in drawn(KdW(weights=(2.0, 4.0), guidance=1.0), material):
        m, w = material.t.index(round(float(one["told"]), 3)), one["guidance"]
        u, c = material.v_uncond[m], material.v_cond[m, 0]
        torch.testing.assert_close(one["target"], u + w * (c - u))
        weights.append(float(w))
    assert 2 <= min(weights) < 2.3
    assert 3.7 < max(weights) <= 4


REFUSED: list[tuple[Objective, Material, str]] = [
    (Reflow(), row(4), "row 4: has no path and no noise, which reflow needs"),
    (Jump(), row(4), "row 4: has no path and no noise, which jump needs"),
    (Jump(), row(4, noise=noise(0, *LATENT)), "has no embedded_guidance, which jump"),
    (X0(), Material(**(vars(path()) | {"sigmas": (1.0, 0.5)})), "5 states at"),
    (Kd(), row(4), "row 4: has no noise and no times t, which kd needs"),
    (Kd(), answers(latent_ZHW=None), "has no latent, which kd needs"),
    (Kd(), Material(**(vars(answers()) | {"v_cond": None})), "has no v_cond, which kd needs"),
    (Kd(), Material(**(vars(answers()) | {"guidances": (1.0,)})), "v_cond is"),
    (KdW(), answers(), "which one is meant"),
    (KdW(guidance=1.0), Material(**(vars(answers()) | {"v_uncond": None})), "has no v_uncond"),
]


@pytest.mark.parametrize(("objective", "material", "why"), REFUSED, ids=[w for _, _, w in REFUSED])
def test_what_a_row_lacks_is_told(objective: Objective, material: Material, why: str) -> None:
    with pytest.raises(TrainingError, match=why):
        objective.draw(material, draws())


def test_each_objective_says_which_datasets_it_takes() -> None:
    assert Reflow.kinds == Jump.kinds == X0.kinds == {"pair", "path"}
    assert Kd.kinds == KdW.kinds == {"velocity"}
