"""A LoRA in a layout of choice: which tensors, under which names, with which words.

Nothing is lost unless a rank is asked for: what a layout cannot carry is an error that names it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flux_engine.errors import SettingError
from flux_engine.weights.lora.alphas import BESIDE
from flux_engine.weights.lora.changes import (
    Difference,
    Hadamard,
    Kronecker,
    LowRank,
    Replacement,
)
from flux_engine.weights.lora.file import Lora, Part
from flux_engine.weights.lora.layouts import LAYOUTS, Layout, LayoutName
from flux_engine.weights.lora.metadata import described, in_metadata, peft_config
from flux_engine.weights.lora.names import Role, Rows, Sizes, module_shapes, spellings
from flux_engine.weights.lora.reduce import low_rank_of, reduced
from flux_engine.weights.lora.relay import Piece, piece
from flux_engine.weights.writer import content_hash, write_tensors

PEFT_FILE = "adapter_model.safetensors"
KNOWN_ONLY_TO = "only bfl and kohya carry it; with a rank (SVD) it becomes low-rank, with a loss"


@dataclass
class Draft:
    """What will be written. `lost` is the relative error of each module that lost something."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[Role, dict[str, int]] = field(default_factory=dict)
    alphas: dict[Role, dict[str, float]] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    dora: bool = False

    def lose(self, module: str, error: float) -> None:
        if error:
            self.lost[module] = max(error, self.lost.get(module, 0.0))

    def note(self, role: Role, module: str, change: LowRank, alpha: float) -> None:
        self.ranks.setdefault(role, {})[module] = change.rank
        self.alphas.setdefault(role, {})[module] = alpha


def drafted(lora: Lora, name: LayoutName, rank: int | None = None) -> Draft:
    """All tensors of a LoRA in this layout; with `rank`, none above it."""
    layout, draft = LAYOUTS[name], Draft()
    strangers = sorted({p.place.role for p in lora.parts} - set(layout.prefixes))
    if strangers:
        names = ", ".join(part.name for part in lora.of(*strangers))
        raise SettingError(f"{name} has no place for LoRAs of {' and '.join(strangers)}: {names}")
    for (role, module, parameter), parts in lora.targets.items():
        if parameter == "scale":
            draft.tensors |= norm_tensors(layout, name, parts)
            continue
        if parameter == "bias" and (role, module, "weight") in lora.targets:
            continue  # goes with its weight
        weights = parts if parameter == "weight" else ()
        if rank is not None:
            weights = tuple(lowered(part, rank, draft) for part in weights)
        biases = lora.targets.get((role, module, "bias"), ())
        for called, total, rows in pieces_of(layout, role, module, parts[0], lora.sizes):
            made = piece(weights, biases, total, rows)
            if rank is not None and isinstance(made.change, LowRank):
                change, lost = reduced(made.change, rank)
                draft.lose(called, lost)
                made = replace(made, change=change)
            enter(draft, name, role, called, made)
    return draft


def pieces_of(
    layout: Layout, role: Role, module: str, part: Part, sizes: Sizes
) -> Iterator[tuple[str, int, Rows]]:
    """The layout's names for a module, with the module's rows and those that each means."""
    if role != "dit":
        total = part.change.shape[0]
        yield module, total, ((0, total),)
        return
    total = module_shapes(sizes.dit)[module][0]
    for called, rows in spellings(module, sizes.dit, layout.world):
        yield called, total, rows


def lowered(part: Part, rank: int, draft: Draft) -> Part:
    """A part that is not low-rank as the best one that is."""
    if isinstance(part.change, LowRank | Replacement):
        return part
    change, lost = low_rank_of(part.change.delta(), rank)
    draft.lose(part.name, lost)
    return replace(part, change=change)


def enter(draft: Draft, name: LayoutName, role: Role, called: str, made: Piece) -> None:
    """Put a piece's tensors under their keys, or say what the layout has no place for."""
    layout = LAYOUTS[name]
    key = layout.key(role, called)
    match made.change:
        case None:
            pass
        case LowRank():
            enter_low_rank(draft, name, role, called, made.change)
        case change:
            if not layout.native:
                kind = type(change).__name__
                raise SettingError(f"{called}: is a {kind}; {KNOWN_ONLY_TO}")
            draft.tensors |= {key + end: tensor for end, tensor in native_leaves(change).items()}
    for what, leaf, tensor in (
        ("DoRA magnitudes", layout.magnitude, made.magnitude),
        ("a bias", layout.bias, made.bias),
    ):
        if tensor is None:
            continue
        if not leaf:
            raise SettingError(f"{called}: has {what}, for which {name} has no place")
        draft.tensors[key + leaf] = tensor.flatten() if leaf == ".lora_magnitude_vector" else tensor
    draft.dora |= made.magnitude is not None


def enter_low_rank(
    draft: Draft, name: LayoutName, role: Role, called: str, change: LowRank
) -> None:
    layout = LAYOUTS[name]
    key, up, alpha = layout.key(role, called), change.up_OR, change.alpha
    if layout.alpha:
        draft.tensors[key + layout.alpha] = torch.tensor(alpha)
    elif name != "peft" and change.scale != 1.0:
        up, alpha = up.float() * change.scale, float(change.rank)
    draft.note(role, called, change, alpha)
    draft.tensors[key + layout.down] = change.down_RC
    draft.tensors[key + layout.up] = up


def native_leaves(change: Hadamard | Kronecker | Difference | Replacement) -> dict[str, Tensor]:
    """The tensors of a change that is not low-rank, by the ends of their keys."""
    match change:
        case Hadamard():
            names = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
            factors = dict(zip(names, change.tensors, strict=True))
            return factors | {".alpha": torch.tensor(change.alpha)}
        case Kronecker():
            return kronecker_leaves(change)
        case Difference():
            return {".diff": change.value}
        case Replacement():
            return {".set_weight": change.value}


def kronecker_leaves(change: Kronecker) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for leaf, factors in ((".lokr_w1", change.w1), (".lokr_w2", change.w2)):
        names = (leaf,) if len(factors) == 1 else (f"{leaf}_a", f"{leaf}_b")
        out |= dict(zip(names, factors, strict=True))
    if change.rank is not None:
        return out | {".alpha": torch.tensor(change.scale * change.rank)}
    if change.scale != 1.0:  # two whole factors have no α
        out[".lokr_w1"] = out[".lokr_w1"].float() * change.scale
    return out


def norm_tensors(layout: Layout, name: LayoutName, parts: tuple[Part, ...]) -> dict[str, Tensor]:
    if not layout.norms:
        raise SettingError(f"{parts[0].name}: is a norm's scale, for which {name} has no place")
    out: dict[str, Tensor] = {}
    for part in parts:
        key = layout.key(part.place.role, part.place.module)
        leaf = ".scale.set_weight" if isinstance(part.change, Replacement) else ".scale.diff"
        out[key + leaf] = part.change.tensors[0]
    return out


@dataclass(frozen=True)
class Written:
    """What was written, in which type, and the relative error of each module that lost something.

    `lost` counts ΔW, not the rounding to a type that was asked for, which is `rounded`: the
    largest ‖tensor − rounded‖ ÷ ‖tensor‖ of any tensor.
    """

    files: tuple[Path, ...]
    tensors: int
    dtype: torch.dtype
    lost: Mapping[str, float]
    rounded: float


def write_lora(
    lora: Lora,
    to: Path,
    name: LayoutName = "diffusers",
    *,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
) -> Written:
    """Write a LoRA to a file (for `peft`: into a folder), whole or not at all.

    Without `dtype` the tensors keep their type where nothing is lost by it, else all are float32.
    SettingError names what the layout cannot carry.
    """
    draft = drafted(lora, name, rank)
    tensors, kept, rounded = in_one_type(draft.tensors, dtype)
    widest = max((r for ranks in draft.ranks.values() for r in ranks.values()), default=0)
    largest = max((a for alphas in draft.alphas.values() for a in alphas.values()), default=0.0)
    words = described(
        lora.metadata,
        rank=widest,
        alpha=largest,
        content=content_hash(tensors),
        guidance=lora.sizes.dit.guidance,
    )
    configs = {
        role: peft_config(draft.ranks[role], draft.alphas[role], dora=draft.dora)
        for role in draft.ranks
    }
    if name == "diffusers":
        words |= in_metadata({LAYOUTS[name].prefixes[role]: c for role, c in configs.items()})
    file = to / PEFT_FILE if name == "peft" else to
    files: tuple[Path, ...] = (file,)
    if name == "peft":
        files = (file, beside(to, configs.get("dit", {})))
    write_tensors(file, tensors, words)
    return Written(files, len(tensors), kept, draft.lost, rounded)


def beside(folder: Path, config: Mapping[str, Any]) -> Path:
    """PEFT's configuration, which has to be there before the weights that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / BESIDE
    part = file.with_suffix(".part")
    part.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(file)
    return file


def in_one_type(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], torch.dtype, float]:
    """Tensors in the type asked for, or in the narrowest of theirs that loses nothing."""
    if dtype is None:
        narrow = sorted({t.dtype for t in tensors.values() if t.dim()}, key=lambda t: t.itemsize)
        exact = (kind for kind in narrow if all(fits(t, kind) for t in tensors.values() if t.dim()))
        dtype = next(exact, torch.float32)
    out, rounded = {}, 0.0
    for key, tensor in tensors.items():
        if not tensor.dim():  # α is a number, not a weight
            out[key] = tensor.float()
            continue
        out[key] = tensor.to(dtype)
        if not bool(torch.isfinite(out[key].float()).all()):
            raise SettingError(f"{key}: has values beyond {dtype}; choose a wider type")
        size = float(tensor.float().norm())
        lost = float((out[key].float() - tensor.float()).norm())
        rounded = max(rounded, lost / size if size else 0.0)
    return out, dtype, rounded


def fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype == dtype or torch.equal(tensor.to(dtype).float(), tensor.float())
