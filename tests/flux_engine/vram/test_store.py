import json
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.vram import store
from flux_engine.vram.store import ALIGN, Image, Layout, in_memory, on_disk
from flux_engine.vram.units import Unit, units_of


def model() -> nn.Module:
    torch.manual_seed(0)
    return FluxTransformer(FluxSpec(64, 2, (4, 14, 14), 128, 2, 2)).requires_grad_(False)


def odd() -> dict[str, Tensor]:
    """Tensors whose sizes are no multiples of anything."""
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "c": torch.arange(3),
        "d": torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last),
        "e": torch.tensor(1.5),
        "f": torch.randn(4, 4).to(torch.float8_e4m3fn),
    }


def same(images: dict[str, Image], units: list[Unit]) -> bool:
    return all(
        torch.equal(view.float(), unit.tensors[key].float())
        for unit in units
        for key, view in images[unit.name].layout.views(images[unit.name].flat).items()
    )


def test_views_of_a_flat_image_are_the_tensors() -> None:
    unit = Unit("odd", "rest", odd())
    image = in_memory([unit])["odd"]
    views = image.layout.views(image.flat)
    assert list(views) == list(unit.tensors)
    for key, tensor in unit.tensors.items():
        assert (views[key].dtype, views[key].shape) == (tensor.dtype, tensor.shape)
        assert views[key].stride() == tensor.stride()
        assert views[key].storage_offset() * tensor.element_size() % ALIGN == 0
        assert torch.equal(views[key].float(), tensor.float())


def test_a_changed_image_leaves_the_stored_one_alone() -> None:
    image = in_memory([Unit("odd", "rest", odd())])["odd"]
    before = image.flat.clone()
    changed = image.changed({"a": torch.ones(3, 5)})
    assert torch.equal(image.flat, before)
    views = changed.layout.views(changed.flat)
    assert views["a"].sum() == 15
    assert torch.equal(views["b"], image.layout.views(image.flat)["b"])


def test_images_are_built_once_and_mapped_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = units_of(model())
    assert same(on_disk(units, tmp_path, "k", "dit"), units)
    monkeypatch.setattr(store, "_build", None)
    again = on_disk(units, tmp_path, "k", "dit")
    assert same(again, units)
    # mapped copy-on-write: nobody who scribbles harms the others
    again["rest"].flat.zero_()
    assert same(on_disk(units, tmp_path, "k", "dit"), units)


@pytest.mark.parametrize("harm", ["cut", "other layout", "no index", "half an index"])
def test_what_is_not_whole_or_of_another_layout_is_built_again(tmp_path: Path, harm: str) -> None:
    units = units_of(model())
    on_disk(units, tmp_path, "k", "dit")
    images, index = tmp_path / "k" / "dit.images", tmp_path / "k" / "dit.json"
    match harm:
        case "cut":
            images.write_bytes(images.read_bytes()[:-1])
        case "other layout":
            index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 0}))
        case "no index":
            index.unlink()
        case "half an index":
            index.write_text(index.read_text()[:100])
    assert same(on_disk(units, tmp_path, "k", "dit"), units)


def test_workers_that_start_together_build_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, built = units_of(model()), list[Path]()
    build = store._build

    def counted(place: Path, *rest: object) -> None:
        built.append(place)
        build(place, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_build", counted)
    threads = [
        threading.Thread(target=on_disk, args=(units, tmp_path, "k", "dit")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_the_cache_has_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(store.STORE_VARIABLE, str(tmp_path))
    assert store.default_folder() == tmp_path
    monkeypatch.delenv(store.STORE_VARIABLE)
    assert store.default_folder().name == "images"


def test_a_layout_knows_its_size() -> None:
    layout = Layout.of(odd())
    assert layout.nbytes == 6 * ALIGN


def test_images_that_are_not_ours_to_write_to_are_mapped_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    units = units_of(model())
    on_disk(units, tmp_path, "k", "dit")
    map_file = torch.from_file

    def read_only(name: str, *, shared: bool, **how: object) -> Tensor:
        if shared:
            raise RuntimeError(
                f"unable to open file <{name}> in read-write mode: Permission denied"
            )
        return map_file(name, shared=shared, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "from_file", read_only)
    assert same(on_disk(units, tmp_path, "k", "dit", writable=True), units)
    assert "cannot be written to" in caplog.text


def test_images_are_on_the_disk_before_the_index_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[list[str]] = []
    sync = os.fsync

    def told(file: int) -> None:
        synced.append(sorted(path.name for path in (tmp_path / "k").iterdir()))
        sync(file)

    monkeypatch.setattr(os, "fsync", told)
    on_disk(units_of(model()), tmp_path, "k", "dit")
    assert synced == [["dit.images.lock", "dit.part"]]
