import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_engine.errors import SourceError
from flux_engine.weights.hub import HubName
from flux_engine.weights.source import ModelSource, fetch
from flux_engine.weights.store import matches
from tests.flux_engine.weights.fetching import NOBODY, fetched, finish, start
from tests.flux_engine.weights.standin_hub import StandInHub, running

ID = "owner/model"
SHARDS = tuple(f"text_encoder_2/model-0000{i}-of-00002.safetensors" for i in (1, 2))
BIG = "flux1-dev.safetensors"

HUBS = pytest.mark.parametrize("hub_name", ["modelscope", "huggingface"])


def source(pattern: str, hub_name: HubName) -> ModelSource:
    return ModelSource(model_id=ID, origin_file_pattern=pattern, download_source=hub_name)


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"weights").digest(size)


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    files = {
        BIG: noise(24 << 20),
        SHARDS[0]: b"first shard",
        SHARDS[1]: b"second shard",
        "text_encoder_2/config.json": b'{"model_type": "t5"}',
        "text_encoder/config.json": b'{"model_type": "clip_text_model"}',
        "text_encoder/model.safetensors": b"clip",
        "README.md": b"read me",
    }
    with running(StandInHub(ID, files)) as hub:
        yield hub


def content(store: Path, path: str) -> bytes:
    return (store / ID / path).read_bytes()


@HUBS
def test_a_glob_brings_its_matches_and_the_config_beside_them(
    hub: StandInHub, tmp_path: Path, hub_name: HubName
) -> None:
    store = tmp_path / "store"
    outcome = fetched(source("text_encoder_2/*.safetensors", hub_name), store, hub.url)
    assert outcome.paths == tuple(f"{ID}/{shard}" for shard in SHARDS), outcome.error
    for path in (*SHARDS, "text_encoder_2/config.json"):
        assert content(store, path) == hub.files[path]
    assert not (store / ID / "text_encoder").exists()
    assert not (store / ID / BIG).exists()


@HUBS
def test_a_second_call_asks_the_network_for_nothing(
    hub: StandInHub, tmp_path: Path, hub_name: HubName
) -> None:
    store = tmp_path / "store"
    wanted = source("text_encoder/*", hub_name)
    first = fetched(wanted, store, hub.url)
    asked = len(hub.asked)
    assert asked
    assert fetched(wanted, store, hub.url).paths == first.paths
    assert len(hub.asked) == asked
    assert fetched(wanted, store, NOBODY).paths == first.paths  # not even whether it is there


def test_files_of_one_hub_serve_for_the_other(hub: StandInHub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = fetched(source("README.md", "huggingface"), store, hub.url)
    assert fetched(source("README.md", "modelscope"), store, NOBODY).paths == first.paths


def test_four_racing_processes_make_one_download(hub: StandInHub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    hub.seconds_a_file = 0.5
    wanted = source("text_encoder_2/*.safetensors", "huggingface")
    racers = [start(wanted, store, hub.url) for _ in range(4)]
    outcomes = [finish(racer, store) for racer in racers]
    assert {outcome.paths for outcome in outcomes} == {tuple(f"{ID}/{s}" for s in SHARDS)}
    assert hub.asked.count(("LIST", "huggingface", None)) == 1
    assert [hub.transfers(shard) for shard in SHARDS] == [[None], [None]]


@HUBS
def test_a_cut_transfer_goes_on_where_it_was(
    hub: StandInHub, tmp_path: Path, hub_name: HubName
) -> None:
    store = tmp_path / "store"
    hub.cut_after = {BIG: 22 << 20}
    assert fetched(source(BIG, hub_name), store, hub.url).paths == (f"{ID}/{BIG}",)
    first, second = hub.transfers(BIG)
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").partition("-")[0]) >= 10 << 20
    assert content(store, BIG) == hub.files[BIG]


@HUBS
def test_a_killed_download_blocks_nobody_and_is_continued(
    hub: StandInHub, tmp_path: Path, hub_name: HubName
) -> None:
    store = tmp_path / "store"
    hub.stall_after = {BIG: 22 << 20}
    killed = start(source(BIG, hub_name), store, hub.url)
    assert hub.stalled.wait(60)
    wait_for_bytes(store, 20 << 20)
    killed.kill()
    killed.communicate()
    assert not (store / ID / BIG).exists()  # whole or not at all
    assert fetched(source(BIG, hub_name), store, hub.url).paths == (f"{ID}/{BIG}",)
    second = hub.transfers(BIG)[1]
    assert second is not None
    assert int(second.removeprefix("bytes=").partition("-")[0]) >= 10 << 20
    assert content(store, BIG) == hub.files[BIG]


def wait_for_bytes(store: Path, size: int) -> None:
    """Until the part that a download writes has grown to about that size."""
    for _ in range(600):
        if any(p.stat().st_size >= size for p in store.rglob("*") if p.is_file()):
            return
        time.sleep(0.05)
    raise AssertionError([(p, p.stat().st_size) for p in store.rglob("*")])


@HUBS
def test_a_pattern_without_a_match_is_told_what_there_is(
    hub: StandInHub, tmp_path: Path, hub_name: HubName
) -> None:
    outcome = fetched(source("flux1-schnell.*", hub_name), tmp_path / "store", hub.url)
    assert "owner/model (flux1-schnell.*): nothing matches" in outcome.error
    assert BIG in outcome.error
    assert SHARDS[0] in outcome.error


@HUBS
def test_a_hub_out_of_reach_says_what_is_missing_and_how_to_do_without(
    tmp_path: Path, hub_name: HubName
) -> None:
    store = tmp_path / "store"
    outcome = fetched(source(BIG, hub_name), store, NOBODY)
    for part in (f"{ID} ({BIG}) from {hub_name}", "out of reach", str(store / ID), "`path`"):
        assert part in outcome.error
    assert "secret" not in outcome.written


def test_a_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder has to be")
    with pytest.raises(SourceError, match=r"cannot be written or locked .* FLUXMILL_MODELS"):
        fetch(source(BIG, "modelscope"), tmp_path / "store")


@HUBS
def test_a_hub_that_refuses_is_not_called_out_of_reach(
    hub: StandInHub, tmp_path: Path, hub_name: HubName
) -> None:
    hub.refuse = 404
    outcome = fetched(source(BIG, hub_name), tmp_path / "store", hub.url)
    assert "no such repository, or it wants a login" in outcome.error
    assert "secret" not in outcome.written


def test_files_placed_by_hand_are_used_when_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for shard in SHARDS:
        place(store, shard)
    wanted = source("text_encoder_2/*.safetensors", "huggingface")
    assert fetched(wanted, store, NOBODY).paths == tuple(f"{ID}/{s}" for s in SHARDS)


def test_half_of_the_shards_by_hand_are_not_enough(tmp_path: Path) -> None:
    store = tmp_path / "store"
    place(store, SHARDS[0])
    wanted = source("text_encoder_2/*.safetensors", "huggingface")
    outcome = fetched(wanted, store, NOBODY)
    assert "out of reach" in outcome.error
    assert SHARDS[0] in outcome.error


def test_what_a_cut_download_lacks_is_not_taken_for_complete(
    hub: StandInHub, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    wanted = source("text_encoder/*", "huggingface")
    fetched(wanted, store, hub.url)
    (store / ID / "text_encoder/model.safetensors").unlink()
    assert "out of reach" in fetched(wanted, store, NOBODY).error
    assert len(fetched(wanted, store, hub.url).paths) == 2  # and is brought again


def test_a_file_of_another_size_is_brought_again(hub: StandInHub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    wanted = source("README.md", "huggingface")
    fetched(wanted, store, hub.url)
    (store / ID / "README.md").write_bytes(b"cut")
    fetched(wanted, store, hub.url)
    assert content(store, "README.md") == b"read me"


def test_the_marker_names_pattern_files_and_sizes(hub: StandInHub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    fetched(source("text_encoder/*.safetensors", "huggingface"), store, hub.url)
    (marker,) = (store / ID / ".fluxmill").glob("*.json")
    assert json.loads(marker.read_text()) == {
        "model_id": ID,
        "pattern": "text_encoder/*.safetensors",
        "hub": "huggingface",
        "files": {"text_encoder/model.safetensors": 4},
        "beside": {"text_encoder/config.json": 33},
        "complete": True,
    }


def test_the_store_is_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: StandInHub
) -> None:
    wanted = source("README.md", "huggingface")
    fetched(wanted, tmp_path / "elsewhere", hub.url)
    monkeypatch.setenv("FLUXMILL_MODELS", str(tmp_path / "elsewhere"))
    assert fetch(wanted) == (tmp_path / "elsewhere" / ID / "README.md",)


def place(store: Path, path: str) -> None:
    (store / ID / path).parent.mkdir(parents=True, exist_ok=True)
    (store / ID / path).write_bytes(b"by hand")


@pytest.mark.parametrize(
    ("path", "pattern", "whether"),
    [
        ("ae.safetensors", "*.safetensors", True),
        ("vae/a.safetensors", "*.safetensors", False),
        ("vae/a.safetensors", "**/*.safetensors", True),
        ("a.safetensors", "**/*.safetensors", True),
        ("tokenizer/vocab.json", "tokenizer/", True),
        ("tokenizer_2/vocab.json", "tokenizer/", False),
        ("tokenizer/vocab.json", "tokenizer", False),
        ("model-00001-of-00002.safetensors", "model-0000?-of-*.safetensors", True),
    ],
)
def test_a_star_stays_within_its_folder(path: str, pattern: str, whether: bool) -> None:
    assert matches(path, pattern) is whether
