"""Noise by its key: never stored, drawn again, and proved by a hash of its bytes."""

import hashlib
from collections.abc import Sequence

from torch import Tensor

from batch.errors import BatchError
from batch.targets.tensors import raw
from flux_engine.latents import start_noise

HASH_BYTES = 8


class NoiseError(BatchError):
    """Noise that came out otherwise than when the row was made."""


def noise_of(seed: int, shape: Sequence[int]) -> Tensor:
    """Unit noise (Z, H/8, W/8) in float32, of the algorithm that `schemas.targets.NOISE` names."""
    channels, height, width = shape
    return start_noise(seed, (channels, height, width))


def hash_of(noise: Tensor) -> str:
    """Hex of the noise's float32 bytes."""
    return hashlib.blake2b(raw(noise), digest_size=HASH_BYTES).hexdigest()


def checked(seed: int, shape: Sequence[int], wanted: str, where: str) -> Tensor:
    """The noise of a key; NoiseError if it is not what it was."""
    noise = noise_of(seed, shape)
    if (found := hash_of(noise)) != wanted:
        raise NoiseError(
            f"{where}: noise of seed {seed} has hash {found}, and {wanted} is written down: "
            "another generator, or a changed row"
        )
    return noise


def derived(sample_id: str, number: int) -> int:
    """A seed of a row's own, the same whoever makes the row."""
    text = f"{sample_id} {number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
