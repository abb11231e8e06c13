"""Steps of LoRA training: seconds, memory and share of the card's peak, ours beside a peer's.

    python -m benchmarks.training_speed [--spec full|tiny] [--device cuda|cpu] [--seconds N]

Random weights, rank 16 on the 304 layers, AdamW; a step is forward, loss, backward and descent.
Useful FLOP are forward and the gradient of the inputs; executed are those and what checkpointing
computes again. `ordered` is what jobs do unless they say otherwise: kernels that repeat their bits.
The peer, DiffSynth-Studio, takes one picture at a time, with its own recipe's checkpointing.
Prints a table and ratios, and writes `results/training_speed-<spec>-<device>-<date>.json` anew
after each row, the most important first.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import deterministic

from benchmarks import machine
from benchmarks.denoisers import AbsentError, diffsynth_model, open_diffsynth
from benchmarks.random_flux import SPECS, TEXT_TOKENS, fill
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.training.lora import LoraShape, TrainedLora
from flux_engine.training.net import Checkpointing, Net
from flux_engine.training.objective import Batch, Example
from flux_engine.training.optimizer import make_optimizer
from flux_engine.training.rates import Rates
from flux_engine.training.reduction import Alone
from flux_engine.training.repeatable import WORKSPACE, repeat_on_card
from flux_engine.training.sft import Sft
from flux_engine.training.stepper import MicroBatch, Stepper
from flux_engine.training.terms import PLAIN

RESULTS = Path(__file__).parent / "results"
SIDES = {"full": (512, 1024), "tiny": (256,)}
BATCHES = {"full": (1, 4, 8), "tiny": (1, 2)}
RANK, WARM, TIMED = 16, 2, 5
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, as published
MODES: tuple[Checkpointing, ...] = ("none", "blocks", "offload")
PEER = "DiffSynth"


@dataclass(frozen=True)
class Case:
    """One configuration: ours by its checkpointing, or the peer (None)."""

    mode: Checkpointing | None
    side: int
    batch: int = 1
    ordered: bool = False

    @property
    def name(self) -> str:
        if self.mode is None:
            return PEER
        return f"ours, checkpointing {self.mode}{', ordered' * self.ordered}"


FIRST = (  # of the full size: what the goals are about, while there is time
    Case("blocks", 512, 4),
    Case("blocks", 512, 4, ordered=True),
    Case(None, 512),
    Case("blocks", 1024, 4),
    Case(None, 1024),
    Case("blocks", 512, 8),
    Case("none", 512),
    Case("none", 512, 2),
    Case("none", 512, 4),
    Case("blocks", 1024, 4, ordered=True),
    Case("none", 1024),
    Case("blocks", 512, 8, ordered=True),
    Case("offload", 512, 4),
)


def cases(spec: str) -> list[Case]:
    """All, the most important first."""
    every = [
        Case(mode, side, batch) for side in SIDES[spec] for mode in MODES for batch in BATCHES[spec]
    ]
    peers = [Case(None, side) for side in SIDES[spec]]
    return list(dict.fromkeys([*(FIRST if spec == "full" else ()), *every, *peers]))


@dataclass(frozen=True)
class Row:
    """One configuration; `absent` says why it was not run. FLOP are of a step, shares of the
    card's peak."""

    name: str
    side: int
    batch: int
    seconds: float = 0.0
    samples_per_second: float = 0.0
    useful_tflop: float = 0.0
    executed_tflop: float = 0.0
    useful_share: float | None = None
    executed_share: float | None = None
    peak_gb: float | None = None
    absent: str = ""


def forward_flop(spec: FluxSpec, tokens: int, text: int) -> float:
    """Of one sample: products of weights with tokens, and attention among all of them."""
    width, inner = spec.width, spec.inner
    double = 2 * (4 * width * width + 2 * width * inner)  # of one token, in its own stream
    single = 2 * (width * (3 * width + inner) + (width + inner) * width)
    both = tokens + text
    products = both * (spec.double_blocks * double + spec.single_blocks * single)
    attention = (spec.double_blocks + spec.single_blocks) * 4.0 * both * both * width
    return products + attention


def examples(spec: str, side: int, batch: int) -> Batch:
    flux, cells = SPECS[spec], side // 8
    random = torch.Generator().manual_seed(batch)
    made = []
    for i in range(batch):
        x0, noise = torch.randn(2, flux.channels_in // 4, cells, cells, generator=random)
        tensors = {
            "x": 0.5 * (x0 + noise),
            "target": noise - x0,
            "sigma": torch.tensor(0.5),
            "told": torch.tensor(0.5),
            "weight": torch.tensor(1.0),
            "guidance": torch.tensor(1.0),
            "mask": torch.ones(1, cells, cells),
            "t5": torch.randn(TEXT_TOKENS[spec], flux.text_width, generator=random),
            "pooled": torch.randn(flux.pooled_width, generator=random),
        }
        made.append(Example(f"random {i}", tensors))
    return Batch.of(made)


class Bench:
    """One run: the weights, the rows that were measured, and the time that is left."""

    def __init__(
        self, spec: str, device: torch.device, seconds: float, file: Path | None = None
    ) -> None:
        """`file` has the rows after each of them."""
        self.spec, self.device, self.file = spec, device, file
        self.ends = time.monotonic() + seconds
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.rows: list[Row] = []

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Made once, where they are used: no row changes them."""
        with torch.device("meta"):
            model = FluxTransformer(SPECS[self.spec])
        model = (
            model.to(self.dtype).to_empty(device=self.device).requires_grad_(requires_grad=False)
        )
        fill(model.named_parameters(), self.dtype, self.device)
        return model.state_dict()

    def transformer(self) -> FluxTransformer:
        """A fresh one around the weights: hooks and the like go with it."""
        with torch.device("meta"):
            model = FluxTransformer(SPECS[self.spec])
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(requires_grad=False)

    def run(self) -> None:
        for case in cases(self.spec):
            if case.ordered and self.device.type != "cuda":
                continue  # a processor's kernels repeat theirs as they are
            self.measure(case)

    def measure(self, case: Case) -> None:
        row = Row(case.name, case.side, case.batch)
        if time.monotonic() > self.ends:
            self._keep(replace(row, absent="no time was left"))
            return
        try:
            with kernels(ordered=case.ordered):
                self._keep(self._timed(case, row))
        except AbsentError as absent:
            self._keep(replace(row, absent=str(absent)))
        except ImportError as error:
            if case.mode is not None:
                raise
            self._keep(replace(row, absent=f"cannot be imported: {error}"))
        except torch.OutOfMemoryError:
            self._keep(replace(row, absent="out of memory"))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _timed(self, case: Case, row: Row) -> Row:
        step = self.diffsynth(case) if case.mode is None else self.ours(case)
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        took = []
        for i in range(WARM + TIMED):
            began = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            if i >= WARM:
                took.append(time.perf_counter() - began)
        seconds = statistics.median(took)
        tokens = (case.side // 16) ** 2
        forward = case.batch * forward_flop(SPECS[self.spec], tokens, TEXT_TOKENS[self.spec])
        useful, executed = 2 * forward, (2 if case.mode == "none" else 3) * forward
        peak = peak_of(self.device)
        return replace(
            row,
            seconds=seconds,
            samples_per_second=case.batch / seconds,
            useful_tflop=useful / 1e12,
            executed_tflop=executed / 1e12,
            useful_share=useful / seconds / peak if peak else None,
            executed_share=executed / seconds / peak if peak else None,
            peak_gb=torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        )

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        print(line(row), flush=True)
        if self.file is None:
            return
        told = {
            "machine": machine.described(),
            "card": torch.cuda.get_device_name() if self.device.type == "cuda" else None,
            "torch": torch.__version__,
            "code": machine.engine_digest(),
            "rows": [asdict(row) for row in self.rows],
            "ratios": list(ratios(self.rows)),
        }
        self.file.parent.mkdir(exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(told, indent=2) + "\n")
        part.replace(self.file)

    def ours(self, case: Case) -> Callable[[], Any]:
        assert case.mode is not None
        dit = self.transformer()
        trained = TrainedLora(dit, LoraShape(targets=("all",), rank=RANK), seed=0)
        trained.to(self.device)
        net = Net(dit, trained, compute=self.dtype, checkpointing=case.mode)
        named = net.trainable
        optimizer = make_optimizer("adamw", named, rate=1e-4, weight_decay=0.01)
        stepper = Stepper(net, named, optimizer, Rates(rate=1e-4, steps=100), Alone())
        host = examples(self.spec, case.side, case.batch)
        on_card = {name: tensor.to(self.device) for name, tensor in host.tensors.items()}
        work = MicroBatch(0, Sft(terms=PLAIN), Batch(host.names, on_card))
        return lambda: stepper.step(0, [work])

    def diffsynth(self, case: Case) -> Callable[[], Any]:
        """Its transformer and forward function, LoRA by peft, parameters of the LoRA in the base's
        type, blocks computed again: as its recipe for FLUX.1 has it."""
        operators = open_diffsynth()
        from peft import LoraConfig, inject_adapter_in_model

        model, forward = diffsynth_model(self.transformer(), self.spec)
        names = (
            "a_to_qkv b_to_qkv ff_a.0 ff_a.2 ff_b.0 ff_b.2 a_to_out b_to_out proj_out norm.linear"
        )
        names += " norm1_a.linear norm1_b.linear to_qkv_mlp"
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names.split())
        model = inject_adapter_in_model(config, model).to(self.device)
        trainable = [p for p in model.parameters() if p.requires_grad]
        for parameter in trainable:
            parameter.data = parameter.data.to(self.dtype)
        optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.01)
        host = examples(self.spec, case.side, 1)
        told = {name: tensor.to(self.device) for name, tensor in host.tensors.items()}
        latents = told["x"].to(self.dtype)

        def step() -> None:
            _ = operators  # they live as long as they are used
            velocity: Tensor = forward(
                dit=model,
                latents=latents,
                timestep=1000 * told["sigma"].to(self.dtype),
                prompt_emb=told["t5"].to(self.dtype),
                pooled_prompt_emb=told["pooled"].to(self.dtype),
                guidance=told["guidance"].to(self.dtype),
                text_ids=torch.zeros(1, told["t5"].shape[1], 3, device=self.device).to(self.dtype),
                image_ids=model.prepare_image_ids(latents),
                use_gradient_checkpointing=True,
            )
            loss = nn.functional.mse_loss(velocity.float(), told["target"].float())
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

        return step


@contextmanager
def kernels(*, ordered: bool) -> Iterator[None]:
    """Inside, if asked, those that a job has which wants its bits again."""
    if not ordered:
        yield
        return
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    repeat_on_card()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def peak_of(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for card, peak in PEAKS.items() if card in name), None)


def line(row: Row) -> str:
    head = f"{row.name:36} {row.side:>5}² batch {row.batch}"
    if row.absent:
        return f"{head}  not run: {row.absent}"
    more = [f"{row.seconds:8.3f} s a step", f"{row.samples_per_second:7.2f} samples/s"]
    if row.useful_share is not None and row.executed_share is not None:
        more.append(f"{row.useful_share:6.1%} of peak useful, {row.executed_share:6.1%} executed")
    if row.peak_gb is not None:
        more.append(f"{row.peak_gb:6.1f} GB")
    return "  ".join([head, *more])


def ratios(rows: list[Row]) -> Iterator[str]:
    """Our best samples a second over the peer's, by size; and the best of jobs' own kernels."""
    for side in sorted({row.side for row in rows}):
        there = [row for row in rows if row.side == side and not row.absent]
        peers = [row for row in there if row.name == PEER]
        ours = [row for row in there if row.name != PEER]
        ordered = [row for row in ours if row.name.endswith("ordered")]
        for some in ([row for row in ours if row not in ordered], ordered):
            if not some or not peers:
                continue
            best = max(some, key=lambda row: row.samples_per_second)
            ratio = best.samples_per_second / peers[0].samples_per_second
            yield (
                f"{side}²: {best.name}, batch {best.batch} over {peers[0].name}: {ratio:.2f} "
                "samples/s (goal 1.5, on a card)"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", choices=list(SPECS), default="tiny")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=480, help="no row begins after them")
    given = parser.parse_args()
    name = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault(*WORKSPACE)  # of all rows, for it counts from the first product on
    file = RESULTS / f"training_speed-{given.spec}-{name}-{datetime.now(UTC):%Y-%m-%d}.json"
    bench = Bench(given.spec, torch.device(name), given.seconds, file)
    bench.run()
    print("\n".join(ratios(bench.rows)))


if __name__ == "__main__":
    main()
