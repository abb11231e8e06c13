from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flux_engine.errors import CheckpointError
from flux_engine.models.vae import VaeSpec
from flux_engine.weights.folder import folder_sources
from flux_engine.weights.keymaps.layouts import PREFIX
from flux_engine.weights.load import LoadedModels, assemble, load_models
from tests.flux_engine.weights.published import NAMES, published, write_hollow
from tests.flux_engine.weights.watched import hashed
from tests.parity import diffusers_layout, tiny
from tests.parity.tiny import TextSpec, TinySpec

BF16 = torch.bfloat16
SPEC = TinySpec()
ROLES = {"ae": "vae", "vae": "vae", "clip": "clip", "t5": "t5"}
ONE_OF_EACH = ["flux1-dev", "flux1-dev-transformer-diffusers", "flux1-dev-ae",
               "flux1-dev-vae-diffusers", "clip", "t5"]  # fmt: skip
SHARDED = ["flux1-dev-transformer-diffusers", "flux1-schnell-transformer-diffusers", "t5"]


def refusal(tensors: dict[str, Tensor]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        assemble(tensors, where="file", dtype=BF16)
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_every_published_layout_loads_in_full_size(name: str) -> None:
    role, model = assemble(published(name).meta(), where=name, dtype=BF16)
    assert role == next((r for part, r in ROLES.items() if part in name.split("-")), "dit")
    assert sum(p.numel() for p in model.parameters()) == published(name).parameters
    assert {p.dtype for p in model.parameters()} == {BF16}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_prefix_before_every_key_changes_nothing(name: str) -> None:
    tensors = {PREFIX + key: tensor for key, tensor in published(name).meta().items()}
    _, model = assemble(tensors, where=name, dtype=BF16)
    assert sum(p.numel() for p in model.parameters()) == published(name).parameters


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_key_left_out_is_named_alone(name: str) -> None:
    tensors = published(name).meta()
    for key in sorted(tensors)[:: max(1, len(tensors) // 7)]:
        error = refusal({k: t for k, t in tensors.items() if k != key})
        assert (error.missing, error.unexpected, error.misshapen) == ((key,), (), ())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_key_too_many_is_named(name: str) -> None:
    error = refusal(published(name).meta() | {"ema.weight": torch.empty(1, device="meta")})
    assert (error.missing, error.unexpected, error.misshapen) == ((), ("ema.weight",), ())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_dimension_that_is_wrong_is_named_alone(name: str) -> None:
    """Where the first dimension differs; the last tells some widths, which may be any."""
    tensors = published(name).meta()
    for key in sorted(tensors)[:: max(1, len(tensors) // 7)]:
        shape = tensors[key].shape
        wrong = torch.empty(shape[0] + 1, *shape[1:], device="meta", dtype=BF16)
        error = refusal(tensors | {key: wrong})
        assert (error.missing, error.unexpected) == ((), ())
        assert [told.split(" (")[0] for told in error.misshapen] == [key]
        assert f"is {'×'.join(map(str, wrong.shape))}, should be" in error.misshapen[0]


@pytest.mark.parametrize("name", SHARDED)
def test_a_withheld_shard_is_refused(name: str) -> None:
    for withheld in published(name).files.values():
        kept = {k: t for k, t in published(name).meta().items() if k not in withheld}
        error = refusal(kept)
        assert error.missing
        assert set(error.missing) <= set(withheld)
        assert not error.unexpected


def test_all_three_kinds_of_fault_are_told_at_once() -> None:
    tensors = published("flux1-dev").meta()
    del tensors["final_layer.linear.bias"]
    tensors["text.weight"] = torch.empty(1, device="meta")
    tensors["img_in.bias"] = torch.empty(5, device="meta")
    error = refusal(tensors)
    assert error.missing == ("final_layer.linear.bias",)
    assert error.unexpected == ("text.weight",)
    assert error.misshapen == ("img_in.bias (is 5, should be 3072)",)
    assert "1 missing" in str(error)


def test_faults_are_told_under_the_names_that_the_file_has() -> None:
    tensors = {PREFIX + key: t for key, t in published("flux1-dev").meta().items()}
    del tensors[f"{PREFIX}img_in.bias"]
    assert refusal(tensors).missing == (f"{PREFIX}img_in.bias",)
    unfused = published("flux1-dev-transformer-diffusers").meta()
    del unfused["single_transformer_blocks.7.proj_mlp.weight"]
    assert refusal(unfused).missing == ("single_transformer_blocks.7.proj_mlp.weight",)


def test_two_layouts_mixed_are_refused() -> None:
    mixed = published("flux1-dev").meta() | published("flux1-dev-transformer-diffusers").meta()
    assert "mixed" in str(refusal(mixed))


def test_integers_in_the_place_of_weights_are_refused() -> None:
    tensors = published("flux1-dev").meta()
    tensors["img_in.bias"] = torch.empty(3072, dtype=torch.int8, device="meta")
    (told,) = refusal(tensors).misshapen
    assert told.startswith("img_in.bias (holds int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("model"), SPEC)


def test_a_folder_loads_as_four_models(folder: Path) -> None:
    files = folder_sources(folder)
    models = load_models(files.weights, dtype=torch.float32)
    assert models.dit is not None
    assert models.vae is not None
    assert models.clip is not None
    assert models.t5 is not None
    for model, weights in (
        (models.dit, tiny.transformer_weights(SPEC)),
        (models.vae, tiny.autoencoder_weights(SPEC)),
        (models.t5, tiny.t5_weights(SPEC)),
    ):
        assert all(torch.equal(model.get_parameter(key), weights[key]) for key in weights)
    assert set(models.fingerprint) == {
        "flux1-tiny.safetensors",
        "ae.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    }


def test_nothing_is_left_on_the_meta_device(folder: Path) -> None:
    models = load_models(folder_sources(folder).weights, dtype=BF16)
    for model in (models.dit, models.vae, models.clip, models.t5):
        assert model is not None
        tensors = [*model.parameters(), *model.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"cpu"}
        assert {t.dtype for t in tensors if t.is_floating_point()} == {BF16}


def test_one_file_loads_as_one_model(folder: Path) -> None:
    models = load_models([[folder / "ae.safetensors"]], dtype=torch.float32)
    assert models.vae is not None
    assert models.dit is models.clip is models.t5 is None


def test_shards_of_the_other_layout_load_as_the_same_model(tmp_path: Path, folder: Path) -> None:
    weights = diffusers_layout.transformer(tiny.transformer_weights(SPEC))
    weights = {key: tensor.contiguous() for key, tensor in weights.items()}
    keys = sorted(weights)
    shards = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, shard in enumerate(shards):
        save_file({key: weights[key] for key in keys[i::3]}, shard)
    theirs = load_models([shards], dtype=torch.float32).dit
    ours = load_models([[folder / "flux1-tiny.safetensors"]], dtype=torch.float32).dit
    assert ours is not None
    assert theirs is not None
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


def test_two_transformers_are_refused_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    one, other = folder / "flux1-tiny.safetensors", tmp_path / "flux1-other.safetensors"
    other.write_bytes(one.read_bytes())
    with pytest.raises(CheckpointError, match=r"tiny.* and .*other.*: both are the transformer"):
        load_models([[one], [other]], dtype=torch.float32)


@pytest.mark.parametrize(
    ("part", "other", "told"),
    [
        ("text_encoder_2", TinySpec(t5=TextSpec(width=32)), "64 channels, the T5 .* has 32"),
        ("text_encoder", TinySpec(clip=TextSpec(width=32)), "64 channels, the CLIP .* has 32"),
    ],
)
def test_parts_of_different_models_are_refused(
    part: str, other: TinySpec, told: str, folder: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "model.safetensors"
    config, weights = next((c, w) for name, c, w in tiny.text_encoders(other) if name == part)
    tiny.write_json(tmp_path / "config.json", config)
    save_file(weights, theirs)
    groups = [[folder / "flux1-tiny.safetensors"], [theirs]]
    with pytest.raises(CheckpointError, match=told):
        load_models(groups, dtype=torch.float32)


def test_an_autoencoder_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    ae = tmp_path / "ae.safetensors"
    other = TinySpec(vae=VaeSpec(widths=(32, 32), latent_channels=4))
    save_file(tiny.autoencoder_weights(other), ae)
    with pytest.raises(CheckpointError, match="64 channels, the autoencoder has 16"):
        load_models([[folder / "flux1-tiny.safetensors"], [ae]], dtype=torch.float32)


def test_a_group_without_files_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no files: .* 0 keys"):
        load_models([[]], dtype=torch.float32)


def test_a_text_encoder_without_its_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tiny.clip_weights(SPEC), file)
    with pytest.raises(CheckpointError, match=f"{file}: config.json is missing"):
        load_models([[file]], dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "size"), [("clip", 246_144_352), ("flux1-dev-vae-diffusers", 167_666_902)]
)
def test_a_file_of_the_published_size_loads(name: str, size: int, tmp_path: Path) -> None:
    (file,) = write_hollow(tmp_path, name)
    assert file.stat().st_size == size
    models: LoadedModels = load_models([[file]], dtype=BF16)
    model = models.clip or models.vae
    assert model is not None
    assert sum(p.numel() for p in model.parameters()) == published(name).parameters
    assert not any(p.any() for p in model.parameters())


def test_who_asks_for_no_fingerprint_waits_for_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hashed(monkeypatch, "digest")
    models = load_models(folder_sources(folder).weights, dtype=BF16)
    assert not asked
    assert models.fingerprint
    assert models.fingerprints["vae"]
    assert len(asked) == len(set(asked)) == len(models.fingerprint)  # each file once
