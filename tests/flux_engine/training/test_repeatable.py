"""In processes of their own: what is set is set for all of one."""

import os
import subprocess
import sys

CODE = """
import os, torch
from flux_engine.training.repeatable import repeat_on_card
repeat_on_card()
assert torch.are_deterministic_algorithms_enabled()
assert torch.is_deterministic_algorithms_warn_only_enabled()
assert not torch.utils.deterministic.fill_uninitialized_memory
print(os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""


def said(**environment: str) -> str:
    lacking = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=lacking | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_kernels_repeat_and_new_memory_is_not_filled_for_them() -> None:
    assert said() == ":4096:8"


def test_a_workspace_that_was_chosen_stays() -> None:
    assert said(CUBLAS_WORKSPACE_CONFIG=":16:8") == ":16:8"
