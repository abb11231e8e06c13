"""LoRAs from a manifest's column to the records, with the real engine, in this process."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batch.actor import ShardWorker
from batch.errors import OutputError
from batch.report import ShardReport
from batch.run import checked_plan
from batch.stages.generate import GenerateStage
from jobs.work import resolved
from schemas.jobs import GenerateJob
from tests.batch.doubles import write_manifest
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import file_of, use


def work(folder: Path, columns: dict[str, Any], **values: Any) -> list[ShardReport]:
    """A whole job but for Ray; its dataset is in folder/out."""
    manifest = write_manifest(folder / "m" / "a.parquet", columns)
    told = {
        "manifest": str(manifest),
        "output": str(folder / "out"),
        "engine": {"device": "cpu", "torch_dtype": "float32", "micro_batch": 2},
        "sampling": {"num_inference_steps": 2, **values.pop("sampling", {})},
    }
    job = resolved(GenerateJob.parse(told | values))
    _, shards = checked_plan(job)
    worker = ShardWorker(job, GenerateStage(job, (str(manifest.parent),)))
    worker.output.claim(job.recipe())
    worker.setup()
    return [worker(shard) for shard in shards]


def rows(folder: Path, what: str = "data") -> dict[str, dict[str, Any]]:
    table = pq.read_table(folder / "out" / what).to_pylist()
    return {row["key"]: row for row in table}


def test_rows_wear_what_their_column_says(tmp_path: Path, shapes_engine: ShapesEngine) -> None:
    engine = shapes_engine()
    files = [file_of(tmp_path / "m", engine, seed) for seed in (0, 1)]
    prompts = ["a red circle"] * 6
    loras = [
        None,
        [],
        [{"path": files[0].name, "scale": 1.0}],
        [{"path": files[1].name, "scale": 0.5}, {"path": files[0].name, "scale": None}],
        [{"path": "absent.safetensors", "scale": 1.0}],
        [{"path": "/etc/passwd", "scale": 1.0}],
    ]
    columns = {"prompt": prompts, "key": list("abcdef"), "loras": loras, "seed": [7] * 6}
    (report,) = work(tmp_path, columns)
    assert (report.done, report.rejected) == (4, 2)
    made, lost = rows(tmp_path), rows(tmp_path, "rejected")
    assert made["a"]["image"]["bytes"] == made["b"]["image"]["bytes"]
    assert len({row["image"]["bytes"] for row in made.values()}) == 3
    assert made["a"]["loras"] == []
    digests = [engine.loras.shelf.take(use(file)).digest for file in files]
    assert made["d"]["loras"] == [
        {"name": files[1].name, "scale": 0.5, "sha256": digests[1]},
        {"name": files[0].name, "scale": 1.0, "sha256": digests[0]},
    ]
    assert "there is no such file" in lost["e"]["reason"]
    assert "lora_roots adds one" in lost["f"]["reason"]


def test_a_jobs_lora_is_worn_unless_the_row_says_otherwise(
    tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    file = file_of(tmp_path, shapes_engine())
    columns = {
        "prompt": ["a red circle"] * 2,
        "key": ["worn", "bare"],
        "seed": [7, 7],
        "loras": [None, []],
    }
    sampling = {"loras": [{"path": str(file), "scale": 0.8}]}
    work(tmp_path, columns, sampling=sampling)
    made = rows(tmp_path)
    assert [lora["name"] for lora in made["worn"]["loras"]] == [str(file)]
    assert made["bare"]["loras"] == []
    assert made["worn"]["image"]["bytes"] != made["bare"]["image"]["bytes"]


def test_a_jobs_lora_that_changed_is_another_fingerprint(
    tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    file = file_of(tmp_path, shapes_engine())
    columns = {"prompt": ["a red circle"]}
    sampling = {"loras": [str(file)]}
    work(tmp_path, columns, sampling=sampling)
    file_of(tmp_path, shapes_engine(), 1).replace(file)
    with pytest.raises(OutputError, match=r"made by other weights: LoRA .*lora0\.safetensors"):
        work(tmp_path, columns, sampling=sampling)
