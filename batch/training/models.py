"""The files of a job's model by what they hold; each part is loaded when it is asked for."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batch.errors import JobError
from batch.targets.teacher import READERS
from flux_engine.assembly import open_model, timestep_shift, tokenizer_folder
from flux_engine.defaults import model_folder
from flux_engine.encode import PictureCoder, TextModels, layout_for
from flux_engine.errors import SourceError
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.text import load_tokenizer
from flux_engine.models.vae import SCALE, SHIFT
from flux_engine.weights.fingerprint import fingerprint
from flux_engine.weights.folder import ModelFiles, files_in
from flux_engine.weights.keymaps.recipe import Role
from flux_engine.weights.load import ROLES, LoadedModels, load_models, on_paper
from flux_engine.weights.source import ModelSource, fetch
from schemas.training import TrainJob

logger = logging.getLogger(__name__)


class ModelParts:
    """A job's model. SourceError and CheckpointError as of the engine."""

    def __init__(self, job: TrainJob) -> None:
        self.job, self.dtype = job, getattr(torch, job.torch_dtype)
        self.folder: ModelFiles | None = None
        groups, names = self._groups()
        self.files: dict[Role, tuple[Path, ...]] = {}
        self.named: dict[Role, str] = {}  # as the job calls a part
        self._fingerprints: dict[Role, dict[str, str]] = {}
        for group, name in zip(groups, names, strict=True):
            (role,) = on_paper([group], axes=job.axes_dim)
            if role in self.files:
                raise JobError(f"{name} and {self.named[role]}: both are {ROLES[role]}")
            self.files[role], self.named[role] = tuple(group), name
        self.need("dit", "there is something to train")
        if wrong := [n for n in job.fp8_models if n not in ("dit", self.named["dit"])]:
            raise JobError(
                f"fp8_models {', '.join(wrong)}: is not the transformer, which alone is kept in "
                f"eight bits here; that is {self.named['dit']}"
            )

    def _groups(self) -> tuple[list[Sequence[Path]], list[str]]:
        job = self.job
        groups: list[Sequence[Path]] = []
        names: list[str] = []
        if isinstance(job.model, str):
            self.folder, found = open_model(job.model)
            return list(found), [str(group[0].parent) for group in found]
        for entry in job.model or ():
            groups.append(fetch(ModelSource(**entry.source())))
            names.append(str(entry.path or f"{entry.model_id}:{entry.origin_file_pattern}"))
        for path in job.model_paths:
            several = (path,) if isinstance(path, str) else path
            groups.append([file for one in several for file in fetch(ModelSource(path=one))])
            names.append(",".join(several))
        for told in job.model_id_with_origin_paths:
            model_id, _, pattern = told.rpartition(":")
            source = ModelSource(model_id=model_id, origin_file_pattern=pattern)
            groups.append(fetch(source))
            names.append(told)
        return groups, names

    @property
    def root(self) -> Path | None:
        """The model's folder, where it was named by one."""
        return model_folder(self.job.model) if isinstance(self.job.model, str) else None

    def need(self, role: Role, why: str) -> tuple[Path, ...]:
        """A part's files; JobError that says what they are needed for if the job names none."""
        if role not in self.files:
            there = ", ".join(ROLES[one] for one in self.files) or "nothing"
            raise JobError(
                f"the model's files are without {ROLES[role]}, and {why}; there is {there}"
            )
        return self.files[role]

    @property
    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Of the files of each part that is there."""
        return {str(role): self.fingerprint_of(role) for role in self.files}

    def fingerprint_of(self, role: Role) -> dict[str, str]:
        """Of one part's files; empty if there are none. Others are not read for it."""
        if role not in self._fingerprints:
            self._fingerprints[role] = fingerprint(self.files.get(role, ()))
        return self._fingerprints[role]

    def encoders(self) -> dict[str, Any]:
        """Whose texts are, in the words of a dataset's identity; JobError without text encoders,
        SourceError without their tokenizers."""
        told = {
            "clip": self.fingerprint_of("clip"),
            "t5": self.fingerprint_of("t5"),
            **self.tokenizer_fingerprints,
        }
        return {**{name: told.get(name, {}) for name in READERS}, "dtype": self.job.torch_dtype}

    @cached_property
    def tokenizers(self) -> dict[str, Path]:
        """Their folders. JobError without text encoders, SourceError for one that is not there."""
        for role in ("clip", "t5"):
            self.need(role, "captions are to be encoded")
        groups = [self.files["clip"], self.files["t5"]]
        given = self.job.tokenizer_1_path, self.job.tokenizer_2_path
        return {
            name: tokenizer_folder(name, path, self.folder, groups)
            for name, path in zip(("tokenizer", "tokenizer_2"), given, strict=True)
        }

    @cached_property
    def tokenizer_fingerprints(self) -> dict[str, dict[str, str]]:
        return {name: fingerprint(files_in(folder)) for name, folder in self.tokenizers.items()}

    def shapes(self) -> dict[Role, nn.Module]:
        """The parts on paper: no tensor is read."""
        return on_paper(list(self.files.values()), axes=self.job.axes_dim)

    def _loaded(self, *roles: Role, dtype: torch.dtype | None = None) -> LoadedModels:
        groups = [self.files[role] for role in roles]
        return load_models(groups, dtype=dtype or self.dtype, axes=self.job.axes_dim)

    def dit(self, dtype: torch.dtype) -> FluxTransformer:
        dit = self._loaded("dit", dtype=dtype).dit
        assert dit is not None
        return dit

    def coder(self, device: torch.device, why: str) -> PictureCoder:
        """The autoencoder on the device."""
        self.need("vae", why)
        vae = self._loaded("vae").vae
        assert vae is not None
        vae.to(device, memory_format=layout_for(device))  # type: ignore[call-overload]
        return PictureCoder(vae, device, self.dtype)

    def text(self, device: torch.device, why: str) -> TextModels:
        """Both encoders on the device, with their tokenizers."""
        for role in ("clip", "t5"):
            self.need(role, why)
        loaded = self._loaded("clip", "t5")
        assert loaded.clip is not None
        assert loaded.t5 is not None
        return TextModels(
            loaded.clip.to(device),
            load_tokenizer(self.tokenizers["tokenizer"]),
            loaded.t5.to(device),
            load_tokenizer(self.tokenizers["tokenizer_2"]),
        )

    @property
    def timestep_shift(self) -> bool:
        """Whether the published schedule of this model shifts with a picture's size."""
        dit = self.shapes()["dit"]
        assert isinstance(dit, FluxTransformer)
        return timestep_shift(self.folder, guided=dit.spec.guidance)

    def refuse_strangers(self, encoded: Mapping[str, Any], address: str) -> list[str]:
        """JobError for a dataset whose latents or texts are of other models than the job's; what
        cannot be compared, because the job does not name the files, is answered in words."""
        latent = dict(encoded["latent"])
        if (latent["scale"], latent["shift"]) != (SCALE, SHIFT):
            raise JobError(f"{address}: its latents are scaled by {latent}, and not by {SCALE}, "
                           f"{SHIFT}")  # fmt: skip
        dit = self.shapes()["dit"]
        assert isinstance(dit, FluxTransformer)
        if 4 * latent["channels"] != dit.spec.channels_out:
            raise JobError(
                f"{address}: its latents have {latent['channels']} channels, and the transformer "
                f"is made for {dit.spec.channels_out // 4}"
            )
        unchecked: list[str] = []
        made: tuple[tuple[Role, dict[str, str]], ...] = (
            ("vae", encoded["vae"]["weights"]),
            ("clip", encoded["text"]["clip"]),
            ("t5", encoded["text"]["t5"]),
        )
        for role, theirs in made:
            if role not in self.files or not theirs:
                unchecked.append(role)
            elif sorted((ours := self.fingerprint_of(role)).values()) != sorted(theirs.values()):
                raise JobError(
                    f"{address}: was made with other files of {ROLES[role]} "
                    f"({named(theirs)}) than the job has ({named(ours)})"
                )
        self._compare_tokenizers(encoded["text"], address)
        return unchecked

    def _compare_tokenizers(self, text: Mapping[str, Any], address: str) -> None:
        """A warning of others: their files may differ, and their tokens be the same."""
        try:
            ours = self.tokenizer_fingerprints
        except (JobError, SourceError):  # not there: the job encodes no captions
            return
        for name, files in ours.items():
            if files and text.get(name) and sorted(files.values()) != sorted(text[name].values()):
                told = {"dataset": address, "theirs": named(text[name]), "ours": named(files)}
                logger.warning(f"captions were read with another {name}", extra=told)


def named(files: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(files.items()))
