"""Engines whose weights are held on a card made of host memory, as a test wants them."""

import random

from flux_engine import FluxEngine
from flux_engine.batching import Bucket
from flux_engine.planning import Planning
from flux_engine.planning import held as planned
from flux_engine.sampling.tiling import Tiling
from flux_engine.vram.card import HostCard
from flux_engine.vram.estimates import Machine
from flux_engine.vram.planner import Stage
from tests.flux_engine.vram.streaming import late

ROOMY = Machine(name="a toy card", memory=2**40, link=1e9, matmul=1e10, attention=1e10)


class Forced(Planning):
    """Lets other units stay than a plan would."""

    draw: random.Random
    apart: bool

    def force(self, model: str) -> frozenset[str]:
        units = sorted(self.weights[model]) if self.weights else []
        return frozenset(self.draw.sample(units, self.draw.randrange(len(units))))

    def text(self, length: int) -> Stage:
        clip = frozenset(self.weights["clip"]) if self.weights else frozenset()
        resident = {"clip": clip, "t5": self.force("t5")}
        return Stage(resident=resident, slots=self.draw.randrange(1, 4))

    def denoise(self, bucket: Bucket) -> Stage:
        resident = {"dit": self.force("dit")}
        if not self.apart:
            resident["vae"] = frozenset()
        return Stage(resident=resident, slots=self.draw.randrange(1, 5))

    def together(self, bucket: Bucket) -> bool:
        return not self.apart

    def decode(self, height: int, width: int, tiling: Tiling | None) -> Stage:
        return Stage(resident={"vae": frozenset()})


def held(engine: FluxEngine, *, seed: int | None = None, machine: Machine = ROOMY) -> HostCard:
    """Hold the engine's weights on a card; with a seed, at random."""
    card = HostCard(late(seed or 0, 0.001))
    engine.hold(*planned(engine.models, engine.batching, card, machine, dtype=engine.dtype))
    if seed is not None:
        engine.planning.__class__ = Forced
        engine.planning.draw = random.Random(seed)  # type: ignore[attr-defined]
        engine.planning.apart = bool(seed % 2)  # type: ignore[attr-defined]
        if seed % 3 == 0:  # so little room that each phase sends the one before away
            engine.residency.limit = 0
    return card
