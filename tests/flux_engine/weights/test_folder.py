import json
from pathlib import Path

import pytest

from flux_engine.errors import SourceError
from flux_engine.weights.folder import chosen, folder_sources

TRANSFORMER = tuple(
    f"transformer/diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
)
T5 = ("text_encoder_2/model-00001-of-00002.safetensors",
      "text_encoder_2/model-00002-of-00002.safetensors")  # fmt: skip
TEXT = ("text_encoder/model.safetensors", *T5, "tokenizer/vocab.json", "tokenizer_2/spiece.model")
VAE = "vae/diffusion_pytorch_model.safetensors"


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    return path


def names(path: Path, files: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(str(file.relative_to(path)) for file in files)


def test_the_published_folder_is_read_by_its_single_files(tmp_path: Path) -> None:
    folder(tmp_path, "flux1-dev.safetensors", "ae.safetensors", *TRANSFORMER, VAE, *TEXT)
    folder(tmp_path, "scheduler/scheduler_config.json", "sampling.json")
    found = folder_sources(tmp_path)
    assert [names(tmp_path, group) for group in found.weights] == [
        ("flux1-dev.safetensors",),
        ("ae.safetensors",),
        ("text_encoder/model.safetensors",),
        T5,
    ]
    assert found.tokenizer == tmp_path / "tokenizer"
    assert found.tokenizer_2 == tmp_path / "tokenizer_2"
    assert found.scheduler == tmp_path / "scheduler" / "scheduler_config.json"
    assert found.sampling == tmp_path / "sampling.json"


def test_without_single_files_the_diffusers_folders_serve(tmp_path: Path) -> None:
    found = folder_sources(folder(tmp_path, *TRANSFORMER, VAE, *TEXT))
    assert names(tmp_path, found.transformer) == TRANSFORMER
    assert names(tmp_path, found.vae) == (VAE,)
    assert found.scheduler is None
    assert found.sampling is None


def test_two_transformers_are_listed(tmp_path: Path) -> None:
    folder(tmp_path, "flux1-dev.safetensors", "flux1-schnell.safetensors", VAE, *TEXT)
    with pytest.raises(SourceError, match=r"flux1-dev.safetensors, flux1-schnell.safetensors"):
        folder_sources(tmp_path)


def test_everything_that_is_absent_is_named_at_once(tmp_path: Path) -> None:
    folder(tmp_path, "flux1-dev.safetensors", "tokenizer/vocab.json", "text_encoder/model.bin")
    absent = r"vae/\*.safetensors, text_encoder/\*.safetensors, text_encoder_2/\*.safetensors"
    with pytest.raises(SourceError, match=absent + r", tokenizer_2/; there is flux1-dev"):
        folder_sources(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        folder_sources(tmp_path / "flux")


def test_a_withheld_shard_is_named(tmp_path: Path) -> None:
    folder(tmp_path, TRANSFORMER[0], TRANSFORMER[2], VAE, *TEXT)
    with pytest.raises(SourceError, match=r"of the 00003 shards .*, number 2 is not there"):
        folder_sources(tmp_path)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model.fp16.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (
            ["m.fp16-00001-of-00001.safetensors", "m-00001-of-00001.safetensors"],
            ["m-00001-of-00001.safetensors"],
        ),
        (["model.bin"], []),
    ],
)
def test_a_plain_name_goes_before_a_variant(
    there: list[str], taken: list[str], tmp_path: Path
) -> None:
    assert [file.name for file in chosen(folder(tmp_path, *there))] == taken


def test_two_checkpoints_in_one_folder_are_listed(tmp_path: Path) -> None:
    folder(tmp_path, "model.safetensors", "other.safetensors")
    with pytest.raises(SourceError, match=r"model.safetensors, other.safetensors"):
        chosen(tmp_path)


def test_an_index_decides_between_shards_and_a_copy_in_one_piece(tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    folder(tmp_path, "merged.safetensors", *shards)
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in chosen(tmp_path)] == shards
