import json
import os
from pathlib import Path

import pytest

from flux_engine.errors import SourceError
from flux_engine.request import LoraUse
from flux_engine.weights.hub import HubName
from flux_engine.weights.lora.changes import LowRank
from flux_engine.weights.lora.file import Lora
from flux_engine.weights.lora.names import Sizes
from flux_engine.weights.lora.shelf import Shelf
from flux_engine.weights.source import ModelSource
from tests.flux_engine.weights.fetching import fetched
from tests.flux_engine.weights.lora.written import LAYOUTS, TINY
from tests.flux_engine.weights.standin_hub import StandInHub, running


def saved(folder: Path, *names: str) -> list[LoraUse]:
    drawn = LAYOUTS["1 diffusers"](TINY)
    return [LoraUse(path=str(drawn.save(folder, f"{name}.safetensors"))) for name in names]


def test_a_lora_is_read_once_as_long_as_there_is_room(tmp_path: Path) -> None:
    one, two, three = saved(tmp_path, "one", "two", "three")
    shelf = Shelf(Sizes(TINY))
    size = shelf.take(one).nbytes
    shelf = Shelf(Sizes(TINY), limit=2 * size)
    for use, reads in ((one, 1), (two, 2), (one, 2), (three, 3), (one, 3), (two, 4), (three, 5)):
        assert shelf.take(use) is shelf.take(use)
        assert shelf.reads == reads
        assert shelf.nbytes <= 2 * size


def test_one_larger_than_the_room_is_served_all_the_same(tmp_path: Path) -> None:
    (use,) = saved(tmp_path, "one")
    shelf = Shelf(Sizes(TINY), limit=1)
    assert shelf.take(use).parts


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    (use,) = saved(tmp_path, "one")
    shelf = Shelf(Sizes(TINY))
    before = shelf.take(use)
    LAYOUTS["1 diffusers, q only"](TINY).save(tmp_path, "new.safetensors")
    os.replace(tmp_path / "new.safetensors", tmp_path / "one.safetensors")
    assert len(shelf.take(use).parts) < len(before.parts)


def alphas(lora: Lora) -> set[float]:
    return {part.change.alpha for part in lora.parts if isinstance(part.change, LowRank)}


def test_another_alpha_beside_the_file_makes_it_another_lora(tmp_path: Path) -> None:
    drawn = LAYOUTS["2 peft, config beside"](TINY)
    use, shelf = LoraUse(path=str(drawn.save(tmp_path))), Shelf(Sizes(TINY))
    before = shelf.take(use)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 31}))
    after = shelf.take(use)
    assert before.digest != after.digest
    assert alphas(before) != alphas(after)


def test_a_link_has_the_configuration_that_stands_beside_itself(tmp_path: Path) -> None:
    """As in the hub's own cache."""
    drawn = LAYOUTS["2 peft, config beside"](TINY)
    own, shelf = drawn.save(tmp_path / "snapshot"), Shelf(Sizes(TINY))
    expected = shelf.take(LoraUse(path=str(own)))
    (tmp_path / "blobs").mkdir()
    own.symlink_to(own.rename(tmp_path / "blobs" / "0123"))
    linked = shelf.take(LoraUse(path=str(own)))
    assert linked.digest == expected.digest
    assert alphas(linked) == alphas(expected)


@pytest.mark.parametrize("hub_name", ["modelscope", "huggingface"])
def test_peft_s_configuration_comes_from_a_hub_too(hub_name: HubName, tmp_path: Path) -> None:
    drawn = LAYOUTS["2 peft, config beside"](TINY)
    local = drawn.save(tmp_path / "local")
    files = {f"deep/{file.name}": file.read_bytes() for file in local.parent.iterdir()}
    store = tmp_path / "store"
    with running(StandInHub("someone/owls", files)) as hub:
        source = ModelSource(None, "someone/owls", "**/*.safetensors", hub_name)
        outcome = fetched(source, store, hub.url)
    (path,) = outcome.paths
    shelf = Shelf(Sizes(TINY))
    brought = shelf.take(LoraUse(path=str(store / path)))
    expected = shelf.take(LoraUse(path=str(local)))
    assert brought.digest == expected.digest
    assert alphas(brought) == alphas(expected)


def test_a_repository_is_asked_for_its_one_lora_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXMILL_MODELS", str(tmp_path))
    folder = tmp_path / "someone" / "owls"
    LAYOUTS["1 diffusers"](TINY).save(folder, "owls.safetensors")
    use = LoraUse(model_id="someone/owls", download_source="huggingface", scale=0.5)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers: files put there serve
    assert Shelf(Sizes(TINY)).file(use) == folder / "owls.safetensors"
    LAYOUTS["1 diffusers"](TINY).save(folder, "bees.safetensors")
    with pytest.raises(SourceError, match=r"these are 2: bees\.safetensors, owls\.safetensors"):
        Shelf(Sizes(TINY)).file(use)
