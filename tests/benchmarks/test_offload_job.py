import torch
from torch import Tensor

from benchmarks.offload_job import CAPS, WholeJob
from benchmarks.random_flux import transformer
from flux_engine.vram.card import HostCard, Mark

CPU = torch.device("cpu")


class Locking(HostCard):
    """Copies at full speed from what it has locked, as long as it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.locked: set[int] = set()
        self.slow = 0

    def pin(self, flat: Tensor) -> Tensor:
        self.locked.add(flat.data_ptr())
        return flat

    def copy(self, name: str, to: Tensor, source: Tensor, after: Mark) -> Mark:
        self.slow += source.data_ptr() not in self.locked
        return super().copy(name, to, source, after)


def test_jobs_within_less_memory_copy_more_from_locked_pages_and_make_the_same() -> None:
    card = Locking()
    job = WholeJob("tiny", CPU, transformer("tiny", torch.float32, CPU), card)
    told = [job.within(gib) for gib in CAPS["tiny"]]
    copied = [one["copied_gb"] for one in told]
    assert copied == sorted(copied)
    assert copied[0] == 0
    assert copied[1] > 0.1  # blocks pass through
    assert [one.get("same_bits") for one in told] == [None, True, True]
    assert card.slow == 0
