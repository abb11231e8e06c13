import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flux_engine import load_engine
from flux_engine.defaults import model_folder
from flux_engine.errors import CheckpointError, SettingError
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.weights.export import write_model, write_transformer
from flux_engine.weights.keymaps.transformer import BFL, DIFFUSERS
from flux_engine.weights.load import load_models
from flux_engine.weights.reader import read_metadata, read_shapes
from tests.flux_engine.asking import asked, noise

SPEC = FluxSpec(
    width=64, heads=2, axes=(4, 14, 14), inner=128, double_blocks=2, single_blocks=2,
    text_width=24, pooled_width=40,
)  # fmt: skip
BUNDLED = model_folder("flux-shapes")


def weights(spec: FluxSpec = SPEC) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = FluxTransformer(spec).state_dict()
    return {name: noise(n, *t.shape) for n, (name, t) in enumerate(shapes.items())}


@pytest.mark.parametrize("layout", [BFL, DIFFUSERS])
@pytest.mark.parametrize("most", [10**9, 200_000])
def test_what_is_written_is_read_again(layout: str, most: int, tmp_path: Path) -> None:
    made = weights()
    files = write_transformer(
        tmp_path, made, SPEC, layout=layout, dtype=torch.float32, shard_bytes=most,
        metadata={"step": "7"},
    )  # fmt: skip
    assert (len(files) > 3) == (layout == DIFFUSERS and most < 10**9)
    assert read_metadata(files[0]) == {"format": "pt", "step": "7"}
    read = load_models([files], dtype=torch.float32).dit
    assert read is not None
    assert all(torch.equal(read.get_parameter(name), tensor) for name, tensor in made.items())


def test_shards_are_small_and_an_index_names_them(tmp_path: Path) -> None:
    files = write_transformer(
        tmp_path, weights(), SPEC, layout=DIFFUSERS, dtype=torch.float32, shard_bytes=200_000
    )
    index = json.loads(
        (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert index["weight_map"].keys() == read_shapes(files).keys()
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == 4 * sum(t.numel() for t in weights().values())
    # a tensor that is larger than a shard has one of its own
    sizes = [file.stat().st_size for file in files if len(read_shapes([file])) > 1]
    assert max(sizes) < 200_000 + 10_000


def test_weights_that_are_not_the_transformers_are_refused(tmp_path: Path) -> None:
    made = weights()
    del made["img_in.bias"]
    with pytest.raises(SettingError, match=r"weights to write: img_in.bias on one side"):
        write_transformer(tmp_path, made, SPEC)
    with pytest.raises(SettingError, match="'mine': a model's folder is opened by a name like"):
        write_transformer(tmp_path, weights(), SPEC, name="mine")


def trained() -> dict[str, Tensor]:
    dit = load_models([sorted(BUNDLED.glob("flux1-*"))], dtype=torch.float32).dit
    assert dit is not None
    return {name: 1.01 * tensor for name, tensor in dit.state_dict().items()}


def spec_of(folder: Path) -> FluxSpec:
    return load_engine(folder, device="cpu").dit.spec


def test_a_models_folder_with_another_transformer_opens_and_draws(tmp_path: Path) -> None:
    spec, made = spec_of(BUNDLED), trained()
    to = write_model(tmp_path / "mine", BUNDLED, made, spec, name="flux1-mine", dtype=torch.float32)
    assert sorted(path.name for path in to.glob("flux1-*")) == ["flux1-mine.safetensors"]
    engine = load_engine(to, torch_dtype=torch.float32, device="cpu")
    assert all(torch.equal(engine.dit.get_parameter(n), made[n]) for n in made)
    (before,) = load_engine(BUNDLED, torch_dtype=torch.float32, device="cpu").generate([asked()])
    (after,) = engine.generate([asked()])
    assert not torch.equal(before.pixels, after.pixels)
    assert (to / "sampling.json").read_bytes() == (BUNDLED / "sampling.json").read_bytes()


def test_the_transformers_folder_stays_one(tmp_path: Path) -> None:
    spec, made = spec_of(BUNDLED), trained()
    source = tmp_path / "source"
    write_model(source, BUNDLED, made, spec)
    (source / "flux1-trained.safetensors").unlink()
    write_transformer(source, made, spec, layout=DIFFUSERS)
    (source / "transformer" / "config.json").write_text("{}")
    (source / "vae").mkdir()
    (source / "vae" / "other.safetensors").write_bytes(b"not read")
    to = write_model(tmp_path / "to", source, made, spec)
    there = {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()}
    assert "transformer/diffusion_pytorch_model.safetensors" in there
    assert "transformer/config.json" in there
    assert not [name for name in there if "flux1-" in name or "other" in name]
    assert spec_of(to) == spec


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    spec, made = spec_of(BUNDLED), trained()
    made["img_in.bias"] = torch.full_like(made["img_in.bias"], float("nan"))
    with pytest.raises(CheckpointError, match=r"img_in.bias: has values that are no numbers"):
        write_model(tmp_path / "mine", BUNDLED, made, spec)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is there already"):
        write_model(tmp_path, BUNDLED, trained(), spec_of(BUNDLED))
