"""The offloaded engine against itself with all weights on the card, and against two peers.

    python -m benchmarks.offload [--part NAME] [--spec full|tiny] [--device cuda|cpu] [--seconds N]

Without `--part` all parts run one after the other, each in a process of its own and in no more
than `--seconds` (570): what there was no time for is named. Needs torch, einops, safetensors and
transformers; peers that are not installed are named. Weights are random and the same for all.
Prints a table and ratios, and writes `results/offload-<spec>-<device>-<date>.json`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import denoisers
from benchmarks.denoisers import IMAGE_STEPS, AbsentError, Ours, Step
from benchmarks.offload_job import CAPS, ROWS, SIDE, WholeJob
from benchmarks.offload_table import ratios, row
from benchmarks.random_flux import SPECS, Ask, ask, transformer
from flux_engine.models.fp8 import narrow_layers
from flux_engine.sampling.kernels import compile_blocks, fastest_attention
from flux_engine.vram.card import Card, CudaCard, HostCard
from flux_engine.vram.rates import measured
from flux_engine.vram.units import MODULATIONS

RESULTS = Path(__file__).parent / "results"
SIDES = {"full": (1024, 512), "tiny": (256, 128)}
WARM, TIMED = 3, 8
PACKAGES = ("torch", "transformers", "safetensors", "diffusers", "accelerate")

Ready = Callable[[Ask, int], AbstractContextManager[Step]]
Row = dict[str, Any]


class Bench:
    """One part's process: the weights, the rows that were measured, and the time that is left.

    `save` is given all rows after each one.
    """

    def __init__(
        self,
        spec: str,
        device: torch.device,
        seconds: float,
        part: str = "",
        save: Callable[[list[Row]], None] = lambda _: None,
    ) -> None:
        self.spec, self.device, self.part, self.save = spec, device, part, save
        self.ends = time.monotonic() + seconds
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.dit = transformer(spec, self.dtype, device)
        self.rows: list[Row] = []
        self.reference: dict[int, Tensor] = {}  # the first velocity of row 0, by side

    def card(self) -> Card:
        return CudaCard(self.device) if self.device.type == "cuda" else HostCard()

    def measure(
        self, name: str, ready: Ready, side: int, rows: int, card: Card | None = None
    ) -> None:
        """One configuration: median seconds a step, peak memory, bytes copied, deviation."""

        def work() -> Row:
            asked = ask(self.spec, side, rows, self.dtype, self.device)
            return self._measured(ready, asked, card)

        self.attempt(name, side, rows, work)

    def attempt(self, name: str, side: int, rows: int, work: Callable[[], Row]) -> None:
        """What `work` tells, kept as a row; why it told nothing, if it did not."""
        told: Row = {"name": name, "side": side, "rows": rows, "part": self.part}
        if time.monotonic() > self.ends:
            told["absent"] = "no time was left"
        else:
            try:
                told |= work()
            except AbsentError as absent:
                told["absent"] = str(absent)
            except Exception as fault:  # noqa: BLE001  peers fall in ways of their own: one row
                told["absent"] = f"{type(fault).__name__}: {str(fault)[:160]}"
        self.rows.append(told)
        print(row(told), flush=True)
        self.save(self.rows)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _measured(self, ready: Ready, asked: Ask, card: Card | None) -> Row:
        with ready(asked, WARM + TIMED) as step:
            first = step()[0].float().cpu()
            if self.device.type == "cuda":  # what was there before has gone by now
                torch.cuda.reset_peak_memory_stats(self.device)
            for _ in range(WARM - 1):
                step()
            before, waits = (card.copied, card.host_waits) if card else (0, 0)
            seconds = self._clocked(step)
            copied = (card.copied - before) / TIMED if card else None
        kept = self.reference.setdefault(asked.side, first)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None
        return {
            "seconds": seconds,
            "seconds_a_row": seconds / asked.rows,
            "peak_gb": peak,
            "copied_gb": None if copied is None else copied / 1e9,
            "host_waits": card.host_waits - waits if card else None,
            "deviation": float((first - kept).norm() / kept.norm()),
        }

    def _clocked(self, step: Step) -> float:
        """Median seconds of a step; the host waits only behind the last one."""
        if self.device.type != "cuda":
            took = []
            for _ in range(TIMED):
                began = time.process_time()
                step()
                took.append(time.process_time() - began)
            return statistics.median(took)
        marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(TIMED + 1)]  # type: ignore[no-untyped-call]
        marks[0].record()
        for mark in marks[1:]:
            step()
            mark.record()
        marks[-1].synchronize()
        return float(statistics.median(a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)))


def ways(ours: Ours, **how: Any) -> Ready:
    return lambda asked, steps: ours.ready(asked, steps, **how)


def probe(bench: Bench) -> None:
    """What the card does in a second, and attention's back ends."""

    def work() -> Row:
        if bench.device.type != "cuda":
            raise AbsentError("needs a card")
        machine = measured(CudaCard(bench.device), bench.dtype, 0)
        return {
            "link_gb": machine.link / 1e9,
            "matmul_tflops": machine.matmul / 1e12,
            "attention_tflops": machine.attention / 1e12,
            "fastest_attention": fastest(bench, SIDES[bench.spec][0]),
        }

    bench.attempt("probe", 0, 0, work)


def fastest(bench: Bench, side: int) -> str:
    """Attention's back end for one row."""
    spec = SPECS[bench.spec]
    shape = (1, spec.heads, (side // 16) ** 2 + 512, spec.width // spec.heads)
    return fastest_attention(shape, bench.dtype, bench.device)


def resident(bench: Bench, side: int, batches: tuple[int, ...]) -> None:
    """All weights on the card: ours eager and compiled, then the peers eager and compiled."""
    ours = Ours(bench.dit, card := bench.card())
    for rows in batches:
        bench.measure("ours, resident", ways(ours, kept=None), side, rows, card)
    back_end = fastest(bench, side)
    measured_attention = f"{back_end} attention, the fastest here"
    for rows in batches:
        how = ways(ours, kept=None, back_end=back_end)
        bench.measure(f"ours, resident, {measured_attention}", how, side, rows, card)
    manners: tuple[str, ...] = ("eager",)
    if bench.device.type == "cuda":
        manners = ("eager", "compiled")
        compile_blocks(bench.dit)
        for rows in batches:
            bench.measure("ours, resident, compiled", ways(ours, kept=None), side, rows, card)
        for rows in batches:
            how = ways(ours, kept=None, back_end=back_end)
            bench.measure(f"ours, resident, compiled, {measured_attention}", how, side, rows, card)
    ours.room.vacate()
    peers(bench, side, batches, manners)


def peers(bench: Bench, side: int, batches: tuple[int, ...], manners: tuple[str, ...]) -> None:
    for manner in manners:
        for rows in batches:
            bench.measure(f"diffusers, {manner}", diffusers(bench, manner), side, rows)
    bench.measure("DiffSynth, eager", diffsynth(bench, None), side, 1)


def diffusers(bench: Bench, manner: str) -> Ready:
    return lambda asked, _: denoisers.diffusers_step(
        bench.dit, bench.spec, asked, manner, bench.device
    )


def diffsynth(bench: Bench, limit: float | None) -> Ready:
    return lambda asked, _: denoisers.diffsynth_step(
        bench.dit, bench.spec, asked, limit, bench.device
    )


def offload(bench: Bench, side: int) -> None:
    """Blocks pass through: by batch, slots and what stays; eager, and the most of it compiled."""
    ours = Ours(bench.dit, card := bench.card())
    for rows in (1, 4, 8):
        bench.measure("ours, resident", ways(ours, kept=None), side, rows, card)
    doubles = SPECS[bench.spec].double_blocks
    for kept, slots in ((0, 2), (0, 4), (doubles // 3, 2), (doubles, 2)):
        for rows in (1, 2, 4, 8):
            name = f"ours, {kept} blocks stay, {slots} slots"
            bench.measure(name, ways(ours, kept=kept, slots=slots), side, rows, card)
    if bench.device.type == "cuda":
        compile_blocks(bench.dit)
        for rows in (1, 4, 8):
            bench.measure("ours, resident, compiled", ways(ours, kept=None), side, rows, card)
            name = "ours, 0 blocks stay, 2 slots, compiled"
            bench.measure(name, ways(ours, kept=0), side, rows, card)


def offloading_peers(bench: Bench, side: int) -> None:
    """The peers' ways with little memory, at batch 1; ours is what theirs deviate from."""
    ours = Ours(bench.dit, card := bench.card())
    bench.measure("ours, resident", ways(ours, kept=None), side, 1, card)
    ours.room.vacate()
    for manner in ("eager", "group block", "group leaf", "sequential"):
        bench.measure(f"diffusers, {manner}", diffusers(bench, manner), side, 1)

    def model_offload() -> Row:
        """A step's share of a picture's transfers, and an eager step."""
        share = denoisers.transfer_seconds(bench.dit, bench.spec, bench.device) / IMAGE_STEPS
        eager = next(
            (one for one in bench.rows if one["name"] == "diffusers, eager" and "seconds" in one),
            None,
        )
        if eager is None:
            raise AbsentError("an eager step was not measured")
        seconds = share + eager["seconds"]
        return {"seconds": seconds, "seconds_a_row": seconds, "transfers_s": share}

    bench.attempt("diffusers, model offload", side, 1, model_offload)
    for limit in (0.0, 12.0):
        bench.measure(f"DiffSynth, vram_limit {limit:g}", diffsynth(bench, limit), side, 1)


def fp8(bench: Bench, side: int) -> None:
    """Weights in eight bits, and products of them, against our own exact ones."""
    batches = (1, 4)
    exact = Ours(bench.dit, card := bench.card())
    for rows in batches:
        bench.measure("ours, resident", ways(exact, kept=None), side, rows, card)
    exact.room.vacate()
    for products in (False, True):
        dit = transformer(bench.spec, bench.dtype, bench.device)
        for block in (*dit.double_blocks, *dit.single_blocks):
            narrow_layers(block, but=MODULATIONS, products=products)
        ours = Ours(dit, card := bench.card())
        what = "fp8 products" if products else "fp8 weights"
        for rows in (*batches, 8):
            bench.measure(f"ours, {what}, resident", ways(ours, kept=None), side, rows, card)
            bench.measure(f"ours, {what}, streamed", ways(ours, kept=0), side, rows, card)
        if bench.device.type == "cuda":
            compile_blocks(dit)
            for rows in batches:
                name = f"ours, {what}, resident, compiled"
                bench.measure(name, ways(ours, kept=None), side, rows, card)
        ours.room.vacate()
    if bench.device.type == "cuda":
        compile_blocks(bench.dit)
        for rows in batches:
            how = ways(exact, kept=None)
            bench.measure("ours, resident, compiled", how, side, rows, exact.card)


def caps(bench: Bench) -> None:
    """Whole jobs, from prompts to pixels, by the memory that they may use."""
    job = WholeJob(bench.spec, bench.device, bench.dit, bench.card())
    for gib in CAPS[bench.spec]:
        name = f"whole job within {'all' if gib is None else f'{gib:g}'} GiB"
        bench.attempt(name, SIDE[bench.spec], ROWS, partial(job.within, gib))


def run_part(part: str, bench: Bench) -> None:
    large, small = SIDES[bench.spec]
    match part:
        case "probe":
            probe(bench)
        case "resident":
            resident(bench, large, (1, 4, 8))
        case "small":
            resident(bench, small, (1, 4, 16))
        case "offload":
            offload(bench, large)
        case "peers":
            offloading_peers(bench, large)
        case "fp8":
            fp8(bench, large)
        case "caps":
            caps(bench)


PARTS = ("probe", "resident", "small", "offload", "peers", "fp8", "caps")


def about(device: torch.device) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processor": platform.processor() or platform.machine(),
        "versions": dict(versions()) | {"python": platform.python_version()},
    }


def versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "absent"


def write(place: Path, part: str, device: torch.device, rows: list[Row]) -> None:
    """Beside the other parts of that day."""
    known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    known |= about(device)
    known.setdefault("parts", {})[part] = rows
    place.parent.mkdir(exist_ok=True)
    written = place.with_suffix(".part")
    written.write_text(json.dumps(known, indent=1) + "\n")
    written.replace(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--spec", choices=sorted(SPECS), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=570.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    device = torch.device(given.device)
    day = datetime.now(UTC).date()
    place = given.results / f"offload-{given.spec}-{device.type}-{day}.json"
    if given.part is None:
        for part in PARTS:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.offload", "--part", part, *sys.argv[1:]],
                check=False,
            )
    else:
        print(f"\n{given.part}: {given.spec}, {device}", flush=True)
        save = partial(write, place, given.part, device)
        run_part(given.part, Bench(given.spec, device, given.seconds, given.part, save))
    if place.exists():
        parts = json.loads(place.read_text())["parts"]
        print("\n".join(ratios([one for rows in parts.values() for one in rows])))


if __name__ == "__main__":
    main()
