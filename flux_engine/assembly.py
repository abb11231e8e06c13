"""From a model's name, folder or files to an engine; configuration goes no deeper than here."""

import hashlib
import platform
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flux_engine.approximation import Approximate, Approximation
from flux_engine.batching import Batching
from flux_engine.defaults import model_folder, read_object
from flux_engine.encode import TextModels, layout_for
from flux_engine.engine import FluxEngine
from flux_engine.errors import SettingError, SourceError
from flux_engine.heap import keep_freed
from flux_engine.holding import has_blocks, hold_on_card, open_bits, settle_bits
from flux_engine.models.text import load_tokenizer
from flux_engine.sampling.kernels import Attention, check_attention, compile_blocks
from flux_engine.vram.placements import Placements, Policy
from flux_engine.weights.fingerprint import fingerprint
from flux_engine.weights.folder import ModelFiles, files_in, folder_sources
from flux_engine.weights.load import ROLES, load_models
from flux_engine.weights.lora.shelf import SHELF_BYTES
from flux_engine.weights.source import ModelSource, fetch

if TYPE_CHECKING:
    from schemas.engine import EngineConfig

FLUX_DEV = "black-forest-labs/FLUX.1-dev"
DEV_SCHEDULE = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}
SCHNELL_SCHEDULE = {"shift": 1.0}

Model = str | Path | Sequence[ModelSource]


def load_engine(
    model: Model = "flux-shapes",
    *,
    torch_dtype: torch.dtype = torch.bfloat16,
    device: str = "auto",
    tokenizer_1: str | Path | ModelSource | None = None,
    tokenizer_2: str | Path | ModelSource | None = None,
    axes_dim: Sequence[int] | None = None,
    vram_limit: float | None = None,
    lora_bytes: int = SHELF_BYTES,
    placements: Sequence[Placements] | None = None,
    approximate: Sequence[Approximate] = (),
    attention: Attention = "default",
    compile: bool = False,
    text_batch: int | None = None,
    micro_batch: int | None = None,
    decode_batch: int | None = None,
) -> FluxEngine:
    """An engine for a bundled name, a folder laid out as FLUX.1-dev's repository, or files.

    Batch sizes are the fixed shapes of the stages; see `Batching`. `vram_limit` is in GiB,
    negative meaning all of the card but so much; `placements` are for each of a list of files.
    What `approximate` names changes pictures. On a CPU the process keeps what it frees from then
    on. Raises SourceError for files that are not there,
    CheckpointError for files that do not hold the model, SettingError for the rest.
    """
    place = choose_device(device)
    check_attention(attention, place)
    kept = [policy_of(one, torch_dtype, place) for one in placements or ()]
    folder, groups = open_model(model)
    loaded = load_models(groups, dtype=torch_dtype, axes=axes_dim)
    absent = [told for role, told in ROLES.items() if getattr(loaded, role) is None]
    if absent:
        raise SettingError(f"the model's files are without {', '.join(absent)}")
    assert loaded.dit is not None
    assert loaded.vae is not None
    assert loaded.clip is not None
    assert loaded.t5 is not None
    loaded.vae.to(memory_format=layout_for(place))  # type: ignore[call-overload]
    models = {role: getattr(loaded, role) for role in ROLES}
    policies: dict[str, Policy] = {
        role: kept[loaded.groups[role]] if kept else Policy() for role in ROLES
    }
    narrow = tuple(role for role in ROLES if policies[role].narrow and has_blocks(models[role]))
    approximation = Approximation(frozenset(approximate), narrow)
    for role in ROLES:
        if approximation.narrows(role):
            open_bits(models[role], products=approximation.products and role == "dit")
            if place.type == "cpu":  # a card's host may have them in images already
                settle_bits(models[role])
    tokenizers = {
        name: tokenizer_folder(name, given, folder, groups)
        for name, given in (("tokenizer", tokenizer_1), ("tokenizer_2", tokenizer_2))
    }
    engine = FluxEngine(
        dit=loaded.dit,
        vae=loaded.vae,
        text=TextModels(
            loaded.clip,
            load_tokenizer(tokenizers["tokenizer"]),
            loaded.t5,
            load_tokenizer(tokenizers["tokenizer_2"]),
        ),
        device=place,
        dtype=torch_dtype,
        batching=Batching(text=text_batch, micro=micro_batch, decode=decode_batch),
        timestep_shift=timestep_shift(folder, guided=loaded.dit.spec.guidance),
        lora_bytes=lora_bytes,
        approximation=approximation,
        attention=attention,
    )
    engine.fingerprint = loaded.fingerprint
    engine.fingerprints = {str(role): told for role, told in loaded.fingerprints.items()}
    engine.fingerprints |= {
        name: fingerprint(files_in(place)) for name, place in tokenizers.items()
    }
    if approximation.narrows("dit"):
        files = groups[loaded.groups["dit"]]
        engine.deviation.wide = partial(wide_weights, files, torch_dtype, axes_dim)
    if place.type == "cuda":
        hold_on_card(engine, vram_limit, policies)
    else:
        keep_freed()
    if compile:
        compile_blocks(loaded.dit)
    return engine


def policy_of(placements: Placements, dtype: torch.dtype, device: torch.device) -> Policy:
    return placements.policy(str(dtype).removeprefix("torch."), device.type)


def wide_weights(
    files: Sequence[Path], dtype: torch.dtype, axes: Sequence[int] | None
) -> dict[str, Tensor]:
    """The transformer's weights as its files have them."""
    dit = load_models([files], dtype=dtype, axes=axes).dit
    assert dit is not None
    return {name: parameter.data for name, parameter in dit.named_parameters()}


def open_model(model: Model) -> tuple[ModelFiles | None, Sequence[Sequence[Path]]]:
    """The folder, where it is one, and the groups of weight files, fetched where they are not."""
    if isinstance(model, str | Path):
        folder = folder_sources(model_folder(str(model)))
        return folder, folder.weights
    return None, [fetch(source) for source in model]


def choose_device(name: str) -> torch.device:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    allowed = ["auto", "cpu", *(["cuda", *gpus] if gpus else [])]
    if name not in allowed:
        seen = f"sees {len(gpus) or 'no'} GPU; allowed are {', '.join(allowed)}"
        raise SettingError(f"device is {name!r} and this process {seen}")
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    return torch.device(name)


def timestep_shift(folder: ModelFiles | None, *, guided: bool) -> bool:
    """Whether the published schedule shifts with the picture's size.

    The folder's scheduler settings say so; without them a model with a guidance embedder is taken
    for FLUX.1-dev's kind, which does, and one without for FLUX.1-schnell, which does not. Settings
    of another schedule than these two are a SettingError.
    """
    if folder is None or folder.scheduler is None:
        return guided
    told = read_object(folder.scheduler)
    dynamic = bool(told.get("use_dynamic_shifting", guided))
    published = DEV_SCHEDULE if dynamic else SCHNELL_SCHEDULE
    for name, value in published.items():
        if told.get(name, value) != value:
            raise SettingError(
                f"{folder.scheduler}: {name} is {told[name]}; the flux schedule has {value} "
                "(sampling.sigma_shift gives a fixed shift)"
            )
    return dynamic


def tokenizer_folder(
    name: str,
    given: str | Path | ModelSource | None,
    folder: ModelFiles | None,
    groups: Sequence[Sequence[Path]],
) -> Path:
    """The one given, else the one beside the encoders, else FLUX.1-dev's."""
    if isinstance(given, ModelSource):
        return fetch(given)[0].parent
    if given is not None:
        if not Path(given).is_dir():
            raise SourceError(f"{name}: {given} is not a folder")
        return Path(given)
    if folder is not None:
        return folder.tokenizer if name == "tokenizer" else folder.tokenizer_2
    beside = [files[0].parent.parent / name for files in groups]
    found = next((path for path in beside if path.is_dir()), None)
    return found or fetch(ModelSource(model_id=FLUX_DEV, origin_file_pattern=f"{name}/*"))[0].parent


def engine_of(config: "EngineConfig") -> tuple[FluxEngine, dict[str, Any]]:
    """The engine that a job asks for, and its fingerprint: weights, code, libraries."""
    model: Model
    placements = None
    match config.model:
        case str():
            model = config.model
        case entries:
            model = [ModelSource(**entry.source()) for entry in entries]
            placements = [Placements(**entry.placements()) for entry in entries]
    engine = load_engine(
        model,
        torch_dtype=getattr(torch, config.torch_dtype),
        device=config.device,
        tokenizer_1=config.tokenizer_1_path,
        tokenizer_2=config.tokenizer_2_path,
        axes_dim=config.axes_dim,
        vram_limit=config.vram_limit,
        lora_bytes=int(config.lora_gib * 2**30),
        placements=placements,
        approximate=config.approximate,
        attention=config.attention,
        compile=config.compile,
        text_batch=config.text_batch,
        micro_batch=config.micro_batch,
        decode_batch=config.decode_batch,
    )
    versions = {name: version(name) for name in ("torch", "transformers", "pillow", "pyarrow")}
    return engine, {
        "weights": engine.fingerprint,
        "code": code_digest(),
        "device": engine.device.type,
        "versions": versions | {"python": platform.python_version()},
    }


def code_digest() -> str:
    """16 hex digits of the engine's own source files."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
