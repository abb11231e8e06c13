"""Datasets of targets, made by the real stage with the bundled model, in this process."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from batch.actor import ShardWorker
from batch.output import Output
from batch.report import RunReport
from batch.run import checked_plan
from batch.stages.distill import DistillStage
from batch.targets.card import publish_targets
from jobs.work import resolved
from schemas.jobs import DistillJob
from tests.batch.doubles import write_manifest

CAPTIONS = (
    "a large red circle",
    "a small blue square",
    "a large green triangle",
    "a large red circle",
    "a small yellow star",
    "",
    "a large blue circle",
    "a small red square",
)
SIDES = ((64, 64),) * 5 + ((32, 64),) * 3  # height and width
BUCKETS = {(32, 64): 3, (64, 64): 5}

TARGETS: dict[str, dict[str, Any]] = {
    "pair": {"target": {"kind": "pair"}},
    "pair32": {"target": {"kind": "pair"}, "dtype": "float32"},
    "guided": {"target": {"kind": "pair"}, "sampling": {"cfg_scale": 2.0, "negative_prompt": "a"}},
    "path": {"target": {"kind": "path", "segments": 4}, "sampling": {"num_inference_steps": 8}},
    "path16": {"target": {"kind": "path"}, "sampling": {"num_inference_steps": 28}},
    "cache": {"target": {"kind": "cache"}},
    "moments": {"target": {"kind": "cache", "moments": True}, "dtype": "float32"},
    "velocity": {
        "target": {
            "kind": "velocity",
            "queries": 3,
            "guidance": [1.0, 3.0],
            "unconditional": True,
        },
        "dtype": "float32",
    },
    "feature": {
        "target": {"kind": "feature", "taps": ["double_blocks.0.img", "single_blocks.1"]},
        "dtype": "bfloat16",
    },
    "textless": {"target": {"kind": "pair"}, "store_text": False},
}
TARGETS["path32"] = TARGETS["path16"] | {"dtype": "float32"}
TARGETS["pathbf16"] = TARGETS["path16"] | {"dtype": "bfloat16"}


def columns(folder: Path, kind: str) -> dict[str, Any]:
    """A manifest: captions of which one comes twice and one is empty, two sizes."""
    made: dict[str, Any] = {
        "key": [f"row {i}" for i in range(len(CAPTIONS))],
        "height": [height for height, _ in SIDES],
        "width": [width for _, width in SIDES],
        "origin": [f"place {i}" for i in range(len(CAPTIONS))],
    }
    if kind in ("pair", "path"):
        return made | {"prompt": list(CAPTIONS)}
    random = np.random.default_rng(0)
    pictures = []
    for i, (height, width) in enumerate(SIDES):
        levels = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(levels).resize((width, height))
        picture.save(folder / f"{i}.png")
        pictures.append({"bytes": None, "path": f"{i}.png"})
    return made | {"caption": list(CAPTIONS), "image": pictures}


def make(folder: Path, name: str, **values: Any) -> Path:
    """The dataset of that name; where it is."""
    told = TARGETS[name] | values
    folder.mkdir(parents=True)
    kind = told["target"]["kind"]
    told["sampling"] = {"num_inference_steps": 4} | told.get("sampling", {})
    return distilled(folder, columns(folder, kind), passthrough=["origin"], **told)


def distilled(folder: Path, rows: dict[str, Any], **values: Any) -> Path:
    """The dataset that is made of such rows, none of which is rejected."""
    manifest = write_manifest(folder / "rows.parquet", rows)
    job = resolved(
        DistillJob.parse(
            {
                "manifest": str(manifest),
                "output": str(folder / "out"),
                "rows_per_shard": 4,
                "engine": {"device": "cpu", "torch_dtype": "float32", "micro_batch": 2},
            }
            | values
        )
    )
    _, shards = checked_plan(job)
    worker = ShardWorker(job, DistillStage(job, (str(folder),)))
    worker.output.claim(job.recipe())
    worker.setup()
    reports = [worker(shard) for shard in shards]
    done, rejected = (sum(getattr(r, name) for r in reports) for name in ("done", "rejected"))
    assert (done, rejected) == (len(rows["key"]), 0)
    report = RunReport(rows=done)
    report.done = done
    publish_targets(job, Output(job.output, job.format), report)
    return folder / "out"


class Targets:
    """Makes each dataset once; tests must not change what they get."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = cache(lambda name: make(folder / name, name))

    def __call__(self, name: str) -> Path:
        return self._made(name)
