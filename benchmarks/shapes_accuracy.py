"""How often the shipped demo model draws what it is asked, through the main job.

    python -m benchmarks.shapes_accuracy [--dtype bfloat16|float32]

One job on a local Ray makes every picture at the model's own defaults, where a line of the table
says nothing else: all combinations that training never had, as many that it had, and the former
again by guidance and by number of steps, always from the same noise. See `benchmarks/README.md`.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
import yaml
from torch import Tensor

from benchmarks import machine
from benchmarks.table import aligned
from shapes.dataset import rows_of, to_tensor
from shapes.manifest import prompts
from shapes.recipe import ONE
from shapes.ruler import Score, score
from shapes.world import keyed

RESULTS = Path(__file__).parent / "results"
WORLD = ONE.world
UNSEEN = len(WORLD.part(unseen=True))


@dataclass(frozen=True)
class Line:
    """One line of the table: which combinations, and what a manifest row says besides."""

    title: str
    unseen: bool = True
    guidance: float | None = None
    steps: int | None = None


HELD_OUT = Line("held out")
LINES = (
    HELD_OUT,
    Line("trained", unseen=False),
    Line("guidance 1", guidance=1.0),
    Line("guidance 2", guidance=2.0),
    Line("guidance 5", guidance=5.0),
    Line("16 steps", steps=16),
    Line("4 steps", steps=4),
    Line("2 steps", steps=2),
    Line("1 step", steps=1),
)


def write_manifest(path: Path) -> int:
    """Every line's rows; a key begins with its line's title. The number of rows."""
    rows: list[dict[str, Any]] = [
        {
            "key": f"{line.title}/{i:04}",
            "prompt": prompt,
            "seed": i,
            "embedded_guidance": line.guidance,
            "num_inference_steps": line.steps,
        }
        for line in LINES
        for i, prompt in enumerate(prompts(WORLD, UNSEEN, UNSEEN if line.unseen else 0))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return len(rows)


def make(folder: Path, dtype: str) -> None:
    """The job, in processes of its own."""
    job = {
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "rows_per_shard": 128,
        "engine": {"model": "flux-shapes", "torch_dtype": dtype},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    words = [sys.executable, "-m", "jobs.generate", "--config", str(folder / "job.yaml")]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run(words, check=True, env=alone, stdout=sys.stderr)


def read(output: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures (N, 3, H, W) and what was asked of them, (N, 5), by the line's title."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {line.title: [] for line in LINES}
    for key, prompt, picture in rows_of(output):
        asked = WORLD.parse(prompt)
        assert picture is not None
        assert asked is not None
        found[key.partition("/")[0]].append((to_tensor(picture, WORLD.side), asked))
    return {
        title: (torch.stack([x for x, _ in pairs]), torch.stack([asked for _, asked in pairs]))
        for title, pairs in found.items()
    }


def scores(output: Path) -> dict[str, Score]:
    made = read(output)
    out = {title: score(WORLD, *pair) for title, pair in made.items()}
    pictures, asked = made[HELD_OUT.title]
    order = torch.randperm(len(asked), generator=keyed("shuffled captions"))
    return out | {"shuffled captions": score(WORLD, pictures, asked[order])}


def cells(title: str, result: Score) -> list[str]:
    shares = {**result.by_attribute, "all": result.all}
    return [title, str(result.count), *(f"{share:.1%}" for share in shares.values())]


def keep(file: Path, dtype: str, values: dict[str, Any]) -> None:
    """Beside the other precision of that day."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(known | {dtype: values}, indent=1) + "\n")
    part.rename(file)


def main(
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="What the engine computes in.")
    ] = "bfloat16",
) -> None:
    """Shares of pictures that show what was asked, by attribute."""
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_manifest(folder / "manifest.parquet")
        make(folder, dtype)
        found = scores(folder / "out")
    head = ["flux-shapes", "pictures", *found[HELD_OUT.title].by_attribute, "all"]
    typer.echo("\n".join(aligned([head, *(cells(*line) for line in found.items())])))
    about = {
        "date": now.isoformat(timespec="seconds"),
        "machine": machine.described(),
        "versions": machine.versions(),
        "rows": rows,
    }
    shares = {title: {"pictures": one.count} | one.as_dict() for title, one in found.items()}
    keep(RESULTS / f"shapes_accuracy-{now.date()}.json", dtype, about | {"scores": shares})


if __name__ == "__main__":
    typer.run(main)
