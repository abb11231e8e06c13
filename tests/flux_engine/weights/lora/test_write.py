import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flux_engine.errors import SettingError
from flux_engine.weights.lora.file import Lora, full_delta
from flux_engine.weights.lora.layouts import LAYOUTS, LayoutName
from flux_engine.weights.lora.names import Sizes, module_shapes
from flux_engine.weights.lora.read import lora_file, read_lora
from flux_engine.weights.lora.write import Written, write_lora
from tests.flux_engine.weights.lora import written
from tests.flux_engine.weights.lora.written import TINY, Drawn

LOW_RANK = [
    name
    for name in written.LAYOUTS
    if not name.startswith(("5", "13")) and "LoHa" not in name and "LoKr" not in name
]


def read(folder: Path, drawn: Drawn) -> Lora:
    return read_lora(drawn.save(folder), Sizes(TINY))


def changes(lora: Lora) -> dict[str, torch.Tensor]:
    """ΔW by module; rows that no part means are zero."""
    return {
        module: full_delta(parts, torch.empty(module_shapes(TINY)[module], device="meta"))
        for (_, module, parameter), parts in lora.targets.items()
        if parameter == "weight"
    }


def rewritten(
    lora: Lora, to: Path, layout: LayoutName, rank: int | None = None
) -> tuple[Lora, Written]:
    made = write_lora(lora, to, layout, rank=rank)
    return read_lora(lora_file(made.files[:1]), Sizes(TINY)), made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", LOW_RANK)
def test_what_is_written_means_what_was_read(source: str, layout: str, tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS[source](TINY))
    again, made = rewritten(lora, tmp_path / "out" / "lora.safetensors", layout)  # type: ignore[arg-type]
    wanted, here = changes(lora), changes(again)
    assert wanted.keys() == here.keys()
    for module, delta in wanted.items():
        assert (here[module] - delta).norm() <= 1e-6 * delta.norm(), module
    assert not made.lost


@pytest.mark.parametrize("first", LAYOUTS)
def test_a_tour_through_all_five_layouts_comes_home(first: LayoutName, tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS["1 diffusers, q only"](TINY))
    names = list(LAYOUTS)
    start = names.index(first)
    here = lora
    for n, layout in enumerate([*names[start:], *names[:start], first]):
        here, _ = rewritten(here, tmp_path / f"{n}.safetensors", layout)
    for module, delta in changes(lora).items():
        assert (changes(here)[module] - delta).norm() <= 1e-6 * delta.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_written_twice_has_the_same_bytes(layout: LayoutName, tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS["3 kohya"](TINY))
    one = write_lora(lora, tmp_path / "one", layout).files
    other = write_lora(lora, tmp_path / "other", layout).files
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in other]


def test_split_and_fused_keep_their_ranks_both_ways(tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS["1 diffusers"](TINY))
    fused, _ = rewritten(lora, tmp_path / "fused.safetensors", "kohya")
    split, _ = rewritten(fused, tmp_path / "split.safetensors", "diffusers")

    def ranks(one: Lora) -> list[int]:
        return [part.change.rank for part in one.parts]  # type: ignore[union-attr]

    assert ranks(split) == ranks(lora)
    qkv = [p for p in fused.parts if p.place.module == "double_blocks.0.img_attn.qkv"]
    three = [p for p in lora.parts if p.place.module == "double_blocks.0.img_attn.qkv"]
    assert ranks(Lora("", tuple(qkv), lora.sizes)) == [
        sum(ranks(Lora("", tuple(three), lora.sizes)))
    ]


def test_alpha_is_kept_where_the_layout_has_a_place_and_folded_where_not(tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS["3 kohya"](TINY))
    alphas = {p.place.module: p.change.alpha for p in lora.parts}  # type: ignore[union-attr]
    for layout, kept in (("bfl", True), ("kohya", True), ("diffsynth", False)):
        again, _ = rewritten(lora, tmp_path / f"{layout}.safetensors", layout)  # type: ignore[arg-type]
        here = {p.place.module: p.change.alpha for p in again.parts}  # type: ignore[union-attr]
        assert (here == alphas) is kept
    made = write_lora(lora, tmp_path / "peft", "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert {config["lora_alpha"], *config["alpha_pattern"].values()} >= {1.0, 2.0}
    assert made.files[0].name == "adapter_model.safetensors"


def test_the_default_file_says_what_it_is(tmp_path: Path) -> None:
    drawn = written.LAYOUTS["3 kohya"](TINY)
    drawn.metadata = {"ss_seed": "7", "modelspec.title": "Owls", "private": "x"}
    lora = read(tmp_path, drawn)
    (file,) = write_lora(lora, tmp_path / "out.safetensors").files
    with safe_open(file, "pt") as opened:
        words = opened.metadata()
    assert words["ss_seed"] == "7"
    assert words["modelspec.title"] == "Owls"
    assert "private" not in words
    assert words["modelspec.architecture"] == "flux-1-dev/lora"
    assert words["modelspec.hash_sha256"] == f"0x{words['sshs_model_hash']}"
    config = json.loads(words["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (2, 2.0)
    assert config["transformer.rank_pattern"]["^context_embedder"] == 3
    assert "transformer_blocks.0.attn.to_q" in config["transformer.target_modules"]


def test_a_type_is_kept_unless_something_would_be_lost(tmp_path: Path) -> None:
    drawn = written.LAYOUTS["3 kohya"](TINY)
    drawn.tensors = {
        key: tensor.bfloat16() if tensor.dim() else tensor for key, tensor in drawn.tensors.items()
    }
    lora = read(tmp_path, drawn)
    assert write_lora(lora, tmp_path / "a", "kohya").dtype == torch.bfloat16
    folded = write_lora(lora, tmp_path / "b", "diffusers")
    assert (folded.dtype, folded.rounded) == (torch.float32, 0.0)
    asked = write_lora(lora, tmp_path / "c", "diffusers", dtype=torch.bfloat16)
    assert asked.dtype == torch.bfloat16
    assert 0.0 < asked.rounded < 0.004


def test_values_beyond_a_type_are_refused(tmp_path: Path) -> None:
    drawn = written.LAYOUTS["1 diffusers"](TINY)
    name = "transformer.proj_out.lora_B.weight"
    drawn.tensors[name] = drawn.tensors[name] * 1e6
    lora = read(tmp_path, drawn)
    with pytest.raises(SettingError, match=r"proj_out\.lora_B\.weight: has values beyond"):
        write_lora(lora, tmp_path / "a", dtype=torch.float16)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("source", ["9 LyCORIS LoHa", "9 LyCORIS LoKr", "13 full differences"])
def test_what_is_not_low_rank_is_carried_as_it_is_or_refused(source: str, tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS[source](TINY))
    with pytest.raises(SettingError, match=r"rank \(SVD\)|has no place"):
        write_lora(lora, tmp_path / "a.safetensors", "diffsynth")
    if source != "9 LyCORIS LoHa":  # its q, k, v are apart, which these layouts fuse
        again, _ = rewritten(lora, tmp_path / "b.safetensors", "bfl")
        for module, delta in changes(lora).items():
            assert (changes(again)[module] - delta).norm() <= 1e-6 * delta.norm()


def test_a_rank_is_the_best_of_that_rank_and_its_loss_is_told(tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS["9 LyCORIS LoKr"](TINY))
    again, made = rewritten(lora, tmp_path / "a.safetensors", "diffusers", 3)
    assert all(part.change.rank <= 3 for part in again.parts)  # type: ignore[union-attr]
    fused, lost = rewritten(lora, tmp_path / "b.safetensors", "kohya", 3)
    for module, delta in changes(lora).items():
        best = torch.linalg.svdvals(delta.double())
        bound = float(best[3:].square().sum().sqrt() / best.square().sum().sqrt())
        error = float((changes(fused)[module] - delta).norm() / delta.norm())
        assert error == pytest.approx(bound, abs=0.02), module
        if error > 1e-4:
            told = lost.lost[next(p.name for p in lora.parts if p.place.module == module)]
            assert told == pytest.approx(error, rel=0.01)
    assert made.lost


def test_a_lower_rank_of_a_low_rank_file_is_exact_by_its_singular_values(tmp_path: Path) -> None:
    lora = read(tmp_path, written.LAYOUTS["3 kohya"](TINY))
    again, made = rewritten(lora, tmp_path / "a.safetensors", "bfl", 2)
    for module, delta in changes(lora).items():
        best = torch.linalg.svdvals(delta.double())
        bound = float(best[2:].square().sum().sqrt() / best.square().sum().sqrt())
        error = float((changes(again)[module] - delta).norm() / delta.norm())
        assert error == pytest.approx(bound, abs=1e-4)
        assert made.lost.get(module, 0.0) == pytest.approx(bound, abs=1e-6)


def test_encoders_go_where_there_is_a_place_for_them(tmp_path: Path) -> None:
    drawn = written.encoders()
    lora = read(tmp_path, drawn)
    for layout in ("kohya", "bfl"):
        again, _ = rewritten(lora, tmp_path / f"{layout}.safetensors", layout)  # type: ignore[arg-type]
        assert again.targets.keys() == lora.targets.keys()
    with pytest.raises(SettingError, match="diffusers has no place for LoRAs of t5: lora_te3_"):
        write_lora(lora, tmp_path / "a.safetensors", "diffusers")


def test_dora_magnitudes_go_with_their_rows(tmp_path: Path) -> None:
    lora = read(tmp_path, written.dora(TINY))
    for layout in ("kohya", "bfl", "diffusers", "peft"):
        again, _ = rewritten(lora, tmp_path / layout, layout)  # type: ignore[arg-type]
        for (role, module, parameter), parts in lora.targets.items():
            generator = torch.Generator().manual_seed(1)
            base = torch.randn(module_shapes(TINY)[module], generator=generator)
            wanted = full_delta(parts, base)
            made = full_delta(again.targets[role, module, parameter], base)
            assert (made - wanted).norm() <= 1e-6 * wanted.norm()
    with pytest.raises(SettingError, match="has DoRA magnitudes, for which diffsynth has no place"):
        write_lora(lora, tmp_path / "a.safetensors", "diffsynth")


def test_norms_and_biases_are_kept_by_the_layout_that_has_them(tmp_path: Path) -> None:
    drawn = written.control(TINY)
    drawn.tensor("double_blocks.1.img_attn.norm.query_norm.scale", 32)
    drawn.tensor("single_blocks.0.norm.key_norm.scale", 32)
    lora = read(tmp_path, drawn)
    again, made = rewritten(lora, tmp_path / "a.safetensors", "bfl")
    assert again.targets.keys() == lora.targets.keys()
    for target, parts in lora.targets.items():
        if target[2] != "weight":
            here = again.targets[target]
            assert torch.equal(parts[0].change.tensors[0], here[0].change.tensors[0])
    assert "diffusion_model.single_blocks.0.norm.key_norm.scale.set_weight" in load_file(
        made.files[0]
    )
    with pytest.raises(SettingError, match=r"query_norm: is a norm's scale"):
        write_lora(lora, tmp_path / "b.safetensors", "diffusers")
