"""A LoRA file into its parts, strictly: every tensor is used, or the load fails and names it."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from flux_engine.errors import CheckpointError, SourceError
from flux_engine.weights.fingerprint import digest
from flux_engine.weights.lora.alphas import IN_METADATA, Configured, config_of, configured
from flux_engine.weights.lora.changes import (
    Change,
    Difference,
    Hadamard,
    Kronecker,
    LowRank,
    Replacement,
    kronecker_rank,
)
from flux_engine.weights.lora.file import Lora, Part
from flux_engine.weights.lora.keys import parse, refusal
from flux_engine.weights.lora.names import Catalogue, Place, Sizes, spellings
from flux_engine.weights.lora.sizes import sizes_of
from flux_engine.weights.reader import read_metadata, read_tensors

Group = dict[str, Tensor]  # by leaf
Named = tuple[str, int | None]  # a module as the file names it, and which cut of it
USUAL = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
NOT_A_CHANGE = ("alpha", "magnitude", "up bias", "diff bias")


def lora_file(files: Iterable[Path]) -> Path:
    """The one LoRA file among these (a folder's, say); SourceError if it is not clear which."""
    found = [file for file in files if file.suffix == ".safetensors"] or list(files)
    usual = [file for file in found if file.name in USUAL]
    if len(found) == 1 or len(usual) == 1:
        return (usual or found)[0]
    names = ", ".join(sorted(file.name for file in found)) or "none"
    raise SourceError(f"one LoRA file is wanted and these are {len(found)}: {names}")


def read_lora(file: Path, sizes: Sizes | None = None) -> Lora:
    """The file's LoRA for models of these sizes; without any, sizes that the file itself tells.

    CheckpointError names every tensor that is not used, and why.
    """
    tensors = read_tensors([file], None)
    metadata = read_metadata(file)
    parts, sizes = parts_of(tensors, str(file), configured(file, metadata), sizes)
    return Lora(str(file), parts, sizes, digest_of(file, metadata), metadata)


def digest_of(file: Path, metadata: Mapping[str, str]) -> str:
    """SHA-256 of the file's content; where its α is told beside it, of both files' SHA-256."""
    own = digest(file)
    config = None if IN_METADATA in metadata else config_of(file)
    if config is None:
        return own
    return hashlib.sha256(f"{own}\n{digest(config)}".encode()).hexdigest()


def parts_of(
    tensors: Mapping[str, Tensor], where: str, alphas: Configured, sizes: Sizes | None = None
) -> tuple[tuple[Part, ...], Sizes]:
    """The parts that these tensors are, and the sizes of their models; `where` is for messages."""
    if not tensors:
        raise CheckpointError(where, reason="holds no tensors")
    groups, useless = grouped(tensors)
    changes: dict[Named, Change] = {}
    missing: list[str] = []
    for named, group in groups.items():
        change = change_of(named, group, alphas)
        if isinstance(change, str):
            missing.append(change)
        elif change is not None:
            changes[named] = change
    known = sizes or sizes_of({name: change for (name, _), change in changes.items()})
    catalogue = Catalogue(known)
    parts: list[Part] = []
    misshapen: list[str] = []
    for named, group in groups.items():
        place = catalogue.find(named[0])
        if place is None:
            useless += [f"{key} ({beyond(known)})" for key in keys_of(tensors, named)]
            continue
        made = list(parts_of_module(named, group, changes.get(named), place, known))
        misshapen += [fault for part in made if (fault := misfit(part))]
        parts += made
    if useless or missing or misshapen:
        raise CheckpointError(
            where,
            unexpected=useless,
            missing=missing,
            misshapen=misshapen,
            reason="not every tensor of this LoRA can be used",
        )
    refuse_doubles(parts, where)
    return tuple(sorted(parts, key=lambda part: (*part.target, part.place.rows or ()))), known


def grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[Named, Group], list[str]]:
    """Tensors by module and leaf, and the keys that are of no use, each with the reason."""
    groups: dict[Named, Group] = {}
    useless: list[str] = []
    for key, tensor in tensors.items():
        if (why := refusal(key)) is not None:
            useless.append(f"{key} ({why})")
        elif (parsed := parse(key)) is None:
            useless.append(f"{key} (no known form of a LoRA's key)")
        elif parsed.leaf == "alpha" and not is_number(tensor):
            useless.append(f"{key} (is not one finite number)")
        elif parsed.leaf != "alpha" and not tensor.is_floating_point():
            useless.append(f"{key} (holds {str(tensor.dtype).removeprefix('torch.')})")
        else:
            group = groups.setdefault((parsed.module, parsed.part), {})
            if parsed.leaf in group:
                useless.append(f"{key} (its module has two tensors of that meaning)")
            group[parsed.leaf] = matrix(tensor)
    share_alphas(groups)
    return groups, useless


def is_number(tensor: Tensor) -> bool:
    """Of any type: kohya's scripts write an α that was not given as an integer."""
    return tensor.numel() == 1 and bool(tensor.float().isfinite())


def share_alphas(groups: dict[Named, Group]) -> None:
    """A module's α is that of all its cuts."""
    for name, part in list(groups):
        if part is None and set(groups[name, None]) == {"alpha"}:
            cuts = [named for named in groups if named[0] == name and named[1] is not None]
            for named in cuts:
                groups[named]["alpha"] = groups[name, None]["alpha"]
            if cuts:
                del groups[name, None]


def matrix(tensor: Tensor) -> Tensor:
    """A 1×1 convolution's factor is a matrix."""
    return tensor[..., 0, 0] if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) else tensor


def change_of(named: Named, group: Group, alphas: Configured) -> Change | str | None:
    """The change that a group's tensors make, None for a group without one, or what it lacks."""
    name, here = named[0], set(group) - set(NOT_A_CHANGE)
    alpha = float(group["alpha"].float()) if "alpha" in group else None
    if not here:
        lonely = set(group) & {"alpha", "magnitude", "up bias"}
        return f"{name}: factors to go with its {' and '.join(sorted(lonely))}" if lonely else None
    match sorted(here):
        case ["down", "up"] if group["down"].dim() == group["up"].dim() == 2:
            down, up = group["down"], group["up"]
            if down.shape[0] != up.shape[1] or not len(down):
                return f"{name}: factors of one rank (down has {down.shape[0]}, up {up.shape[1]})"
            return LowRank(
                down, up, alphas.of(name).of(name, len(down)) if alpha is None else alpha
            )
        case ["a1", "a2", "b1", "b2"]:
            rank = len(group["b1"])
            alpha = alphas.of(name).of(name, rank) if alpha is None else alpha
            return Hadamard(group["a1"], group["b1"], group["a2"], group["b2"], alpha)
        case ["diff"]:
            return Difference(group["diff"])
        case ["set"]:
            return Replacement(group["set"])
        case leaves if all(leaf.startswith("w") for leaf in leaves):
            w1, w2 = (kronecker_factor(group, leaf) for leaf in ("w1", "w2"))
            if w1 and w2:
                return Kronecker(w1, w2, kronecker_scale(name, w1, w2, alpha, alphas))
    return f"{name}: a whole set of factors (it has {', '.join(sorted(here))})"


def kronecker_scale(
    name: str,
    w1: tuple[Tensor, ...],
    w2: tuple[Tensor, ...],
    alpha: float | None,
    alphas: Configured,
) -> float:
    rank = kronecker_rank(w1, w2)
    if alpha is None and (told := alphas.of(name).scale(name)) is not None:
        return told
    return 1.0 if rank is None or alpha is None else alpha / rank


def kronecker_factor(group: Group, leaf: str) -> tuple[Tensor, ...]:
    whole, a, b = (name in group for name in (leaf, f"{leaf}.a", f"{leaf}.b"))
    if whole and not a and not b:
        return (group[leaf],)
    return (group[f"{leaf}.a"], group[f"{leaf}.b"]) if a and b and not whole else ()


def parts_of_module(
    named: Named,
    group: Group,
    change: Change | None,
    place: Place,
    sizes: Sizes,
) -> Iterable[Part]:
    name, cut = named
    if cut is not None:
        place = cut_of(place, cut, sizes)
    if change is not None:
        vector = len(change.shape) == 1
        magnitude = group.get("magnitude")
        if magnitude is not None and magnitude.dim() == 1:
            magnitude = magnitude[:, None]
        yield Part(
            place,
            "scale" if vector and is_norm(place) else "weight",
            change,
            magnitude,
            name,
        )
    if "up bias" in group:
        scale = change.scale if isinstance(change, LowRank) else 1.0
        yield Part(place, "bias", Difference(group["up bias"].float() * scale), None, name)
    if "diff bias" in group:
        yield Part(place, "bias", Difference(group["diff bias"]), None, name)


def cut_of(place: Place, cut: int, sizes: Sizes) -> Place:
    """The part of a fused module with this number; the whole one's place if it has no such part."""
    pieces = spellings(place.module, sizes.dit, "diffusers")
    if place.role != "dit" or cut >= len(pieces):
        return place
    ((start, stop),) = pieces[cut][1]
    columns = place.shape[1:] if place.shape else ()
    return Place(place.role, place.module, ((start, stop),), (stop - start, *columns))


def is_norm(place: Place) -> bool:
    return place.role == "dit" and place.module.endswith("_norm")


def misfit(part: Part) -> str | None:
    """What is wrong with a part's shape, if the model's is known."""
    wanted = part.place.shape
    if wanted is None:
        return None
    if part.parameter == "bias":
        wanted = wanted[:1]
    if part.change.shape != wanted:
        return f"{part.name} (changes {words(part.change.shape)}, the model has {words(wanted)})"
    magnitude = part.magnitude
    if magnitude is not None and tuple(magnitude.shape) not in ((wanted[0], 1), (1, wanted[1])):
        return f"{part.name} (has {words(magnitude.shape)} magnitudes for {words(wanted)})"
    return None


def refuse_doubles(parts: Iterable[Part], where: str) -> None:
    """No row may be meant twice: under two names, it is not clear what the file means."""
    seen: dict[object, list[tuple[tuple[int, int] | None, str]]] = {}
    doubled = []
    for part in parts:
        there = seen.setdefault(part.target, [])
        for rows in part.place.rows or (None,):
            doubled += [
                f"{part.name} (the same rows as {name})"
                for other, name in there
                if overlap(rows, other)
            ]
        there += [(rows, part.name) for rows in part.place.rows or (None,)]
    if doubled:
        raise CheckpointError(where, unexpected=doubled, reason="modules that are named twice")


def overlap(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    return one is None or other is None or (one[0] < other[1] and other[0] < one[1])


def keys_of(tensors: Iterable[str], named: Named) -> list[str]:
    return [key for key in tensors if (leaf := parse(key)) and (leaf.module, leaf.part) == named]


def beyond(sizes: Sizes) -> str:
    spec = sizes.dit
    return (
        f"the models have no such module: {spec.double_blocks} double and {spec.single_blocks} "
        f"single blocks{'' if spec.guidance else ', no guidance'}, {sizes.clip_layers} CLIP and "
        f"{sizes.t5_layers} T5 layers"
    )


def words(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
