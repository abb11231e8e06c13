"""Settings of each form."""

import pytest

from schemas.base import SchemaError
from schemas.exports import DiffSynthExport, Dmd2Export, ExportJob, FastGenExport, FastVideoExport


@pytest.mark.parametrize("kind", [FastGenExport, Dmd2Export, FastVideoExport, DiffSynthExport])
def test_a_form_is_told_by_its_name(kind: type) -> None:
    job = ExportJob.parse({"export": {"format": kind().format}})
    assert job.export == kind()


def test_a_setting_of_another_form_is_refused() -> None:
    with pytest.raises(SchemaError, match="rows_per_tar: unknown name"):
        ExportJob.parse({"export": {"format": "dmd2", "rows_per_tar": 3}})


def test_a_form_that_is_not_known_is_refused() -> None:
    with pytest.raises(SchemaError, match="fastgene"):
        ExportJob.parse({"export": {"format": "fastgene"}})
