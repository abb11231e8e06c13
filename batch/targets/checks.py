"""Stored targets asked about again: what the teacher says now against what is written down.

A velocity is asked for once. A segment of several steps, or a whole way from noise, is walked
again, all rows side by side. A control asks the same with something changed, and has to fail.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from batch.targets.noise import derived, noise_of
from batch.targets.tensors import loaded
from flux_engine.errors import RequestError
from flux_engine.request import LoraUse, Schedule
from flux_engine.sampling.schedule import sigmas
from flux_engine.sampling.trace import bounds, states
from flux_engine.teacher import Answer, Query, Teacher
from flux_engine.training.loss import noised
from schemas.records import TargetRecord

SHIFTED = 1.5  # by how much a control bends the schedule
FAR_OFF = 0.1  # of a row that was asked about again: more than bfloat16 explains
KINDS = ("pair", "path", "velocity", "feature")  # that a teacher can be asked about


@dataclass(frozen=True)
class Row:
    """A stored row and the LoRAs that its teacher wore, where they lie now."""

    record: TargetRecord
    loras: tuple[LoraUse, ...] = ()

    def tensor(self, name: str) -> Tensor:
        stored = self.record.tensors[name]
        return loaded(stored.bytes, stored.shape, stored.dtype).float()


@dataclass(frozen=True)
class Control:
    """What is changed before the teacher is asked; by default nothing."""

    captions: Mapping[str, str] = field(default_factory=dict)  # by sample id
    guidance: float = 0.0  # more than is recorded
    shift: float = 1.0

    def bent(self, sigma: float) -> float:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


AS_IS = Control()


@dataclass
class Walk:
    """From `state` down `levels`; of a single level, one answer. `wanted` is what is stored, of
    `what`: the mean `velocity`, the `end`, or the taps by name."""

    row: Row
    state: Tensor
    levels: list[float]
    what: str
    wanted: Mapping[str, Tensor]
    guidance: float
    found: dict[str, Tensor] = field(default_factory=dict)

    def error(self) -> float:
        """The largest ‖found − wanted‖ ÷ ‖wanted‖."""
        return max(
            float((self.found[name].double() - wanted.double()).norm() / wanted.double().norm())
            for name, wanted in self.wanted.items()
        )


class Checks:
    """Asks one teacher."""

    def __init__(self, teacher: Teacher, kind: str) -> None:
        self.teacher, self.kind = teacher, kind

    def errors(
        self, rows: Sequence[Row], control: Control = AS_IS, *, whole: bool = False
    ) -> dict[str, float]:
        """Relative errors by sample id; `whole` walks a path from its beginning to its end.

        RequestError if a row cannot be asked about.
        """
        walks = [self._walk(row, control, whole=whole) for row in rows]
        self._take(walks, control)
        return {walk.row.record.sample_id: walk.error() for walk in walks}

    def _walk(self, row: Row, control: Control, *, whole: bool) -> Walk:
        record = row.record
        match self.kind:
            case "pair":
                return self._from_noise(row, control)
            case "path":
                return self._segment(row, control, whole=whole)
            case _:
                return self._query(row, control, pick(record.sample_id, len(record.t)))

    def _from_noise(self, row: Row, control: Control) -> Walk:
        record = row.record
        assert record.seed is not None
        wanted = row.tensor("latent")
        state, levels = noise_of(record.seed, wanted.shape), levels_of(record, control)
        return Walk(row, state, levels, "end", {"end": wanted}, guidance_of(record))

    def _segment(self, row: Row, control: Control, *, whole: bool) -> Walk:
        record, velocities = row.record, row.tensor("u")
        assert record.seed is not None
        levels = levels_of(record, control)
        ends = bounds(len(levels) - 1, len(velocities))
        meet = [levels[end] for end in ends]
        path = states(noise_of(record.seed, velocities.shape[1:]), velocities, meet)
        if whole:
            return Walk(row, path[0], levels, "end", {"end": path[-1]}, guidance_of(record))
        # the first segment begins at pure noise, where a schedule cannot be wrong
        k = 1 + pick(record.sample_id, len(velocities) - 1) if len(velocities) > 1 else 0
        some = levels[ends[k] : ends[k + 1] + 1]
        wanted = {"velocity": velocities[k]}
        return Walk(row, path[k], some, "velocity", wanted, guidance_of(record))

    def _query(self, row: Row, control: Control, m: int) -> Walk:
        record, latent = row.record, row.tensor("latent")
        noise = noise_of(record.t_noise_seed[m], latent.shape)
        t = control.bent(record.t[m])
        state = noised(latent[None], noise[None], torch.tensor([t]))[0]
        if self.kind == "feature":
            taps = {n: row.tensor(n)[m] for n in record.tensors if n.startswith("tap_")}
            return Walk(row, state, [t], "taps", taps, guidance_of(record))
        g = pick(record.sample_id, len(record.guidances))
        wanted = {"velocity": row.tensor("v_cond")[m, g]}
        return Walk(row, state, [t], "velocity", wanted, record.guidances[g])

    def _take(self, walks: Sequence[Walk], control: Control) -> None:
        """Walk all of them, side by side."""
        here = [walk.state for walk in walks]
        sums = [torch.zeros_like(walk.state) for walk in walks]
        for n in range(max(max(len(walk.levels) - 1, 1) for walk in walks)):
            moving = [i for i, walk in enumerate(walks) if n < max(len(walk.levels) - 1, 1)]
            answers = self._answers([(walks[i], here[i], n) for i in moving], control)
            for i, answer in zip(moving, answers, strict=True):
                walk = walks[i]
                if walk.what == "taps":
                    walk.found = {tap_name(name): value for name, value in answer.taps.items()}
                if len(walk.levels) == 1:
                    sums[i] = answer.velocity
                    continue
                step = walk.levels[n + 1] - walk.levels[n]
                here[i] = here[i] + step * answer.velocity
                whole = walk.levels[-1] - walk.levels[0]
                sums[i] = sums[i] + answer.velocity * (step / whole)
        for walk, end, mean in zip(walks, here, sums, strict=True):
            if walk.what != "taps":
                walk.found = {"end": end, "velocity": mean}

    def _answers(self, asked: Sequence[tuple[Walk, Tensor, int]], control: Control) -> list[Answer]:
        """With guidance by a negative prompt, both sides, mixed."""
        queries, scales = [], []
        for walk, state, n in asked:
            record = walk.row.record
            query = Query(
                state=state,
                sigma=walk.levels[n],
                prompt=control.captions.get(record.sample_id, record.caption),
                embedded_guidance=walk.guidance + control.guidance,
                t5_sequence_length=record.t5_sequence_length,
                loras=walk.row.loras,
            )
            scale = record.cfg_scale if self.kind in ("pair", "path") else None
            guided = scale is not None and scale != 1.0
            scales.append(scale if guided else None)
            queries.append(query)
            if guided:
                queries.append(replace(query, prompt=record.negative_caption or ""))
        found = iter(answered(self.teacher, queries))
        out = []
        for scale in scales:
            positive = next(found)
            if scale is not None:
                negative = next(found).velocity
                mixed = negative + scale * (positive.velocity - negative)
                positive = replace(positive, velocity=mixed)
            out.append(positive)
        return out


def answered(teacher: Teacher, queries: Sequence[Query]) -> list[Answer]:
    """All answers in order; the first that is none raises."""
    found: dict[int, Answer] = {}
    for i, answer in teacher.each(queries):
        if isinstance(answer, RequestError):
            raise answer
        found[i] = answer
    return [found[i] for i in range(len(queries))]


def levels_of(record: TargetRecord, control: Control) -> list[float]:
    """The noise levels of all steps, from what the row says of them."""
    assert record.schedule is not None
    assert record.num_inference_steps is not None
    assert record.sigma_shift is not None
    schedule: Schedule = record.schedule  # type: ignore[assignment]
    steps = sigmas(schedule, record.num_inference_steps, record.sigma_shift, 1.0)
    return [control.bent(float(sigma)) for sigma in steps]


def guidance_of(record: TargetRecord) -> float:
    return 0.0 if record.embedded_guidance is None else record.embedded_guidance


def pick(sample_id: str, count: int) -> int:
    """One of `count` places, by the row alone."""
    return derived(sample_id, -1) % count


def tap_name(tap: str) -> str:
    return f"tap_{tap.replace('.', '_')}"


Changed = Callable[[Sequence[Row]], Control]


def another_caption(rows: Sequence[Row]) -> Control:
    """Each row with the caption of the next one that says something else; ValueError if all are
    the same."""
    captions = [row.record.caption for row in rows]
    if len(set(captions)) < 2:
        raise ValueError("all captions are the same")
    out = {}
    for i, row in enumerate(rows):
        later = (captions[(i + step) % len(rows)] for step in range(1, len(rows)))
        out[row.record.sample_id] = next(c for c in later if c != captions[i])
    return Control(captions=out)


CONTROLS: Mapping[str, Changed] = {
    "another caption": another_caption,
    "guidance off by one": lambda _: Control(guidance=1.0),
    "shifted schedule": lambda _: Control(shift=SHIFTED),
}
