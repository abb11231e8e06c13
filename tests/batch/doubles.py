"""A manifest writer, and an engine that paints by seed and fails on command."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from batch.actor import ShardWorker
from batch.stages.generate import GenerateStage
from flux_engine.errors import NumbersBroke
from flux_engine.request import ONLOOKER, Generation, GenerationRequest, Outcome, Watch
from schemas.jobs import GenerateJob

SIDE = 16
MICRO_BATCH = 4


def write_manifest(path: Path, columns: dict[str, Any], **kwargs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **kwargs)
    return path


def job(tmp_path: Path, manifest: Path, **values: Any) -> GenerateJob:
    """A resolved job with small pictures."""
    sampling = {
        "height": SIDE,
        "width": SIDE,
        "embedded_guidance": 3.5,
        "num_inference_steps": 2,
        "t5_sequence_length": 16,
    }
    return GenerateJob.parse(
        {
            "manifest": str(manifest),
            "output": str(tmp_path / "out"),
            "rows_per_shard": 4,
            "sampling": sampling | values.pop("sampling", {}),
        }
        | values
    )


class Painter:
    """Colours by seed, in micro-batches. A prompt may ask it to raise, to die, to break, to hang,
    to run out of memory or to take its time."""

    def each(
        self, requests: Sequence[GenerationRequest], *, watch: Watch = ONLOOKER
    ) -> Iterator[tuple[int, Outcome]]:
        for first in range(0, len(requests), MICRO_BATCH):
            batch = range(first, min(first + MICRO_BATCH, len(requests)))
            if watch.leaving():
                return
            watch.at("denoise", batch)
            for i in batch:
                yield i, self.paint(requests[i])

    def paint(self, request: GenerationRequest) -> Outcome:
        word, _, number = request.prompt.partition(" ")
        match word:
            case "sleep":
                time.sleep(float(number))
            case "hang":
                time.sleep(3600)
            case "raise":
                raise ValueError("cannot paint this")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hog":
                raise MemoryError
            case "nan":
                return NumbersBroke("the pixels came out as NaN or infinity")
        generator = torch.Generator().manual_seed(request.seed)
        pixels = torch.rand(3, request.height, request.width, generator=generator) * 2 - 1
        if request.input_image is not None:
            pixels = request.input_image
        return Generation(
            pixels=pixels,
            latents=torch.zeros(1),
            sigma_shift=1.0,
            micro_batch=MICRO_BATCH,
            tokens_dropped=0,
        )


class PainterStage(GenerateStage):
    """The real stage with the painter for an engine."""

    weights = "1"

    def setup(self) -> None:
        self.engine = Painter()
        self.fingerprint = {"weights": {"painter": self.weights}}


class PainterFactory:
    """Makes workers that paint; travels to any process."""

    def __init__(self, job: GenerateJob, roots: tuple[str, ...]) -> None:
        self.job, self.roots = job, roots

    def __call__(self, crumb: Path) -> ShardWorker:
        return ShardWorker(self.job, PainterStage(self.job, self.roots), crumb)


def data_bytes(output: Path) -> dict[str, bytes]:
    """Every file that must not differ between runs."""
    files = [*(output / "data").glob("*"), *(output / "rejected").glob("*")]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


def column(output: Path, name: str, folder: str = "data") -> list[Any]:
    tables = [pq.read_table(file) for file in sorted((output / folder).glob("*.parquet"))]
    return [value for table in tables for value in table[name].to_pylist()]
