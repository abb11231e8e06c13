"""LoRA files as each tool family writes them, and the change of each weight that they mean.

Names, prefixes, suffixes and the meaning of each are spelled out here, not read off our tables.
The reference is float64 and made of nothing but the factors drawn here.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flux_engine.models.dit import FluxSpec

# one double block, one single block and everything outside of blocks, at FLUX.1-dev's width
TRUE = FluxSpec(double_blocks=1, single_blocks=1)
TINY = FluxSpec(
    width=64, heads=2, axes=(8, 12, 12), inner=256, double_blocks=2, single_blocks=2,
    channels_in=16, channels_out=16, text_width=48, pooled_width=32,
)  # fmt: skip


@dataclass(frozen=True)
class Means:
    """Rows `start` to `stop` (in the file's order, where that is ours) of one of our modules."""

    module: str
    start: int
    stop: int
    columns: int
    swapped: bool = False  # the file's first half is our second

    @property
    def rows(self) -> int:
        return self.stop - self.start


def bfl(s: FluxSpec) -> dict[str, Means]:
    h, m = s.width, s.inner
    out = {
        "img_in": Means("img_in", 0, h, s.channels_in),
        "txt_in": Means("txt_in", 0, h, s.text_width),
        "time_in.in_layer": Means("time_in.in_layer", 0, h, 256),
        "time_in.out_layer": Means("time_in.out_layer", 0, h, h),
        "vector_in.in_layer": Means("vector_in.in_layer", 0, h, s.pooled_width),
        "vector_in.out_layer": Means("vector_in.out_layer", 0, h, h),
        "guidance_in.in_layer": Means("guidance_in.in_layer", 0, h, 256),
        "guidance_in.out_layer": Means("guidance_in.out_layer", 0, h, h),
        "final_layer.linear": Means("final_layer.linear", 0, s.channels_out, h),
        "final_layer.adaLN_modulation.1": Means("final_layer.adaLN_modulation.1", 0, 2 * h, h),
    }
    for i in range(s.double_blocks):
        for t in ("img", "txt"):
            b = f"double_blocks.{i}.{t}"
            out[f"{b}_mod.lin"] = Means(f"{b}_mod.lin", 0, 6 * h, h)
            out[f"{b}_attn.qkv"] = Means(f"{b}_attn.qkv", 0, 3 * h, h)
            out[f"{b}_attn.proj"] = Means(f"{b}_attn.proj", 0, h, h)
            out[f"{b}_mlp.0"] = Means(f"{b}_mlp.0", 0, m, h)
            out[f"{b}_mlp.2"] = Means(f"{b}_mlp.2", 0, h, m)
    for i in range(s.single_blocks):
        b = f"single_blocks.{i}"
        out[f"{b}.linear1"] = Means(f"{b}.linear1", 0, 3 * h + m, h)
        out[f"{b}.linear2"] = Means(f"{b}.linear2", 0, h, h + m)
        out[f"{b}.modulation.lin"] = Means(f"{b}.modulation.lin", 0, 3 * h, h)
    return out


def diffusers(s: FluxSpec) -> dict[str, Means]:
    h, m = s.width, s.inner
    out = {
        "x_embedder": Means("img_in", 0, h, s.channels_in),
        "context_embedder": Means("txt_in", 0, h, s.text_width),
        "proj_out": Means("final_layer.linear", 0, s.channels_out, h),
        "norm_out.linear": Means("final_layer.adaLN_modulation.1", 0, 2 * h, h, swapped=True),
    }
    for theirs, ours, c in (
        ("timestep", "time_in", 256), ("text", "vector_in", s.pooled_width),
        ("guidance", "guidance_in", 256),
    ):  # fmt: skip
        e = f"time_text_embed.{theirs}_embedder.linear_"
        out[f"{e}1"] = Means(f"{ours}.in_layer", 0, h, c)
        out[f"{e}2"] = Means(f"{ours}.out_layer", 0, h, h)
    for i in range(s.double_blocks):
        t, b = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, qkv, proj, norm, ff in (
            ("img", ("to_q", "to_k", "to_v"), "to_out.0", "norm1", "ff"),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm1_context",
             "ff_context"),
        ):  # fmt: skip
            for n, name in enumerate(qkv):
                out[f"{t}.attn.{name}"] = Means(f"{b}.{stream}_attn.qkv", n * h, (n + 1) * h, h)
            out[f"{t}.attn.{proj}"] = Means(f"{b}.{stream}_attn.proj", 0, h, h)
            out[f"{t}.{norm}.linear"] = Means(f"{b}.{stream}_mod.lin", 0, 6 * h, h)
            out[f"{t}.{ff}.net.0.proj"] = Means(f"{b}.{stream}_mlp.0", 0, m, h)
            out[f"{t}.{ff}.net.2"] = Means(f"{b}.{stream}_mlp.2", 0, h, m)
    for i in range(s.single_blocks):
        t, b = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        for n, name in enumerate(("to_q", "to_k", "to_v")):
            out[f"{t}.attn.{name}"] = Means(f"{b}.linear1", n * h, (n + 1) * h, h)
        out[f"{t}.proj_mlp"] = Means(f"{b}.linear1", 3 * h, 3 * h + m, h)
        out[f"{t}.proj_out"] = Means(f"{b}.linear2", 0, h, h + m)
        out[f"{t}.norm.linear"] = Means(f"{b}.modulation.lin", 0, 3 * h, h)
    return out


def diffsynth(s: FluxSpec) -> dict[str, Means]:
    b = bfl(s)
    outside = {
        "x_embedder": "img_in", "context_embedder": "txt_in",
        "time_embedder.timestep_embedder.0": "time_in.in_layer",
        "time_embedder.timestep_embedder.2": "time_in.out_layer",
        "pooled_text_embedder.0": "vector_in.in_layer",
        "pooled_text_embedder.2": "vector_in.out_layer",
        "guidance_embedder.timestep_embedder.0": "guidance_in.in_layer",
        "guidance_embedder.timestep_embedder.2": "guidance_in.out_layer",
        "final_proj_out": "final_layer.linear",
        "final_norm_out.linear": "final_layer.adaLN_modulation.1",
    }  # fmt: skip
    out = {theirs: b[ours] for theirs, ours in outside.items()}
    for i in range(s.double_blocks):
        for theirs, ours in (
            ("norm1_a.linear", "img_mod.lin"), ("norm1_b.linear", "txt_mod.lin"),
            ("attn.a_to_qkv", "img_attn.qkv"), ("attn.b_to_qkv", "txt_attn.qkv"),
            ("attn.a_to_out", "img_attn.proj"), ("attn.b_to_out", "txt_attn.proj"),
            ("ff_a.0", "img_mlp.0"), ("ff_a.2", "img_mlp.2"),
            ("ff_b.0", "txt_mlp.0"), ("ff_b.2", "txt_mlp.2"),
        ):  # fmt: skip
            out[f"blocks.{i}.{theirs}"] = b[f"double_blocks.{i}.{ours}"]
    for i in range(s.single_blocks):
        for theirs, ours in (
            ("to_qkv_mlp", "linear1"), ("proj_out", "linear2"), ("norm.linear", "modulation.lin")
        ):  # fmt: skip
            out[f"single_blocks.{i}.{theirs}"] = b[f"single_blocks.{i}.{ours}"]
    return out


def xlabs(s: FluxSpec) -> dict[str, Means]:
    h, b = s.width, bfl(s)
    out: dict[str, Means] = {}
    for i in range(s.double_blocks):
        for n, stream in ((1, "img"), (2, "txt")):
            p, o = f"double_blocks.{i}.processor", f"double_blocks.{i}.{stream}_attn"
            out[f"{p}.qkv_lora{n}"] = b[f"{o}.qkv"]
            out[f"{p}.proj_lora{n}"] = b[f"{o}.proj"]
    for i in range(s.single_blocks):
        out[f"single_blocks.{i}.processor.qkv_lora"] = Means(
            f"single_blocks.{i}.linear1", 0, 3 * h, h
        )
        out[f"single_blocks.{i}.processor.proj_lora"] = b[f"single_blocks.{i}.linear2"]
    return out


World = Callable[[FluxSpec], dict[str, Means]]
Delta = Callable[[int, int], Tensor]  # ΔW of some of the file's rows, from … to, in float64
CHUNK = 1024  # rows of a reference that are in memory at once


@dataclass
class Drawn:
    """A file's tensors and words, and float64 changes by our module: (start, ΔW of some rows)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    beside: dict[str, object] | None = None
    deltas: dict[str, list[tuple[Means, "Delta"]]] = field(default_factory=dict)
    biases: dict[str, list[tuple[Means, Tensor]]] = field(default_factory=dict)

    def tensor(self, key: str, *shape: int, std: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        self.tensors[key] = torch.randn(shape, generator=generator) * std
        return self.tensors[key]

    def alpha(self, key: str, value: float) -> float:
        self.tensors[key] = torch.tensor(value)
        return value

    def means(self, means: Means, delta: "Delta") -> None:
        self.deltas.setdefault(means.module, []).append((means, delta))

    def save(self, folder: Path, name: str | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        name = name or ("lora" if self.beside is None else "adapter_model") + ".safetensors"
        if self.beside is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.beside))
        save_file(self.tensors, folder / name, metadata=self.metadata or None)
        return folder / name

    def error(self, module: str, made: Tensor) -> float:
        """‖made − ΔW‖ ÷ ‖ΔW‖ of one of our modules, row by row against float64."""
        lost = size = 0.0
        for first in range(0, len(made), CHUNK):
            last = min(first + CHUNK, len(made))
            wanted = torch.zeros(last - first, made.shape[1], dtype=torch.float64)
            for means, delta in self.deltas[module]:
                for start, stop, theirs in pieces(means, first, last):
                    there = theirs, theirs + stop - start
                    wanted[start - first : stop - first] += delta(*there)
            lost += float((made[first:last] - wanted).square().sum())
            size += float(wanted.square().sum())
        return math.sqrt(lost / size)


def pieces(means: Means, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of our rows within [first, last) that a file's module means, and the file's row."""
    half = means.rows // 2
    parts = [(means.start, means.stop, 0)]
    if means.swapped:
        parts = [(0, half, half), (half, means.rows, 0)]
    for start, stop, theirs in parts:
        low, high = max(first, start), min(last, stop)
        if low < high:
            yield low, high, theirs + low - start


def low_rank(
    world: World,
    spec: FluxSpec,
    spell: Callable[[str], str],
    down: str,
    up: str,
    *,
    alpha: str | None = None,
    only: Callable[[str], bool] = bool,
    every: int = 2,
    conv: bool = False,
) -> Drawn:
    """Low-rank factors of unequal ranks; with `alpha`, one in `every` module has its own."""
    out = Drawn()
    for n, (name, means) in enumerate(filter(lambda item: only(item[0]), world(spec).items())):
        rank = 2 + n % 3
        key, extra = spell(name), (1, 1) if conv else ()
        a = out.tensor(key + down, rank, means.columns, *extra, std=0.1)
        b = out.tensor(key + up, means.rows, rank, *extra, std=0.1)
        scale = 1.0
        if alpha and n % every == every - 1:
            scale = out.alpha(key + alpha, float(1 + n % 5)) / rank
        out.means(
            means,
            lambda i, j, a=a, b=b, scale=scale: (  # type: ignore[misc]
                b[i:j].flatten(1).double() @ a.flatten(1).double() * scale
            ),
        )
    return out


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def flat(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


A, B = ".lora_A.weight", ".lora_B.weight"
DOWN, UP = ".lora_down.weight", ".lora_up.weight"


def peft_in_metadata(s: FluxSpec) -> Drawn:
    """As diffusers saves: α in one entry of the metadata, with exceptions by pattern."""
    out = low_rank(diffusers, s, dotted("transformer."), A, B)
    config = {
        "transformer.r": 4,
        "transformer.lora_alpha": 6,
        "transformer.alpha_pattern": {"transformer_blocks.0.attn.to_k": 1.5, "proj_out": 3},
        "transformer.rank_pattern": {f"^{n}": 2 + i % 3 for i, n in enumerate(diffusers(s))},
        "transformer.target_modules": list(diffusers(s)),
    }
    out.metadata = {"lora_adapter_metadata": json.dumps(config)}
    return rescaled(out, s, lambda name: alpha_of(name, 6.0))


def peft_beside(s: FluxSpec) -> Drawn:
    """As peft saves: `adapter_config.json`, here with rank-stabilised scales."""
    out = low_rank(diffusers, s, dotted("base_model.model."), A, B)
    out.beside = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 2,
        "alpha_pattern": {"transformer_blocks.0.attn.to_k": 1.5, "proj_out": 3},
        "use_rslora": True,
    }
    return rescaled(out, s, lambda name: alpha_of(name, 2.0), stabilised=True)


def alpha_of(name: str, usual: float) -> float:
    if name == "transformer_blocks.0.attn.to_k":
        return 1.5
    return 3.0 if name.rpartition(".")[2] == "proj_out" else usual


def rescaled(
    drawn: Drawn, s: FluxSpec, alpha: Callable[[str], float], *, stabilised: bool = False
) -> Drawn:
    """The same tensors, meant at another α."""
    names = list(diffusers(s))
    deltas: dict[str, list[tuple[Means, Delta]]] = {}
    for n, means in enumerate(diffusers(s).values()):
        rank = 2 + n % 3
        scale = alpha(names[n]) / (math.sqrt(rank) if stabilised else rank)
        plain = next(d for m, d in drawn.deltas[means.module] if m == means)
        deltas.setdefault(means.module, []).append(
            (means, lambda i, j, plain=plain, scale=scale: plain(i, j) * scale)  # type: ignore[misc]
        )
    drawn.deltas = deltas
    return drawn


def kohya_split(s: FluxSpec) -> Drawn:
    """kohya's split q, k, v (and MLP) before they are merged on saving."""
    out, h, m = Drawn(), s.width, s.inner
    for name, means in bfl(s).items():
        widths = {"qkv": [h, h, h], "linear1": [h, h, h, m]}.get(name.rpartition(".")[2])
        if name.endswith("_attn.qkv"):
            widths = [h, h, h]
        if widths is None:
            continue
        key, start = flat("lora_unet_")(name), 0
        scale = out.alpha(f"{key}.alpha", 3.0) / 2
        for n, width in enumerate(widths):
            a = out.tensor(f"{key}.lora_down.{n}.weight", 2, means.columns, std=0.1)
            b = out.tensor(f"{key}.lora_up.{n}.weight", width, 2, std=0.1)
            cut = Means(means.module, start, start + width, means.columns)
            out.means(
                cut,
                lambda i, j, a=a, b=b, scale=scale: b[i:j].double() @ a.double() * scale,  # type: ignore[misc]
            )
            start += width
    return out


def loha(world: World, spell: Callable[[str], str]) -> Callable[[FluxSpec], Drawn]:
    def draw(s: FluxSpec) -> Drawn:
        out = Drawn()
        for n, (name, means) in enumerate(world(s).items()):
            key, rank = spell(name), 2 + n % 2
            factors = [
                out.tensor(f"{key}.hada_{part}", *shape, std=0.3)
                for part, shape in (
                    ("w1_a", (means.rows, rank)), ("w1_b", (rank, means.columns)),
                    ("w2_a", (means.rows, rank)), ("w2_b", (rank, means.columns)),
                )
            ]  # fmt: skip
            scale = out.alpha(f"{key}.alpha", 1.0 + n % 3) / rank if n % 2 else 1.0

            def delta(i: int, j: int, f: list[Tensor] = factors, scale: float = scale) -> Tensor:
                a1, b1, a2, b2 = (t.double() for t in f)
                return (a1[i:j] @ b1) * (a2[i:j] @ b2) * scale

            out.means(means, delta)
        return out

    return draw


def lokr(world: World, spell: Callable[[str], str]) -> Callable[[FluxSpec], Drawn]:
    def draw(s: FluxSpec) -> Drawn:
        out = Drawn()
        for n, (name, means) in enumerate(world(s).items()):
            key, rank = spell(name), 2
            rows, columns = 4, 8 if means.columns % 8 == 0 else 2
            inner = (means.rows // rows, means.columns // columns)
            w1 = kronecker(out, f"{key}.lokr_w1", (rows, columns), rank if n % 3 == 2 else None)
            w2 = kronecker(out, f"{key}.lokr_w2", inner, rank if n % 3 else None)
            # two whole factors: an α that some files have all the same has no effect
            alpha = out.alpha(f"{key}.alpha", 1.0 + n % 4) if n % 2 or n % 3 == 0 else rank
            scale = alpha / rank if n % 3 else 1.0

            def delta(
                i: int, j: int, w1: list[Tensor] = w1, w2: list[Tensor] = w2, scale: float = scale
            ) -> Tensor:
                first, second = (t[0].double() if len(t) == 1 else t[0].double() @ t[1].double()
                                 for t in (w1, w2))  # fmt: skip
                rows = torch.arange(i, j)
                outer = first[rows // len(second)][:, :, None] * second[rows % len(second)][:, None]
                return outer.flatten(1) * scale

            out.means(means, delta)
        return out

    return draw


def kronecker(out: Drawn, key: str, shape: tuple[int, int], rank: int | None) -> list[Tensor]:
    if rank is None:
        return [out.tensor(key, *shape, std=0.3)]
    return [
        out.tensor(f"{key}_a", shape[0], rank, std=0.3),
        out.tensor(f"{key}_b", rank, shape[1], std=0.3),
    ]


def full_difference(s: FluxSpec) -> Drawn:
    """Every layer whole, with biases, as ComfyUI extracts them."""
    out = Drawn()
    for name, means in bfl(s).items():
        key = f"diffusion_model.{name}"
        value = out.tensor(f"{key}.diff", means.rows, means.columns, std=0.01)
        out.means(means, lambda i, j, value=value: value[i:j].double())  # type: ignore[misc]
        bias = out.tensor(f"{key}.diff_b", means.rows, std=0.01)
        out.biases.setdefault(means.module, []).append((means, bias.double()))
    return out


def control(s: FluxSpec) -> Drawn:
    """As Black Forest Labs publish depth and canny: no prefix, biases of the up factor."""
    out = low_rank(bfl, s, dotted(""), A, B)
    for name, means in bfl(s).items():
        bias = out.tensor(f"{name}.lora_B.bias", means.rows, std=0.01)
        out.biases.setdefault(means.module, []).append((means, bias.double()))
    return out


def encoders() -> Drawn:
    """A transformer layer and layers of both encoders, as kohya writes them."""
    out = Drawn()
    for name, rows, columns in (
        ("lora_unet_double_blocks_0_img_attn_proj", TINY.width, TINY.width),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 64, 64),
        ("lora_te1_text_model_encoder_layers_1_mlp_fc1", 128, 64),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 64, 64),
        ("lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0", 128, 64),
    ):
        out.tensor(f"{name}{DOWN}", 3, columns, std=0.1)
        out.tensor(f"{name}{UP}", rows, 3, std=0.1)
        out.alpha(f"{name}.alpha", 2.0)
    return out


def dora(s: FluxSpec) -> Drawn:
    """DoRA of split modules, with a magnitude for each row."""
    out = low_rank(diffusers, s, dotted("transformer."), A, B)
    for name, means in diffusers(s).items():
        key = f"transformer.{name}.lora_magnitude_vector"
        out.tensors[key] = 1 + out.tensor(key, means.rows).abs()
    return out


def q_only(name: str) -> bool:
    return name.endswith(("to_q", "add_q_proj", "ff.net.2"))


LAYOUTS: Mapping[str, Callable[[FluxSpec], Drawn]] = {
    "1 diffusers": lambda s: low_rank(diffusers, s, dotted("transformer."), A, B),
    "1 diffusers, alpha keys": lambda s: low_rank(
        diffusers, s, dotted("transformer."), A, B, alpha=".alpha"
    ),
    "1 diffusers, q only": lambda s: low_rank(
        diffusers, s, dotted("transformer."), A, B, only=q_only
    ),
    "1 diffusers, metadata": peft_in_metadata,
    "2 peft": lambda s: low_rank(
        diffusers,
        s,
        dotted("base_model.model.transformer."),
        ".lora_A.default.weight",
        ".lora_B.default.weight",
    ),
    "2 peft, config beside": peft_beside,
    "3 kohya": lambda s: low_rank(bfl, s, flat("lora_unet_"), DOWN, UP, alpha=".alpha"),
    "3 kohya, 1×1 convolutions": lambda s: low_rank(
        bfl, s, flat("lora_unet_"), DOWN, UP, alpha=".alpha", conv=True
    ),
    "3b kohya split": kohya_split,
    "4 dotted BFL, down and up": lambda s: low_rank(
        bfl, s, dotted("diffusion_model."), DOWN, UP, alpha=".alpha"
    ),
    "4 dotted BFL, A and B": lambda s: low_rank(bfl, s, dotted("diffusion_model."), A, B),
    "5 bare BFL": control,
    "6 DiffSynth": lambda s: low_rank(
        diffsynth, s, dotted(""), ".lora_A.default.weight", ".lora_B.default.weight"
    ),
    "7 OneTrainer": lambda s: low_rank(
        diffusers, s, flat("lora_transformer_"), DOWN, UP, alpha=".alpha"
    ),
    "8 XLabs": lambda s: low_rank(xlabs, s, dotted(""), ".down.weight", ".up.weight"),
    "9 LyCORIS LoHa": loha(diffusers, flat("lycoris_")),
    "9 LyCORIS LoKr": lokr(bfl, flat("lora_unet_")),
    "9 LyCORIS LoRA": lambda s: low_rank(diffusers, s, flat("lycoris_"), DOWN, UP, alpha=".alpha"),
    "10 fal": lambda s: low_rank(bfl, s, dotted("base_model.model."), A, B),
    "11 musubi": lambda s: low_rank(bfl, s, lambda name: "diffusion_model." + mixed(name), A, B),
    "12 bare diffusers": lambda s: low_rank(diffusers, s, dotted(""), A, B),
    "13 full differences": full_difference,
}


def mixed(name: str) -> str:
    """Dots up to the block's number, underscores from there on."""
    stack, *rest = name.split(".")
    return f"{stack}.{rest[0]}.{'_'.join(rest[1:])}" if stack.endswith("blocks") else name
