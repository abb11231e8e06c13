from pathlib import Path

import pytest

from flux_engine.errors import SourceError
from jobs.work import resolved
from schemas.jobs import DistillJob, GenerateJob

JOB = {"manifest": "m.parquet", "output": "out"}


@pytest.mark.parametrize(
    ("schema", "more"), [(GenerateJob, {}), (DistillJob, {"target": {"kind": "pair"}})]
)
def test_what_a_job_leaves_open_its_model_decides(schema: type, more: dict[str, object]) -> None:
    job = resolved(schema.parse(JOB | more))  # type: ignore[attr-defined, type-var]
    assert isinstance(job, schema)
    assert job.sampling.height == 64
    assert job.sampling.num_inference_steps == 16


def test_a_jobs_lora_that_is_not_there_is_found_at_once(tmp_path: Path) -> None:
    job = GenerateJob.parse(JOB | {"sampling": {"loras": [str(tmp_path / "absent.safetensors")]}})
    with pytest.raises(SourceError, match="absent"):
        resolved(job)
