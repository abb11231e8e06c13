"""Random draws that depend on their origin alone: never on what was drawn before them."""

import hashlib

import torch


def chance(*origin: int | str) -> torch.Generator:
    """A generator on the CPU whose draws are a function of `origin` (seed, step, slot, purpose…).

    1 and "1" are different origins.
    """
    digest = hashlib.blake2b(repr(origin).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))
