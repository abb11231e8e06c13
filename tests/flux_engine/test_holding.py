from pathlib import Path

import pytest
import torch
from torch import nn

from flux_engine import SettingError, holding, load_engine
from flux_engine.holding import has_blocks, hold_on_card, images_of, open_bits, settle_bits
from flux_engine.models.fp8 import narrow_in
from flux_engine.vram import store
from flux_engine.vram.card import HostCard
from flux_engine.vram.estimates import GIB, Machine
from flux_engine.vram.units import units_of
from tests.flux_engine.held import ROOMY
from tests.flux_engine.vram.streaming import narrow_dit, small_dit


def test_models_with_blocks_can_keep_eight_bits() -> None:
    engine = load_engine(device="cpu")
    assert {name: has_blocks(model) for name, model in engine.models.items()} == {
        "dit": True, "vae": False, "clip": True, "t5": True,
    }  # fmt: skip


def test_open_bits_are_settled_to_what_they_would_have_been() -> None:
    open_bits(dit := small_dit(), products=False)
    assert all(layer.wide is not None for _, layer in narrow_in(dit))
    settle_bits(dit)
    for (name, layer), (other_name, other) in zip(
        narrow_in(dit), narrow_in(narrow_dit()), strict=True
    ):
        assert name == other_name
        assert layer.wide is None
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.weight_scale, other.weight_scale)


def test_widths_that_products_do_not_take_are_named() -> None:
    odd = nn.Module()
    odd.single_blocks = nn.ModuleList([nn.Sequential(nn.Linear(24, 32))])
    with pytest.raises(SettingError, match=r"multiples of 16; single_blocks\.0\.0 \(32×24\)"):
        open_bits(odd, products=True)


def test_images_are_narrowed_once_for_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.STORE_VARIABLE, str(tmp_path))
    plain = load_engine(device="cpu", torch_dtype=torch.float32)
    wide = images_of(plain, "dit")
    expected = load_engine(device="cpu", torch_dtype=torch.float32, approximate=["fp8"])
    first = images_of(expected, "dit")
    assert len(list(tmp_path.glob("*/dit.images"))) == 2  # wide, and narrow
    open_bits(plain.dit, products=True)
    plain.approximation = expected.approximation
    monkeypatch.setattr(store, "_build", None)  # nothing is built again, nothing narrowed
    again = images_of(plain, "dit")
    assert all(layer.wide is not None for _, layer in narrow_in(plain.dit))
    for unit in units_of(expected.dit):
        assert torch.equal(first[unit.name].flat, again[unit.name].flat)
    assert sum(i.nbytes for i in first.values()) < sum(i.nbytes for i in wide.values())


def test_images_are_of_the_models_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.STORE_VARIABLE, str(tmp_path))
    engine = load_engine(device="cpu", torch_dtype=torch.float32)
    images_of(engine, "dit")
    others = {"vae": {"other.safetensors": "0" * 64}}
    engine.fingerprints |= others  # another autoencoder beside it
    engine.fingerprint |= others["vae"]
    images_of(engine, "dit")
    assert len(list(tmp_path.glob("*/dit.images"))) == 1
    engine.fingerprints["dit"] = {"other.safetensors": "1" * 64}
    images_of(engine, "dit")
    assert len(list(tmp_path.glob("*/dit.images"))) == 2


def test_what_is_free_is_asked_when_libraries_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.STORE_VARIABLE, str(tmp_path))
    engine = load_engine(device="cpu", torch_dtype=torch.float32)
    free = [10 * GIB]

    def measured(*_: object) -> Machine:
        free[0] -= GIB  # cuBLAS and others
        return ROOMY

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 16 * GIB))
    monkeypatch.setattr(holding, "CudaCard", lambda _: HostCard())
    monkeypatch.setattr(holding, "check_products", lambda _: None)
    monkeypatch.setattr(holding, "measured", measured)
    hold_on_card(engine, None, {})
    assert engine.planning.machine is not None
    assert engine.planning.machine.memory == 9 * GIB - holding.MARGIN
    assert engine.residency.limit == 9 * GIB - holding.MARGIN
    for asked, expected in ((4.0, 4), (-4.0, 12), (100.0, 16)):
        assert holding.memory_limit(engine.device, asked) == expected * GIB


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(store.STORE_VARIABLE, str(tmp_path / "file"))
    engine = load_engine(device="cpu", torch_dtype=torch.float32)
    images = images_of(engine, "vae")
    assert "each worker has its own" in caplog.text
    assert images["rest"].nbytes > 0
