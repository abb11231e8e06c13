from pathlib import Path

import yaml

from batch.card import card
from batch.report import RunReport
from schemas.jobs import GenerateJob


def text(**values: object) -> str:
    job = GenerateJob.parse({"manifest": "m", "output": "out/foxes"} | values)
    return card(job, RunReport(rows=3, done=2, rejected=1))


def test_the_card_tells_datasets_where_the_files_are() -> None:
    told = yaml.safe_load(text().split("---")[1])
    assert told["configs"][0]["data_files"][0]["path"] == "data/*.parquet"
    told = yaml.safe_load(text(format="webdataset").split("---")[1])
    assert told["configs"][0]["data_files"][0]["path"] == "data/*.tar"


def test_the_card_tells_people_what_is_there() -> None:
    told = text()
    assert "# foxes" in told
    assert "2 pictures made from prompts with `flux-shapes`; 1 rows were rejected" in told
    assert '"sampling.schedule": "flux"' in told


def test_the_card_leaves_room_for_any_output(tmp_path: Path) -> None:
    assert f"# {tmp_path.name}" in text(output=f"{tmp_path}/")
