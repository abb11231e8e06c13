"""Checkpoint files into models, strictly: every tensor is used, or the load fails and names it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from flux_engine.errors import CheckpointError
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.text import output_width
from flux_engine.models.vae import AutoEncoder
from flux_engine.weights.fingerprint import digests, named
from flux_engine.weights.keymaps.layouts import blueprint, prefix_of
from flux_engine.weights.keymaps.recipe import Blueprint, Role
from flux_engine.weights.reader import place, read_shapes, read_tensors
from flux_engine.weights.stored import Shapes, shapes_of

PATCH = 4  # latent cells in a token
ROLES: Mapping[Role, str] = {
    "dit": "the transformer",
    "vae": "the autoencoder",
    "clip": "the CLIP text encoder",
    "t5": "the T5 text encoder",
}


@dataclass(frozen=True)
class LoadedModels:
    """What the files held, and which files they were."""

    dit: FluxTransformer | None = None
    vae: AutoEncoder | None = None
    clip: nn.Module | None = None
    t5: nn.Module | None = None
    files: Mapping[Role, Sequence[Path]] = field(default_factory=dict)
    groups: Mapping[Role, int] = field(default_factory=dict)  # which of the groups each was in

    @cached_property
    def _digests(self) -> dict[Path, str]:
        return digests(file for files in self.files.values() for file in files)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Of all files, by name (see `fingerprint.py`); they are read whole for it."""
        return named(self._digests)

    @property
    def fingerprints(self) -> dict[Role, dict[str, str]]:
        """The same by model."""
        return {
            role: named({file: self._digests[file] for file in files})
            for role, files in self.files.items()
        }


def load_models(
    groups: Sequence[Sequence[Path]],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    axes: Sequence[int] | None = None,
) -> LoadedModels:
    """One model from each group of files (the shards of one checkpoint).

    All groups are checked before the first tensor is read. `axes` are the head channels of the
    rotary positions, for transformers whose heads do not split as FLUX.1's do.
    """
    plans = _plans(groups, axes)
    models = {
        role: _fill(plan, read_tensors(files, dtype, device), place(files), dtype)
        for role, (files, plan) in plans.items()
    }
    return LoadedModels(
        dit=cast("FluxTransformer | None", models.get("dit")),
        vae=cast("AutoEncoder | None", models.get("vae")),
        clip=models.get("clip"),
        t5=models.get("t5"),
        files={role: files for role, (files, _) in plans.items()},
        groups={role: list(groups).index(files) for role, (files, _) in plans.items()},
    )


def on_paper(
    groups: Sequence[Sequence[Path]], *, axes: Sequence[int] | None = None
) -> dict[Role, nn.Module]:
    """The models that these files hold, on the meta device; no tensor is read."""
    return {role: plan.model for role, (_, plan) in _plans(groups, axes).items()}


def _plans(
    groups: Sequence[Sequence[Path]], axes: Sequence[int] | None
) -> dict[Role, tuple[Sequence[Path], Blueprint]]:
    plans: dict[Role, tuple[Sequence[Path], Blueprint]] = {}
    for files in groups:
        plan = _plan(read_shapes(files), place(files), axes=axes, config=_config_beside(files))
        if plan.role in plans:
            both = f"{place(plans[plan.role][0])} and {place(files)}"
            raise CheckpointError(both, reason=f"both are {ROLES[plan.role]}")
        plans[plan.role] = (files, plan)
    _fit({role: plan.model for role, (_, plan) in plans.items()})
    return plans


def assemble(
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    dtype: torch.dtype,
    axes: Sequence[int] | None = None,
    config: Path | None = None,
) -> tuple[Role, nn.Module]:
    """One model from tensors at hand, which may be on the meta device; `where` is for messages."""
    plan = _plan(shapes_of(tensors), where, axes=axes, config=config)
    return plan.role, _fill(plan, dict(tensors), where, dtype)


def _plan(
    shapes: Shapes, where: str, *, axes: Sequence[int] | None, config: Path | None
) -> Blueprint:
    prefix = prefix_of(shapes)
    bare = {key.removeprefix(prefix): info for key, info in shapes.items()}
    plan = blueprint(bare, where, axes=axes, config=config)
    faults = _faults(plan, bare)
    if any(faults.values()):
        told = {kind: [prefix + fault for fault in found] for kind, found in faults.items()}
        raise CheckpointError(where, reason=f"read as {plan.layout}", **told)
    return plan


def _faults(plan: Blueprint, shapes: Shapes) -> dict[str, list[str]]:
    """Everything in which these tensors differ from what the blueprint needs, by kind."""
    wanted = {
        key: shape
        for recipe in plan.recipes.values()
        for key, shape in zip(recipe.keys, recipe.shapes, strict=True)
    }
    here = {key: (shapes[key], shape) for key, shape in wanted.items() if key in shapes}
    return {
        "missing": [key for key in wanted if key not in shapes],
        "unexpected": [key for key in shapes if key not in wanted and key not in plan.extras],
        "misshapen": [
            f"{key} (is {_words(info.shape)}, should be {_words(shape)})"
            for key, (info, shape) in here.items()
            if info.shape != shape
        ]
        + [
            f"{key} (holds {str(info.dtype).removeprefix('torch.')}, not floating point)"
            for key, (info, _) in here.items()
            if not info.dtype.is_floating_point
        ],
    }


def _fit(models: Mapping[Role, nn.Module]) -> None:
    """Refuse parts of different models, as far as their widths tell."""
    dit, vae, clip, t5 = (models.get(role) for role in ROLES)
    if not isinstance(dit, FluxTransformer):
        return
    spec, widths = dit.spec, dict[Role, tuple[int, int]]()
    if isinstance(vae, AutoEncoder):
        widths["vae"] = spec.channels_out, PATCH * vae.spec.latent_channels
    if clip is not None:
        widths["clip"] = spec.pooled_width, output_width(clip)
    if t5 is not None:
        widths["t5"] = spec.text_width, output_width(t5)
    for role, (wanted, given) in widths.items():
        if wanted != given:
            told = f"the transformer is made for {wanted} channels, {ROLES[role]} has {given}"
            raise CheckpointError("files of different models", reason=told)


def _fill(plan: Blueprint, tensors: dict[str, Tensor], where: str, dtype: torch.dtype) -> nn.Module:
    """The blueprint's model with these tensors in it; `tensors` is used up on the way."""
    prefix = prefix_of(tensors)
    for key in [key for key in tensors if prefix]:
        tensors[key.removeprefix(prefix)] = tensors.pop(key)
    refused = [key for key, holds in plan.extras.items() if key in tensors and not holds(tensors)]
    if refused:
        raise CheckpointError(
            where, unexpected=refused, reason="not what this model has under these names"
        )
    uses = Counter(key for recipe in plan.recipes.values() for key in recipe.keys)
    state: dict[str, Tensor] = {}
    for name, recipe in plan.recipes.items():
        state[name] = recipe.make([tensors[key] for key in recipe.keys]).to(dtype)
        uses.subtract(recipe.keys)
        for key in recipe.keys:
            if not uses[key]:
                del tensors[key]
    plan.model.load_state_dict(state, strict=True, assign=True)
    plan.finish(plan.model)
    return plan.model.eval().requires_grad_(requires_grad=False)


def _config_beside(files: Sequence[Path]) -> Path | None:
    beside = (file.parent / "config.json" for file in files)
    return next((path for path in beside if path.is_file()), None)


def _words(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
