"""A local folder laid out as the FLUX.1-dev repository is."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flux_engine.errors import SourceError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class ModelFiles:
    """The parts of one model: weights by part (the shards of each), tokenizers, settings."""

    transformer: tuple[Path, ...]
    vae: tuple[Path, ...]
    text_encoder: tuple[Path, ...]
    text_encoder_2: tuple[Path, ...]
    tokenizer: Path
    tokenizer_2: Path
    scheduler: Path | None = None
    sampling: Path | None = None

    @property
    def weights(self) -> tuple[tuple[Path, ...], ...]:
        """The groups of files that `load_models` takes."""
        return self.transformer, self.vae, self.text_encoder, self.text_encoder_2


def folder_sources(folder: Path) -> ModelFiles:
    """Transformer: the one `flux1-*.safetensors`, else `transformer/`. VAE: `ae.safetensors`, else
    `vae/`. Text encoders and tokenizers in folders of their own. `scheduler/scheduler_config.json`
    and `sampling.json` may be absent.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    single = sorted(folder.glob("flux1-*.safetensors"))
    if len(single) > 1:
        several = ", ".join(file.name for file in single)
        raise SourceError(f"{folder}: several transformers, name one of them: {several}")
    ae = folder / "ae.safetensors"
    files = ModelFiles(
        transformer=tuple(single) or chosen(folder / "transformer"),
        vae=(ae,) if ae.is_file() else chosen(folder / "vae"),
        text_encoder=chosen(folder / "text_encoder"),
        text_encoder_2=chosen(folder / "text_encoder_2"),
        tokenizer=folder / "tokenizer",
        tokenizer_2=folder / "tokenizer_2",
        scheduler=_if_there(folder / "scheduler" / "scheduler_config.json"),
        sampling=_if_there(folder / "sampling.json"),
    )
    names = ("transformer", "vae", "text_encoder", "text_encoder_2")
    absent = [
        f"{name}/*.safetensors"
        for name, group in zip(names, files.weights, strict=True)
        if not group
    ]
    absent += [f"{p.name}/" for p in (files.tokenizer, files.tokenizer_2) if not p.is_dir()]
    if absent:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise SourceError(f"{folder}: without {', '.join(absent)}; there is {there}")
    return files


def chosen(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of one checkpoint in `folder`, sorted; none if there is no such file.

    Copies of the same weights stand beside them in some repositories (`model.fp16.safetensors`
    beside `model.safetensors`): a plain name is taken before one with a variant. Shards that are
    not all there, and choices that a name does not decide, are errors.
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    sets: dict[str, list[Path]] = {}
    for file in files:
        shard = SHARD.fullmatch(file.name)
        sets.setdefault(f"{shard[1]} of {shard[3]}" if shard else file.stem, []).append(file)
    plain = {name: group for name, group in sets.items() if not _variant(name, sets)}
    indexed = [group for group in plain.values() if _in_index(group)]
    candidates = indexed if len(indexed) == 1 else list(plain.values())
    if len(candidates) > 1:
        names = ", ".join(file.name for group in candidates for file in group)
        raise SourceError(f"{folder}: several checkpoints, name one of them: {names}")
    return _whole(candidates[0]) if candidates else ()


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _variant(name: str, among: Iterable[str]) -> bool:
    """Whether `name` is another's with a variant in it: `model.fp16` beside `model`."""
    stem = name.split(" of ")[0]
    others = {other.split(" of ")[0] for other in among}
    return "." in stem and stem.split(".")[0] in others


def _in_index(group: Sequence[Path]) -> bool:
    """Whether an index beside these shards names exactly them."""
    shard = SHARD.fullmatch(group[0].name)
    index = group[0].with_name(f"{shard[1]}.safetensors.index.json") if shard else None
    if index is None or not index.is_file():
        return False
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{index}: not an index of shards: {error}") from error
    return named == {file.name for file in group}


def _whole(group: Sequence[Path]) -> tuple[Path, ...]:
    shards = [shard for file in group if (shard := SHARD.fullmatch(file.name))]
    if shards and len(shards) != int(shards[0][3]):
        numbers = {int(shard[2]) for shard in shards}
        absent = [str(i) for i in range(1, int(shards[0][3]) + 1) if i not in numbers]
        raise SourceError(
            f"{group[0].parent}: of the {shards[0][3]} shards of {shards[0][1]}, "
            f"number {', '.join(absent)} is not there"
        )
    return tuple(group)


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
