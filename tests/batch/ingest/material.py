"""Training material in small, and jobs that ingest it in this process."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from batch.actor import ShardWorker
from batch.ingest.plan import ingest_plan
from batch.report import ShardReport
from batch.stages.ingest import IngestStage
from schemas.ingest import IngestJob


def picture(width: int = 40, height: int = 24, seed: int = 0, kind: str = "PNG") -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, kind)
    return out.getvalue()


def folder(place: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return place


def tar(path: Path, members: Iterable[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, lines: list[dict[str, Any]]) -> Path:
    """CSV, JSON or JSON lines, by the name's ending."""
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(lines))
        case ".jsonl":
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(lines[0]))
                writer.writeheader()
                writer.writerows(lines)
    return path


def job(output: Path | str, source: dict[str, Any], **values: Any) -> IngestJob:
    return IngestJob.parse({"output": str(output), "source": source, "rows_per_shard": 4} | values)


def ingest(asked: IngestJob) -> list[ShardReport]:
    """All shards of a job, made by the real worker."""
    planned, _, shards = ingest_plan(asked)
    worker = ShardWorker(planned, IngestStage(planned))
    worker.output.claim(planned.recipe())
    worker.setup()
    return [worker(shard) for shard in shards]


def rows(output: Path, place: str = "data") -> dict[str, dict[str, Any]]:
    """By their keys."""
    files = sorted((output / place).glob("*.parquet"))
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row for row in found}
