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
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import denoisers
from benchmarks.denoisers import IMAGE_STEPS, AbsentError, Ours, Step
from benchmarks.offload_job import caps
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


class Bench:
    """One part's process: the weights, the rows that were measured, and the time that is left."""

    def __init__(self, spec: str, device: torch.device, seconds: float) -> None:
        self.spec, self.device = spec, device
        self.ends = time.monotonic() + seconds
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.dit = transformer(spec, self.dtype, device)
        self.rows: list[dict[str, Any]] = []
        self.reference: dict[int, Tensor] = {}  # the first velocity of row 0, by side

    def card(self) -> Card:
        return CudaCard(self.device) if self.device.type == "cuda" else HostCard()

    def measure(
        self, name: str, ready: Ready, side: int, rows: int, card: Card | None = None
    ) -> None:
        """One configuration: median seconds a step, peak memory, bytes copied, deviation."""
        told = {"name": name, "side": side, "rows": rows}
        if time.monotonic() > self.ends:
            self._keep(told | {"absent": "no time was left"})
            return
        asked = ask(self.spec, side, rows, self.dtype, self.device)
        try:
            self._keep(told | self._measured(ready, asked, card))
        except AbsentError as absent:
            self._keep(told | {"absent": str(absent)})
        except (torch.OutOfMemoryError, RuntimeError) as fault:
            self._keep(told | {"absent": f"{type(fault).__name__}: {str(fault)[:160]}"})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _measured(self, ready: Ready, asked: Ask, card: Card | None) -> dict[str, Any]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with ready(asked, WARM + TIMED) as step:
            first = step()[0].float().cpu()
            for _ in range(WARM - 1):
                step()
            before = card.copied if card else 0
            seconds = self._clocked(step)
            copied = (card.copied - before) / TIMED if card else None
        kept = self.reference.setdefault(asked.side, first)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None
        return {
            "seconds": seconds,
            "seconds_a_row": seconds / asked.rows,
            "peak_gb": peak,
            "copied_gb": None if copied is None else copied / 1e9,
            "host_waits": card.host_waits if card else None,
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

    def _keep(self, told: dict[str, Any]) -> None:
        self.rows.append(told)
        print(row(told), flush=True)


def ways(ours: Ours, **how: Any) -> Ready:
    return lambda asked, steps: ours.ready(asked, steps, **how)


def probe(bench: Bench) -> None:
    """What the card does in a second, and attention's back ends."""
    if bench.device.type != "cuda":
        bench._keep({"name": "probe", "side": 0, "rows": 0, "absent": "needs a card"})
        return
    card = CudaCard(bench.device)
    machine = measured(card, bench.dtype, 0)
    spec = SPECS[bench.spec]
    tokens = (SIDES[bench.spec][0] // 16) ** 2 + 512
    shape = (1, spec.heads, tokens, spec.width // spec.heads)
    fastest = fastest_attention(shape, bench.dtype, bench.device)
    bench._keep({
        "name": "probe", "side": 0, "rows": 0, "link_gb": machine.link / 1e9,
        "matmul_tflops": machine.matmul / 1e12, "attention_tflops": machine.attention / 1e12,
        "fastest_attention": fastest,
    })  # fmt: skip


def resident(bench: Bench, side: int, batches: tuple[int, ...]) -> None:
    """All weights on the card: ours eager and compiled, the peers eager and compiled."""
    ours = Ours(bench.dit, card := bench.card())
    for rows in batches:
        bench.measure("ours, resident", ways(ours, kept=None), side, rows, card)
    spec = SPECS[bench.spec]
    shape = (1, spec.heads, (side // 16) ** 2 + 512, spec.width // spec.heads)
    back_end = fastest_attention(shape, bench.dtype, bench.device)
    for rows in batches:
        how = ways(ours, kept=None, back_end=back_end)
        bench.measure(f"ours, resident, {back_end} attention", how, side, rows, card)
    ours.room.vacate()
    peers(
        bench, side, batches, ("eager", "compiled") if bench.device.type == "cuda" else ("eager",)
    )
    if bench.device.type == "cuda":
        compile_blocks(bench.dit)
        for rows in batches:
            how = ways(ours, kept=None, back_end=back_end)
            bench.measure(f"ours, resident, compiled, {back_end} attention", how, side, rows, card)


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
    """Blocks pass through: by batch, slots and what stays; then the peers' ways at batch 1."""
    ours = Ours(bench.dit, card := bench.card())
    for rows in (1, 4, 8):
        bench.measure("ours, resident", ways(ours, kept=None), side, rows, card)
    doubles = SPECS[bench.spec].double_blocks
    for kept, slots in ((0, 2), (0, 4), (doubles // 3, 2), (doubles, 2)):
        for rows in (1, 2, 4, 8):
            name = f"ours, {kept} blocks stay, {slots} slots"
            bench.measure(name, ways(ours, kept=kept, slots=slots), side, rows, card)
    ours.room.vacate()
    for manner in ("group block", "group leaf", "sequential"):
        bench.measure(f"diffusers, {manner}", diffusers(bench, manner), side, 1)
    bench.measure("diffusers, eager", diffusers(bench, "eager"), side, 1)
    try:
        there_and_back = denoisers.transfer(bench.dit, bench.spec, bench.device)
        began = time.monotonic()
        there_and_back()
        share = (time.monotonic() - began) / IMAGE_STEPS
        bench._keep({"name": "diffusers, model offload: transfers a step", "side": side, "rows": 1,
                     "seconds": share, "seconds_a_row": share})  # fmt: skip
    except AbsentError as absent:
        bench._keep({"name": "diffusers, model offload", "side": side, "rows": 1,
                     "absent": str(absent)})  # fmt: skip
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
            bench.measure("ours, resident, compiled", ways(exact, kept=None), side, rows, card)


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
        case "fp8":
            fp8(bench, large)
        case "caps":
            for told in caps(bench.spec, bench.device, bench.dit):
                bench._keep(told)


PARTS = ("probe", "resident", "small", "offload", "fp8", "caps")


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


def write(place: Path, part: str, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """Beside the other parts of that day."""
    known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    known |= about(device)
    known.setdefault("parts", {})[part] = rows
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(known, indent=1) + "\n")


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
        bench = Bench(given.spec, device, given.seconds)
        try:
            run_part(given.part, bench)
        finally:
            write(place, given.part, device, bench.rows)
    if place.exists():
        parts = json.loads(place.read_text())["parts"]
        print("\n".join(ratios([one for rows in parts.values() for one in rows])))


if __name__ == "__main__":
    main()
