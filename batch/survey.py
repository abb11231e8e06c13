"""What an output holds and how it came about, from its own files."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from batch.errors import OutputError
from batch.output import REJECTED, RUN, SUFFIX, Output
from batch.storage import Storage
from schemas.records import TRAINING_SIZES

SHOWN = ("key", "sample", "prompt", "seed", "height", "width")
ELSEWHERE = {  # what targets and training shards call it
    "prompt": ("caption",),
    "height": ("image_height",),
    "width": ("image_width",),
}


@dataclass
class Survey:
    """Counts of pictures and rows; sizes in bytes; runs in the order in which they began."""

    recipe: dict[str, Any]
    shards: int = 0
    done: int = 0
    rejected: int = 0
    planned_rows: int = 0
    data_bytes: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self).items()}  # noqa: C416
        return told | {"sizes": dict(self.sizes), "reasons": dict(self.reasons)}


def survey(uri: str, samples: int) -> Survey:
    """OutputError if there is no output of ours."""
    storage = Storage(uri)
    if not storage.exists(f"{RUN}/recipe.json"):
        raise OutputError(f"{uri}: is no output of a job: it has no {RUN}/recipe.json")
    recipe = json.loads(storage.read(f"{RUN}/recipe.json"))
    output = Output(uri, recipe.get("format", "parquet"))
    out = Survey(recipe)
    finished = sorted(output.finished())
    counts = output.counts(set(finished), output.receipts())
    out.shards = len(finished)
    out.done = sum(done for done, _ in counts.values())
    for entry in storage.names(f"{RUN}/plan"):
        out.planned_rows += json.loads(storage.read(f"{RUN}/plan/{entry}"))["rows"]
    for row in rows_of(output, finished):
        out.sizes[f"{row['width']}×{row['height']}"] += 1
        if len(out.samples) < samples:
            out.samples.append({name: row[name] for name in SHOWN})
    for name in storage.names(REJECTED):
        for row in output.rejects(name.removesuffix(".parquet")):
            out.rejected += 1
            out.reasons[row["error"]] += 1
            out.examples.setdefault(
                row["error"], f"{row['manifest_file']}:{row['row']}: {row['reason']}"
            )
    out.data_bytes = sum(size_of(storage, output.data(shard)) for shard in finished)
    out.runs = sorted(
        (run_of(json.loads(storage.read(f"{RUN}/reports/{name}"))) for name in reports(storage)),
        key=lambda run: run["started"],
    )
    return out


def reports(storage: Storage) -> list[str]:
    return [name for name in storage.names(f"{RUN}/reports") if name.endswith(".json")]


def size_of(storage: Storage, name: str) -> int:
    with storage.open(name) as file:
        return int(file.size())


def rows_of(output: Output, shards: list[str]) -> Iterator[dict[str, Any]]:
    """What is told of each picture; pictures themselves are not read where a file lets us."""
    for shard in shards:
        with output.storage.open(output.data(shard)) as file:
            if output.suffix == SUFFIX["parquet"]:
                parquet = pq.ParquetFile(file)
                names = called({*parquet.schema_arrow.names})
                for row in parquet.read(columns=list(names)).to_pylist():
                    told = {names[name]: value for name, value in row.items()}
                    yield dict.fromkeys(SHOWN) | told
                continue
            with tarfile.open(fileobj=io.BufferedReader(file)) as tar:
                for member in tar:
                    if member.name.endswith(".json") and (text := tar.extractfile(member)):
                        yield json.load(text)


def called(there: Set[str]) -> dict[str, str]:
    """The columns of a file that tell what is shown, each with what it tells. Those of training
    shards come first: what their rows carry along may have any name."""
    training = {*TRAINING_SIZES} <= there
    out = {}
    for name in SHOWN:
        names = (*ELSEWHERE.get(name, ()), name) if training else (name, *ELSEWHERE.get(name, ()))
        column = next((one for one in names if one in there), None)
        if column is not None and not (training and name in ("sample", "seed")):
            out[column] = name
    return out


def run_of(report: dict[str, Any]) -> dict[str, Any]:
    """One run in figures: rows are those that it made."""
    seconds = max(report["written"] - report["started"], 1e-9)
    made = report["done"] + report["rejected"] - report["skipped"]
    return {
        "started": report["started"],
        "state": report["state"],
        "seconds": round(seconds, 1),
        "rows": made,
        "rows_per_second": round(made / seconds, 3),
        "card_seconds": round(report["busy_seconds"], 1),
        "lost_workers": report["lost_workers"],
    }
