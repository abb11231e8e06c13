import os
from pathlib import Path

import pytest

from flux_engine.errors import SourceError
from flux_engine.request import LoraUse
from flux_engine.weights.lora.names import Sizes
from flux_engine.weights.lora.shelf import Shelf
from tests.flux_engine.weights.lora.written import LAYOUTS, TINY


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
