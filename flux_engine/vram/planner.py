"""What is on the card when: a pure function of the card, the limit, the weights and the work.

The micro-batch is the one that makes a picture in the least time, as far as arithmetic tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flux_engine.batching import TEXT_BATCH
from flux_engine.errors import SettingError
from flux_engine.vram.estimates import (
    GIB,
    Machine,
    Sizes,
    Weights,
    Work,
    decode_bytes,
    decode_seconds,
    lora_bytes,
    of_all,
    of_kind,
    row_seconds,
    text_bytes,
    text_seconds,
    total,
    working_bytes,
)
from flux_engine.vram.seating import (
    BATCHES,
    SLOTS,
    WORTH,
    Seating,
    best,
    kept,
    seatings,
    step_seconds,
)

DECODED_TOGETHER = 2**20  # pixels
TEXT_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase's weights: which units of which models stay, and the ring that the others use.

    `working` bytes are for everything that is no weight.
    """

    resident: Mapping[str, frozenset[str]] = field(default_factory=dict)
    slots: int = 0
    working: int = 0

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.resident)


PASSING = Stage(resident={"dit": frozenset()}, slots=2)  # nothing stays


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages in their order, batch shapes, and what is to be expected of them."""

    machine: Machine
    work: Work
    text_batch: int
    micro_batch: int
    decode_batch: int
    text: Stage
    denoise: Stage
    decode: Stage | None  # None: not without tiles
    together: bool  # the autoencoder is there while the transformer is
    step_seconds: float
    seconds: float  # of one picture, its text apart
    text_seconds: float  # of one prompt
    copied: int  # bytes a step
    limits: str
    bytes: Mapping[str, int]  # on the card, by stage

    def lines(self) -> list[str]:
        """The plan in words."""
        w, gib = self.work, {name: f"{n / GIB:.1f}" for name, n in self.bytes.items()}
        stay = sum(len(self.denoise.resident[model]) for model in w.hoisted)
        return [
            f"{w.width}×{w.height}, {w.steps} steps, {w.text_tokens} tokens"
            f"{', both sides of cfg' if w.sides > 1 else ''} on {self.machine.name}, "
            f"{self.machine.memory / GIB:.1f} GiB, {self.machine.link / 1e9:.0f} GB/s to it",
            f"  GiB on the card: text {gib['text']}, denoise {gib['denoise']}, "
            f"decode {gib['decode'] if self.decode else 'only in tiles'}",
            f"  transformer: {stay} units stay, {self.copied / 1e9:.1f} GB copied a step "
            f"through {self.denoise.slots} slots",
            f"  text batch {self.text_batch}, micro-batch {self.micro_batch}, "
            f"decode batch {self.decode_batch}",
            f"  {self.seconds:.3g} s a picture predicted; limited by {self.limits}",
        ]


def plan(
    machine: Machine,
    weights: Weights,
    work: Work,
    sizes: Sizes,
    *,
    text_batch: int | None = None,
    micro_batch: int | None = None,
    decode_batch: int | None = None,
    least: int = 1,
    passing: frozenset[str] = frozenset(),
) -> Plan:
    """The plan for one kind of picture; SettingError with the numbers if there is none.

    Of models that are `passing` no block stays. `least` is the micro-batch that fills the card,
    and is not gone below for the link's sake.
    """
    batches = [micro_batch] if micro_batch else [b for b in BATCHES if b >= least] or [least]
    found = seatings(machine, weights, work, sizes, batches, passing=passing)
    if not found and not micro_batch:
        fewer = [b for b in BATCHES if b < least]
        found = seatings(machine, weights, work, sizes, fewer, passing=passing)
        found = [one for one in found if one.batch == max(o.batch for o in found)]
    if not found:
        raise SettingError(_refused(machine, weights, work, sizes, micro_batch or 1))
    chosen = best(found)
    decode, pictures = _decoding(machine, weights, work, sizes, decode_batch)
    text, prompts = text_stage(
        machine, weights, sizes, work.text_tokens, text_batch, passing="t5" in passing
    )
    both = chosen.nbytes - chosen.working + total(weights, "vae")
    standing = lora_bytes(work, sizes, chosen.batch)  # while a bucket's pictures are decoded, too
    working = max(chosen.working, decode.working + standing if decode else machine.memory)
    together = both + working <= machine.memory
    kept_vae = {"vae": frozenset[str]()} if together else {}
    stage = Stage(
        resident={model: chosen.of(model) for model in work.hoisted} | kept_vae,
        slots=chosen.slots,
        working=working if together else chosen.working,
    )
    return Plan(
        machine=machine,
        work=work,
        text_batch=prompts,
        micro_batch=chosen.batch,
        decode_batch=pictures,
        text=text,
        denoise=stage,
        decode=decode,
        together=together,
        step_seconds=chosen.seconds,
        seconds=work.steps * chosen.seconds / chosen.batch + decode_seconds(machine, work),
        text_seconds=_pass_seconds(
            machine, weights, text, prompts * text_seconds(machine, sizes, work.text_tokens)
        )
        / prompts,
        copied=chosen.copied,
        limits=_limits(chosen, machine, work, sizes, weights),
        bytes={
            "text": stage_bytes(weights, text),
            "denoise": stage_bytes(weights, stage),
            "decode": stage_bytes(weights, decode) if decode else 0,
        },
    )


def _limits(chosen: Seating, machine: Machine, work: Work, sizes: Sizes, weights: Weights) -> str:
    row = sum(row_seconds(machine, work, sizes, weights).values())
    share = chosen.batch * row / chosen.seconds
    if share >= 0.97:
        return "computing"
    return f"the link to the card ({share:.0%} of what it would be with all weights on it)"


def _decoding(
    machine: Machine, weights: Weights, work: Work, sizes: Sizes, batch: int | None
) -> tuple[Stage | None, int]:
    try:
        return decode_stage(machine, weights, work, sizes, batch)
    except SettingError:  # rows may ask for tiles; those that do not are refused by themselves
        return None, 0


def stage_bytes(weights: Weights, stage: Stage) -> int:
    """All that a stage has on the card."""
    stays = streamed = 0
    for model, names in stage.resident.items():
        for name, (kind, nbytes) in weights[model].items():
            if kind == "rest" or name in names:
                stays += nbytes
            else:
                streamed = max(streamed, nbytes)
    return stays + stage.slots * streamed + stage.working


def text_stage(
    machine: Machine,
    weights: Weights,
    sizes: Sizes,
    tokens: int,
    batch: int | None,
    *,
    passing: bool = False,
) -> tuple[Stage, int]:
    """CLIP whole, T5 as far as there is room, and how many prompts at once; SettingError with the
    numbers if there is no room.

    As many fill a card as the rule says; more where T5 passes through and a prompt would wait for
    the link, fewer where memory is short.
    """
    found = {
        n: stage
        for n in ([batch] if batch else TEXT_BATCHES)
        if (stage := _reading(machine, weights, sizes, tokens, n, passing))
    }
    if not found:
        raise SettingError(_unread(machine, weights, sizes, tokens, batch))
    enough = [n for n in found if n >= TEXT_BATCH] or [max(found)]
    block = text_seconds(machine, sizes, tokens)
    seconds = {n: _pass_seconds(machine, weights, found[n], n * block) / n for n in enough}
    fastest = min(seconds.values())
    chosen = min(n for n in enough if seconds[n] * WORTH <= fastest)
    return found[chosen], chosen


def _reading(
    machine: Machine, weights: Weights, sizes: Sizes, tokens: int, batch: int, passing: bool
) -> Stage | None:
    """With so many prompts at once; None if that does not fit."""
    working = text_bytes(tokens, sizes, batch)
    t5 = of_kind(weights, "t5", "block")
    clip_blocks = frozenset(of_kind(weights, "clip", "block"))
    room = machine.memory - working - _text_rest(weights)
    if sum(t5.values()) <= room and not passing:
        return Stage(resident={"clip": clip_blocks, "t5": frozenset(t5)}, working=working)
    slots = 2 * max(t5.values())
    if room < slots:
        return None
    stays = frozenset() if passing else kept(t5, room - slots)
    return Stage(resident={"clip": clip_blocks, "t5": stays}, slots=2, working=working)


def _text_rest(weights: Weights) -> int:
    """Bytes of the text encoders that are there whatever passes through."""
    return total(weights, "clip") + sum(of_kind(weights, "t5", "rest").values())


def _pass_seconds(machine: Machine, weights: Weights, stage: Stage, block: float) -> float:
    """Of T5 over one batch, whose blocks compute for so long each."""
    t5 = of_kind(weights, "t5", "block")
    copies = [0 if name in stage.resident["t5"] else nbytes for name, nbytes in t5.items()]
    return step_seconds(copies, [block] * len(copies), stage.slots, machine.link)


def _unread(
    machine: Machine, weights: Weights, sizes: Sizes, tokens: int, batch: int | None
) -> str:
    least = _text_rest(weights) + 2 * max(of_kind(weights, "t5", "block").values())
    return (
        f"encoding {batch or 1} prompts of {tokens} tokens needs "
        f"{text_bytes(tokens, sizes, batch or 1) / GIB:.1f} GiB, its smallest part of the weights "
        f"{least / GIB:.1f} GiB, and {machine.memory / GIB:.1f} GiB may be used on {machine.name}"
        + ("; a smaller engine.text_batch makes it less" if batch and batch > 1 else "")
    )


def decode_stage(
    machine: Machine, weights: Weights, work: Work, sizes: Sizes, batch: int | None
) -> tuple[Stage, int]:
    """The autoencoder is small: it is there whole. With how many pictures at once."""
    room = machine.memory - total(weights, "vae")
    rule = min(BATCHES[-1], max(1, DECODED_TOGETHER // (work.height * work.width)))
    for size in [batch] if batch else range(rule, 0, -1):
        needed = decode_bytes(work, sizes, size)
        if needed <= room:
            return Stage(resident={"vae": frozenset()}, working=needed), size
    needed = decode_bytes(work, sizes, batch or 1)
    raise SettingError(
        f"the autoencoder needs {needed / GIB:.1f} GiB for {batch or 1} of "
        f"{work.width}×{work.height} pixels at once, and {room / GIB:.1f} GiB may be used on "
        f"{machine.name} beside its weights; sampling.tiled takes tiles"
    )


def _refused(machine: Machine, weights: Weights, work: Work, sizes: Sizes, batch: int) -> str:
    blocks, tables = (of_all(weights, work.hoisted, kind) for kind in ("block", "table"))
    rest = sum(of_all(weights, work.hoisted, "rest").values())
    ring = SLOTS[0] * max((*blocks.values(), *tables.values()))
    working = working_bytes(work, sizes, batch)
    worn = lora_bytes(work, sizes, batch) / GIB
    told = f" ({worn:.1f} GiB of them for LoRAs beside the weights)" if worn else ""
    return (
        f"{work.width}×{work.height} in micro-batches of {batch} needs {working / GIB:.1f} GiB to "
        f"work in{told} and {(rest + ring) / GIB:.1f} GiB for the transformer's smallest part (two "
        f"slots of {ring / SLOTS[0] / GIB:.2f} GiB and {rest / GIB:.2f} GiB that stay): together "
        f"{(rest + ring + working) / GIB:.1f} GiB; {machine.memory / GIB:.1f} GiB may be used on "
        f"{machine.name}"
    )
