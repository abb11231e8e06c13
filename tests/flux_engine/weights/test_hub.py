from pathlib import Path

import pytest

from flux_engine.weights.hub import HubName
from flux_engine.weights.source import ModelSource
from tests.flux_engine.weights.fetching import fetched
from tests.flux_engine.weights.standin_hub import StandInHub, running

ID = "owner/model"
FILES = {"vae/a.safetensors": b"a", "vae/b.safetensors": b"a", "empty": b"", "README.md": b"read"}
HUBS = pytest.mark.parametrize("hub_name", ["modelscope", "huggingface"])


def source(pattern: str, hub_name: HubName) -> ModelSource:
    return ModelSource(model_id=ID, origin_file_pattern=pattern, download_source=hub_name)


@HUBS
def test_a_folder_is_not_taken_for_a_file(hub_name: HubName, tmp_path: Path) -> None:
    with running(StandInHub(ID, FILES)) as hub:
        outcome = fetched(source("*", hub_name), tmp_path / "store", hub.url)
    assert outcome.paths == (f"{ID}/README.md", f"{ID}/empty"), outcome.error


@HUBS
def test_files_of_one_content_are_both_brought(hub_name: HubName, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(StandInHub(ID, FILES)) as hub:
        outcome = fetched(source("vae/", hub_name), store, hub.url)
    assert [(store / path).read_bytes() for path in outcome.paths] == [b"a", b"a"]


@HUBS
def test_a_path_that_leads_out_of_the_folder_is_refused(hub_name: HubName, tmp_path: Path) -> None:
    with running(StandInHub(ID, {"../../escaped": b"x"})) as hub:
        outcome = fetched(source("**", hub_name), tmp_path / "store", hub.url)
    assert "lead out of the folder: ../../escaped" in outcome.error
    assert not list(tmp_path.rglob("escaped"))


def test_a_transfer_from_elsewhere_goes_on_too_and_gets_no_token(tmp_path: Path) -> None:
    store, big = tmp_path / "store", bytes(24 << 20)
    hub = StandInHub(ID, {"big": big}, elsewhere=True, cut_after={"big": 22 << 20})
    with running(hub):
        outcome = fetched(source("big", "huggingface"), store, hub.url)
    assert (store / outcome.paths[0]).read_bytes() == big
    first, second = hub.transfers("big")
    assert first is None
    assert second is not None
    assert hub.told_elsewhere == ["", ""]


@HUBS
@pytest.mark.parametrize("status", [401, 403])
def test_what_a_hub_answers_is_told_without_secrets(
    hub_name: HubName, status: int, tmp_path: Path
) -> None:
    hub = StandInHub(ID, FILES, refuse=status)
    hub.message = "see http://cdn/file?Signature=abcabc with Bearer abcabc or hf_abcabc"
    with running(hub):
        outcome = fetched(source("README.md", hub_name), tmp_path / "store", hub.url)
    assert "no such repository, or it wants a login" in outcome.error
    assert "abcabc" not in outcome.error


@HUBS
def test_a_store_that_cannot_be_written_is_named(hub_name: HubName, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / ID).mkdir(parents=True)
    (store / ID / "vae").write_text("a file where a folder has to be")
    with running(StandInHub(ID, FILES)) as hub:
        outcome = fetched(source("vae/a.safetensors", hub_name), store, hub.url)
    assert "cannot be written" in outcome.error
