import torch

from flux_engine.training.chance import chance


def test_the_same_origin_draws_the_same() -> None:
    first, again = (torch.rand(4, generator=chance(7, 3, 0, "noise")) for _ in range(2))
    assert torch.equal(first, again)


def test_every_part_of_an_origin_counts() -> None:
    origins = [(1, 2), (2, 1), (1, 2, 0), ("1", 2), ("1, 2",), (12,), (), (1, "2")]
    drawn = {float(torch.rand((), generator=chance(*origin))) for origin in origins}  # type: ignore[arg-type]
    assert len(drawn) == len(origins)


def test_draws_stay_what_they_are_from_version_to_version() -> None:
    assert chance(0, 0, "lora").initial_seed() == 8161283727293103636
