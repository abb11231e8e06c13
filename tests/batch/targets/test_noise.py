import pytest
import torch

from batch.targets.noise import NoiseError, checked, derived, hash_of, noise_of
from flux_engine.latents import start_noise

SHAPE = (16, 8, 8)


def test_noise_is_the_engines() -> None:
    assert torch.equal(noise_of(7, SHAPE), start_noise(7, SHAPE))


def test_a_hash_tells_noise_from_any_other() -> None:
    noise = noise_of(7, SHAPE)
    assert torch.equal(checked(7, SHAPE, hash_of(noise), "here"), noise)
    noise[0, 0, 0] += 1e-6
    with pytest.raises(NoiseError, match="here: noise of seed 7 has hash"):
        checked(7, SHAPE, hash_of(noise), "here")


def test_a_rows_own_seeds_are_its_names_alone() -> None:
    assert derived("ab", 0) == derived("ab", 0)
    assert len({derived(name, n) for name in ("ab", "cd") for n in range(5)}) == 10
    assert 0 <= derived("ab", 0) < 2**63
