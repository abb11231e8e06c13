"""How many workers a job has, and what each of them holds of the cluster."""

from collections.abc import Mapping
from dataclasses import dataclass

from batch.errors import JobError

MANY = 100_000


@dataclass(frozen=True)
class Resources:
    """What one worker holds."""

    gpus: int
    cpus: int


@dataclass(frozen=True)
class Share:
    """Between `low` and `high` workers, as many as there is room for."""

    low: int
    high: int
    resources: Resources

    def wanted(self, there: Mapping[str, float]) -> int:
        """How many, in a cluster that has these resources now."""
        if self.resources.gpus:
            room = int(there.get("GPU", 0)) // self.resources.gpus
        else:
            room = int(there.get("CPU", 0)) // self.resources.cpus
        return min(max(self.low, room), self.high)


def share_of(
    there: Mapping[str, float], workers: str | int | tuple[int, int], device: str
) -> Share:
    """A GPU for each worker where the cluster has some, else CPUs; JobError if there are too few.

    `device` is the job's: `cpu` leaves GPUs alone, `cuda` insists on them.
    """
    gpus = 0 if device == "cpu" else int(there.get("GPU", 0))
    cpus = int(there.get("CPU", 1))
    if device == "cuda" and not gpus:
        raise JobError("engine.device is cuda and the cluster has no GPU")
    match workers:
        case int():
            low = high = workers
        case (low, high):
            pass
        case _:
            low, high = (1, MANY) if gpus else (1, 1)
    of, name = (gpus, "GPUs") if gpus else (cpus, "CPUs")
    if low > of:
        raise JobError(f"workers: {low} asked for, and the cluster has {of} {name}")
    if gpus:
        return Share(low, high, Resources(gpus=1, cpus=1))
    return Share(low, high, Resources(gpus=0, cpus=max(1, cpus // high)))
