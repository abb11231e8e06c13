"""Changes brought to a given rank, with what that loses.

Shape letters: O rows, C columns, R rank before, K rank after.
"""

import torch
from torch import Tensor

from flux_engine.weights.lora.changes import LowRank

OVERSAMPLED, ITERATIONS = 16, 6  # of the randomised SVD of whole matrices


def reduced(change: LowRank, rank: int) -> tuple[LowRank, float]:
    """The best change of that rank, and ‖ΔW − ΔW'‖ ÷ ‖ΔW‖; exact, by QR of both factors."""
    if change.rank <= rank:
        return change, 0.0
    q_OR, left_RR = torch.linalg.qr(change.up_OR.double() * change.scale)
    p_CR, right_RR = torch.linalg.qr(change.down_RC.double().T)
    u, s, vt = torch.linalg.svd(left_RR @ right_RR.T)
    lost = float(s[rank:].square().sum().sqrt() / s.square().sum().sqrt().clamp(min=1e-300))
    root_K = s[:rank].sqrt()
    up = (q_OR @ u[:, :rank]) * root_K
    down = root_K[:, None] * (vt[:rank] @ p_CR.T)
    return LowRank(down.float(), up.float(), float(rank)), lost


def low_rank_of(delta_OC: Tensor, rank: int) -> tuple[LowRank, float]:
    """The same for a whole ΔW, by a randomised SVD from a fixed seed; the loss is measured."""
    rank = min(rank, *delta_OC.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(
            delta_OC, q=min(rank + OVERSAMPLED, *delta_OC.shape), niter=ITERATIONS
        )
    root_K = s[:rank].sqrt()
    made = LowRank(root_K[:, None] * v[:, :rank].T, u[:, :rank] * root_K, float(rank))
    size = float(delta_OC.norm())
    return made, float((delta_OC - made.delta()).norm()) / size if size else 0.0
