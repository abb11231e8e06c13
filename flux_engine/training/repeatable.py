"""Kernels that give the same bits each time, as far as a card has them."""

import os

import torch
from torch.utils import deterministic

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # products ask for it, before the first of them


def repeat_on_card() -> None:
    """Take them from now on; where there are none, torch warns."""
    os.environ.setdefault(*WORKSPACE)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # else each new tensor is filled first, for the sake of code that reads what nobody wrote
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
