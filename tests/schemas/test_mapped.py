import pytest

from schemas.base import SchemaError
from schemas.ingest import IngestJob
from schemas.jobs import GenerateJob

SOURCE = {"kind": "folder", "path": "in"}


@pytest.mark.parametrize("values", [{"workers": [3, 1]}, {"output": "s3://b/x?token=1"}])
def test_every_job_that_maps_over_rows_refuses_the_same(values: dict[str, object]) -> None:
    for job, told in ((IngestJob, {"source": SOURCE}), (GenerateJob, {"manifest": "m"})):
        with pytest.raises(SchemaError):
            job.parse({"output": "out"} | told | values)


def test_places_and_numbers_of_workers_are_in_no_recipe() -> None:
    told = IngestJob.parse({"output": "out", "source": SOURCE, "workers": 2, "row_timeout": 5.0})
    assert not {"output", "workers", "row_timeout", "source.path"} & set(told.recipe())
