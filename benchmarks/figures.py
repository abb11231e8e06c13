"""What one run found out: agreement, counts and times, and the ratios that follow."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.contenders import OURS
from benchmarks.toys import ROWS
from flux_engine.request import Schedule

RATIOS = ("cpu", "cpu median", "user", "wall", "wall median")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whose figures, at which size, on which noise levels."""

    name: str
    side: int
    schedule: Schedule

    @property
    def ours(self) -> bool:
        return self.name.startswith(OURS)

    def like(self, other: "Subject") -> bool:
        """Whether both were asked for the same pictures."""
        return (self.side, self.schedule) == (other.side, other.schedule)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far ours is from a peer: latents in standard deviations, pixels by relative norm."""

    ours: Subject
    peer: Subject
    latents: float
    pixels: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Calls and rows of each part of the model in one round."""

    subject: Subject
    parts: dict[str, dict[str, int]]

    def per_picture(self) -> dict[str, float]:
        """Each row of a round has a prompt of its own, so this is per distinct prompt too."""
        return {
            "transformer calls": self.parts["transformer"]["calls"] / ROWS,
            "transformer rows": self.parts["transformer"]["rows"] / ROWS,
            "T5 rows": self.parts["t5"]["rows"] / ROWS,
            "CLIP rows": self.parts["clip"]["rows"] / ROWS,
        }

    def modulations(self, batch: int) -> float:
        """How often a batch's modulation is computed: once, or once for each step."""
        return self.parts["modulation"]["calls"] * batch / ROWS


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds per picture, by round."""

    subject: Subject
    user: list[float]
    system: list[float]
    wall: list[float]

    @property
    def cpu(self) -> list[float]:
        return [user + system for user, system in zip(self.user, self.system, strict=True)]

    def summary(self) -> dict[str, float]:
        return {
            "cpu": min(self.cpu),
            "cpu median": median(self.cpu),
            "user": min(self.user),
            "system median": median(self.system),
            "wall": min(self.wall),
            "wall median": median(self.wall),
        }


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A peer's seconds by ours, minima by minima, medians by medians; above 1 ours is faster."""

    ours: Subject
    peer: Subject
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything about one toy model."""

    toy: str
    setting: dict[str, Any]
    absent: list[str]
    agreements: list[Agreement]
    counts: list[Counts]
    times: list[Times]

    def ratios(self) -> list[Ratio]:
        return [
            Ratio(ours=ours.subject, peer=peer.subject, seconds=divided(peer, ours))
            for peer in self.times
            for ours in self.times
            if ours.subject.ours and not peer.subject.ours and ours.subject.like(peer.subject)
        ]

    def as_json(self) -> dict[str, Any]:
        summaries = [{"subject": asdict(t.subject), **t.summary()} for t in self.times]
        return {
            **asdict(self),
            "summaries": summaries,
            "ratios": [asdict(ratio) for ratio in self.ratios()],
        }


def divided(peer: Times, ours: Times) -> dict[str, float]:
    theirs, mine = peer.summary(), ours.summary()
    return {name: theirs[name] / mine[name] for name in RATIOS}
