"""Steps of LoRA training: seconds, memory and share of the card's peak, ours beside a peer's.

    python -m benchmarks.training_speed [--spec full|tiny] [--device cuda|cpu] [--seconds N]

Random weights, rank 16 on the 304 layers, AdamW; a step is forward, loss, backward and descent.
Useful FLOP are forward and the gradient of the inputs: what is computed again is not counted.
Prints a table and ratios, and writes `results/training_speed-<spec>-<device>-<date>.json`. The
peer, DiffSynth-Studio, takes one picture at a time, with its own recipe's checkpointing.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.denoisers import AbsentError, diffsynth_model
from benchmarks.random_flux import SPECS, TEXT_TOKENS, transformer
from flux_engine.models.dit import FluxSpec
from flux_engine.training.lora import LoraShape, TrainedLora
from flux_engine.training.net import Checkpointing, Net
from flux_engine.training.objective import Batch, Example
from flux_engine.training.optimizer import make_optimizer
from flux_engine.training.rates import Rates
from flux_engine.training.reduction import Alone
from flux_engine.training.sft import Sft
from flux_engine.training.stepper import MicroBatch, Stepper
from flux_engine.training.terms import PLAIN

RESULTS = Path(__file__).parent / "results"
SIDES = {"full": (512, 1024), "tiny": (256,)}
BATCHES = {"full": (1, 4, 8), "tiny": (1, 2)}
RANK, WARM, TIMED = 16, 2, 5
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, as published
MODES: tuple[Checkpointing, ...] = ("none", "blocks", "offload")


@dataclass(frozen=True)
class Row:
    """One configuration; `absent` says why it was not run."""

    name: str
    side: int
    batch: int
    seconds: float = 0.0
    samples_per_second: float = 0.0
    useful_tflop: float = 0.0  # of a step
    share_of_peak: float | None = None
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

    def __init__(self, spec: str, device: torch.device, seconds: float) -> None:
        self.spec, self.device = spec, device
        self.ends = time.monotonic() + seconds
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.rows: list[Row] = []

    def run(self) -> None:
        for side in SIDES[self.spec]:
            for mode in MODES:
                for batch in BATCHES[self.spec]:
                    name = f"ours, checkpointing {mode}"
                    self._measured(
                        name, side, batch, lambda m=mode, s=side, b=batch: self.ours(m, s, b)
                    )
            self._measured("DiffSynth", side, 1, lambda s=side: self.diffsynth(s))

    def _measured(
        self, name: str, side: int, batch: int, ready: Callable[[], Callable[[], Any]]
    ) -> None:
        if time.monotonic() > self.ends:
            self._keep(Row(name, side, batch, absent="no time was left"))
            return
        try:
            self._keep(self._timed(name, side, batch, ready()))
        except AbsentError as absent:
            self._keep(Row(name, side, batch, absent=str(absent)))
        except torch.OutOfMemoryError:
            self._keep(Row(name, side, batch, absent="out of memory"))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _timed(self, name: str, side: int, batch: int, step: Callable[[], Any]) -> Row:
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
        tokens = (side // 16) ** 2
        useful = 2 * batch * forward_flop(SPECS[self.spec], tokens, TEXT_TOKENS[self.spec])
        peak = peak_of(self.device)
        return Row(
            name,
            side,
            batch,
            seconds=seconds,
            samples_per_second=batch / seconds,
            useful_tflop=useful / 1e12,
            share_of_peak=useful / seconds / peak if peak else None,
            peak_gb=torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        )

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        print(line(row), flush=True)

    def ours(self, mode: Checkpointing, side: int, batch: int) -> Callable[[], Any]:
        dit = transformer(self.spec, self.dtype, self.device).to(self.device)
        trained = TrainedLora(dit, LoraShape(targets=("all",), rank=RANK), seed=0)
        trained.to(self.device)
        net = Net(dit, trained, compute=self.dtype, checkpointing=mode)
        named = net.trainable
        optimizer = make_optimizer("adamw", named, rate=1e-4, weight_decay=0.01)
        stepper = Stepper(net, named, optimizer, Rates(rate=1e-4, steps=100), Alone())
        host = examples(self.spec, side, batch)
        on_card = {name: tensor.to(self.device) for name, tensor in host.tensors.items()}
        work = MicroBatch(0, Sft(terms=PLAIN), Batch(host.names, on_card))
        return lambda: stepper.step(0, [work])

    def diffsynth(self, side: int) -> Callable[[], Any]:
        """Its transformer and forward function, LoRA by peft, parameters of the LoRA in the base's
        type, blocks computed again: as its recipe for FLUX.1 has it."""
        import importlib.util
        import sys

        from tests.parity.diffsynth_oracle import LIBRARY, declare_torchvision_operators

        if importlib.util.find_spec("diffsynth") is None and not LIBRARY.is_dir():
            raise AbsentError("diffsynth is not installed")
        if LIBRARY.is_dir() and str(LIBRARY) not in sys.path:
            sys.path.append(str(LIBRARY))
        operators = declare_torchvision_operators()
        from peft import LoraConfig, inject_adapter_in_model

        model, forward = diffsynth_model(transformer(self.spec, self.dtype, self.device), self.spec)
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
        host = examples(self.spec, side, 1)
        told = {name: tensor.to(self.device) for name, tensor in host.tensors.items()}
        latents = told["x"].to(self.dtype)

        def step() -> None:
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
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step.operators = operators  # type: ignore[attr-defined]  they live as long as they are used
        return step


def peak_of(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for card, peak in PEAKS.items() if card in name), None)


def line(row: Row) -> str:
    head = f"{row.name:32} {row.side:>5}² batch {row.batch}"
    if row.absent:
        return f"{head}  not run: {row.absent}"
    more = [f"{row.seconds:8.3f} s a step", f"{row.samples_per_second:7.2f} samples/s"]
    if row.share_of_peak is not None:
        more.append(f"{row.share_of_peak:6.1%} of peak")
    if row.peak_gb is not None:
        more.append(f"{row.peak_gb:6.1f} GB")
    return "  ".join([head, *more])


def ratios(rows: list[Row]) -> Iterator[str]:
    """Our best samples a second over the peer's, by size."""
    for side in sorted({row.side for row in rows}):
        there = [row for row in rows if row.side == side and not row.absent]
        ours = [row for row in there if row.name.startswith("ours")]
        peers = [row for row in there if not row.name.startswith("ours")]
        if ours and peers:
            best = max(ours, key=lambda row: row.samples_per_second)
            ratio = best.samples_per_second / peers[0].samples_per_second
            yield (
                f"{side}²: {best.name}, batch {best.batch} over {peers[0].name}: {ratio:.2f} "
                "samples/s (goal 1.5, on a card)"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", choices=list(SPECS), default="tiny")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=560)
    given = parser.parse_args()
    name = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(given.spec, torch.device(name), given.seconds)
    bench.run()
    print("\n".join(ratios(bench.rows)))
    told = {
        "machine": machine.described(),
        "card": torch.cuda.get_device_name() if name == "cuda" else None,
        "torch": torch.__version__,
        "code": machine.engine_digest(),
        "rows": [asdict(row) for row in bench.rows],
        "ratios": list(ratios(bench.rows)),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"training_speed-{given.spec}-{name}-{datetime.now(UTC):%Y-%m-%d}.json"
    file.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
