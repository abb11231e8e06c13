"""Which part of which model a LoRA file means by a name, whoever wrote it.

Three worlds name the transformer's modules: BFL (ours), diffusers and DiffSynth. Files write those
names with dots, with underscores, or with both, behind any of several prefixes. So names are
compared with underscores for dots; no two of them fall together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.weights.keymaps.transformer import DOUBLE, OUTSIDE, SINGLE, SWAPPED

Role = Literal["dit", "clip", "t5"]
World = Literal["bfl", "diffusers", "diffsynth"]
Rows = tuple[tuple[int, int], ...]  # ranges of ours, in the order of the file's rows

DIFFSYNTH_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_embedder.timestep_embedder.0",
    "time_in.out_layer": "time_embedder.timestep_embedder.2",
    "guidance_in.in_layer": "guidance_embedder.timestep_embedder.0",
    "guidance_in.out_layer": "guidance_embedder.timestep_embedder.2",
    "vector_in.in_layer": "pooled_text_embedder.0",
    "vector_in.out_layer": "pooled_text_embedder.2",
    "final_layer.linear": "final_proj_out",
    "final_layer.adaLN_modulation.1": "final_norm_out.linear",
}
DIFFSYNTH_DOUBLE = {
    "img_mod.lin": "norm1_a.linear",
    "txt_mod.lin": "norm1_b.linear",
    "img_attn.qkv": "attn.a_to_qkv",
    "txt_attn.qkv": "attn.b_to_qkv",
    "img_attn.proj": "attn.a_to_out",
    "txt_attn.proj": "attn.b_to_out",
    "img_mlp.0": "ff_a.0",
    "img_mlp.2": "ff_a.2",
    "txt_mlp.0": "ff_b.0",
    "txt_mlp.2": "ff_b.2",
}
DIFFSYNTH_SINGLE = {
    "modulation.lin": "norm.linear",
    "linear1": "to_qkv_mlp",
    "linear2": "proj_out",
}
# x-flux hangs its LoRA on attention processors; 1 is the image's stream, 2 the text's
PROCESSORS = {
    "processor.qkv_lora1": ("img_attn.qkv", False),
    "processor.qkv_lora2": ("txt_attn.qkv", False),
    "processor.proj_lora1": ("img_attn.proj", False),
    "processor.proj_lora2": ("txt_attn.proj", False),
    "processor.qkv_lora": ("linear1", True),
    "processor.proj_lora": ("linear2", True),
}
CLIP_LAYER = (
    *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *("mlp.fc1", "mlp.fc2"),
)
T5_LAYER = (
    *(f"layer.0.SelfAttention.{part}" for part in "qkvo"),
    *(f"layer.1.DenseReluDense.{part}" for part in ("wi_0", "wi_1", "wo")),
)
CLIP_STACK, T5_STACK = "text_model.encoder.layers", "encoder.block"

PREFIXES: Mapping[str, tuple[Role, ...]] = {
    "": ("dit",),
    "transformer_": ("dit",),
    "diffusion_model_": ("dit",),
    "model_diffusion_model_": ("dit",),
    "base_model_model_": ("dit",),
    "base_model_model_transformer_": ("dit",),
    "base_model_model_diffusion_model_": ("dit",),
    "pipe_dit_": ("dit",),
    "unet_": ("dit",),
    "lora_unet_": ("dit",),
    "lora_transformer_": ("dit",),
    "lycoris_": ("dit",),
    "lora_te_": ("clip",),
    "lora_te1_": ("clip",),
    "lora_te2_": ("t5",),
    "lora_te3_": ("t5",),
    "text_encoder_": ("clip",),
    "text_encoder_2_": ("t5",),
    "text_encoders_clip_l_transformer_": ("clip",),
    "text_encoders_t5xxl_transformer_": ("t5",),
}


@dataclass(frozen=True)
class Place:
    """One module of a model, and which of its rows a name means, in the order of the file's.

    `rows` and `shape` are unknown for text encoders, whose layers are never cut or fused.
    """

    role: Role
    module: str
    rows: Rows | None = None
    shape: tuple[int, ...] | None = None  # of the file's own weight


@dataclass(frozen=True)
class Sizes:
    """How deep and wide the models are that a file's names are looked up in."""

    dit: FluxSpec
    clip_layers: int = 12
    t5_layers: int = 24


def flat(name: str) -> str:
    return name.replace(".", "_")


class Catalogue:
    """Every name that files give to the modules of models of these sizes."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.places: dict[Role, dict[str, Place]] = {"dit": {}, "clip": {}, "t5": {}}
        for world in ("bfl", "diffusers", "diffsynth"):
            for name, place in spelled(sizes.dit, world):
                self._enter(name, place)
        for name, place in processors(sizes.dit):
            self._enter(name, place)
        for role, stack, count, layer in (
            ("clip", CLIP_STACK, sizes.clip_layers, CLIP_LAYER),
            ("t5", T5_STACK, sizes.t5_layers, T5_LAYER),
        ):
            for i in range(count):
                for part in layer:
                    name = f"{stack}.{i}.{part}"
                    self._enter(name, Place(role, name))  # type: ignore[arg-type]

    def _enter(self, name: str, place: Place) -> None:
        there = self.places[place.role].setdefault(flat(name), place)
        assert there == place, f"{name} has two meanings"

    def find(self, name: str) -> Place | None:
        """The place of a name with any known prefix, or None."""
        name = flat(name)
        for prefix, roles in PREFIXES.items():
            if not name.startswith(prefix):
                continue
            rest = name.removeprefix(prefix)
            for role in roles:
                forms = (rest, f"text_model_{rest}") if role == "clip" else (rest,)
                for form in forms:
                    if (found := self.places[role].get(form)) is not None:
                        return found
        return None


@cache
def module_shapes(spec: FluxSpec) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the weights (norms: scales) of the transformer's modules, by our names."""
    with torch.device("meta"):
        model = FluxTransformer(spec)
    return {
        name.rpartition(".")[0]: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.endswith(".bias")
    }


def spelled(spec: FluxSpec, world: World) -> Iterator[tuple[str, Place]]:
    """All of one world's names, dotted, and what each means."""
    for module, shape in module_shapes(spec).items():
        for name, rows in spellings(module, spec, world):
            count = sum(stop - start for start, stop in rows)
            yield name, Place("dit", module, rows, (count, *shape[1:]))


def spellings(module: str, spec: FluxSpec, world: World) -> list[tuple[str, Rows]]:
    """What a world calls a module of ours: one name, or one for each part; none if it has none."""
    total = module_shapes(spec)[module][0]
    whole: Rows = ((0, total),)
    if world == "bfl":
        return [(module, whole)]
    if module == SWAPPED and world == "diffusers":
        whole = ((total // 2, total), (0, total // 2))
    stack, _, rest = module.partition(".")
    number, _, inside = rest.partition(".")
    if world == "diffsynth":
        outside, blocks = DIFFSYNTH_OUTSIDE, {
            "double_blocks": ("blocks", DIFFSYNTH_DOUBLE),
            "single_blocks": ("single_blocks", DIFFSYNTH_SINGLE),
        }  # fmt: skip
        if stack in blocks:
            theirs, parts = blocks[stack]
            return [(f"{theirs}.{number}.{parts[inside]}", whole)] if inside in parts else []
        return [(outside[module], whole)] if module in outside else []
    if stack not in ("double_blocks", "single_blocks"):
        return [(OUTSIDE[module][0], whole)]
    theirs, table = {
        "double_blocks": ("transformer_blocks", DOUBLE),
        "single_blocks": ("single_transformer_blocks", SINGLE),
    }[stack]
    names = [f"{theirs}.{number}.{part}" for part in table[inside]]
    if len(names) == 1:
        return [(names[0], whole)]
    width = spec.width
    bounds = [0, width, 2 * width, 3 * width, total][: len(names) + 1]
    return [(name, ((bounds[i], bounds[i + 1]),)) for i, name in enumerate(names)]


def processors(spec: FluxSpec) -> Iterator[tuple[str, Place]]:
    """x-flux's names; its `qkv_lora` of a single block means the first three of four parts."""
    shapes = module_shapes(spec)
    for name, (inside, single) in PROCESSORS.items():
        stack, count = (
            ("single_blocks", spec.single_blocks)
            if single
            else ("double_blocks", spec.double_blocks)
        )
        for i in range(count):
            module = f"{stack}.{i}.{inside}"
            rows, columns = shapes[module]
            rows = 3 * spec.width if inside == "linear1" else rows
            yield (
                f"{stack}.{i}.{name}",
                Place("dit", module, ((0, rows),), (rows, columns)),
            )
