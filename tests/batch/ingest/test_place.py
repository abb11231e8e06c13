import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from batch.ingest.place import here, root_of
from flux_engine.errors import SourceError
from schemas.ingest import FolderSource, ParquetSource, TableSource, WebDatasetSource
from tests.batch.ingest.material import ingest, job, picture, rows
from tests.flux_engine.weights.fetching import environment as hub_environment
from tests.flux_engine.weights.standin_hub import StandInHub, running

ID = "owner/pictures"
FILES = {
    "train/a.png": picture(seed=1),
    "train/a.txt": b"a red circle",
    "train/b.png": picture(seed=2),
    "train/b.txt": b"a blue square",
    "README.md": b"read",
}
SOURCE = {
    "kind": "hub",
    "dataset_id": ID,
    "origin_file_pattern": "train/*",
    "read_as": {"kind": "folder", "path": "train"},
}
PROGRAM = """
import json, sys
from pathlib import Path
from batch.ingest.place import here
from schemas.ingest import IngestJob
print(here(IngestJob.parse(json.loads(sys.argv[1]))).path)
"""


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("in/a.tar", "in"),
        ("in/*.tar", "in"),
        ("in", "in"),
        ("/x/y/**/z/*.tar", "/x/y"),
        ("s3://b/x/a.tar?region=r", "s3://b/x?region=r"),
        ("s3://b/x?region=r", "s3://b/x?region=r"),
    ],
)
def test_relative_paths_start_in_the_folder_of_tars(path: str, root: str) -> None:
    assert root_of(WebDatasetSource(kind="webdataset", path=path)) == root


def test_a_tables_paths_start_at_its_base_and_a_folders_in_it() -> None:
    table = TableSource(kind="table", dataset_base_path="in", dataset_metadata_path="t.csv")
    assert root_of(table) == "in"
    assert root_of(FolderSource(kind="folder", path="in")) == "in"
    assert root_of(ParquetSource(kind="parquet", path="in/a.parquet")) == "in"


def test_a_data_set_of_modelscope_is_brought_once_and_ingested(tmp_path: Path) -> None:
    from modelscope_hub.config import set_default_config

    store = tmp_path / "store"
    with (
        running(StandInHub(ID, FILES, kind="datasets")) as hub,
        patch.dict(
            os.environ, {**hub_environment(store, hub.url), "FLUXMILL_DATASETS": str(store)}
        ),
    ):
        set_default_config(None)
        try:
            ingest(job(tmp_path / "out", SOURCE))
            asked = len(hub.asked)
            assert here(job(tmp_path / "out", SOURCE)) == FolderSource(
                kind="folder", path=str(store / ID / "train")
            )
            assert len(hub.asked) == asked
        finally:
            set_default_config(None)
    made = rows(tmp_path / "out")
    assert {key: row["prompt"] for key, row in made.items()} == {
        "a.png": "a red circle", "b.png": "a blue square",
    }  # fmt: skip
    assert made["b.png"]["image"]["bytes"] == picture(seed=2)
    assert not (store / ID / "README.md").exists()


def test_a_data_set_of_hugging_face_is_brought(tmp_path: Path) -> None:
    store = tmp_path / "store"
    told = {"output": "out", "source": SOURCE | {"download_source": "huggingface"}}
    with running(StandInHub(ID, FILES, kind="datasets")) as hub:
        environment = hub_environment(store, hub.url) | {"FLUXMILL_DATASETS": str(store)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(told)],
            env=os.environ | environment, cwd=Path(__file__).parents[3],
            text=True, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(store / ID / "train")
    assert (store / ID / "train" / "a.png").read_bytes() == picture(seed=1)


def test_without_a_hub_files_that_were_placed_by_hand_do(tmp_path: Path) -> None:
    from modelscope_hub.config import set_default_config

    store = tmp_path / "store"
    with (
        running(StandInHub(ID, FILES, kind="datasets", refuse=404)) as hub,
        patch.dict(
            os.environ, {**hub_environment(store, hub.url), "FLUXMILL_DATASETS": str(store)}
        ),
    ):
        set_default_config(None)
        try:
            with pytest.raises(SourceError, match="place the files by hand under"):
                here(job(tmp_path / "out", SOURCE))
            (store / ID / "train").mkdir(parents=True, exist_ok=True)
            (store / ID / "train" / "a.png").write_bytes(picture())
            layout = here(job(tmp_path / "out", SOURCE))
        finally:
            set_default_config(None)
    assert layout == FolderSource(kind="folder", path=str(store / ID / "train"))
