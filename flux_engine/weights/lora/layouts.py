"""The layouts that LoRA files are written in: names, prefixes, and what each can carry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flux_engine.weights.lora.names import Role, World

LayoutName = Literal["diffusers", "kohya", "peft", "diffsynth", "bfl"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one tool family writes; an empty leaf is something that it has no place for.

    `alpha` "" means that α is folded into the up factor, or told in a file beside.
    """

    world: World
    prefixes: Mapping[Role, str]
    flat: bool = False
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    alpha: str = ""
    magnitude: str = ""
    bias: str = ""
    native: bool = False  # LoHa, LoKr and whole differences as they are
    norms: bool = False

    def key(self, role: Role, module: str) -> str:
        prefix = self.prefixes[role]
        return prefix + (module.replace(".", "_") if self.flat else module)


LAYOUTS: Mapping[LayoutName, Layout] = {
    "diffusers": Layout(
        world="diffusers",
        prefixes={"dit": "transformer.", "clip": "text_encoder."},
        magnitude=".lora_magnitude_vector",
        bias=".lora_B.bias",
    ),
    "peft": Layout(
        world="diffusers",
        prefixes={"dit": "base_model.model."},
        magnitude=".lora_magnitude_vector",
        bias=".lora_B.bias",
    ),
    "kohya": Layout(
        world="bfl",
        prefixes={"dit": "lora_unet_", "clip": "lora_te1_", "t5": "lora_te3_"},
        flat=True,
        down=".lora_down.weight",
        up=".lora_up.weight",
        alpha=".alpha",
        magnitude=".dora_scale",
        bias=".diff_b",
        native=True,
    ),
    "bfl": Layout(
        world="bfl",
        prefixes={
            "dit": "diffusion_model.",
            "clip": "text_encoders.clip_l.transformer.",
            "t5": "text_encoders.t5xxl.transformer.",
        },
        down=".lora_down.weight",  # under the names of PEFT diffusers finds nothing in such a file
        up=".lora_up.weight",
        alpha=".alpha",
        magnitude=".dora_scale",
        bias=".diff_b",
        native=True,
        norms=True,
    ),
    # its trainer adds `.default` to a factor's name; of its two ways of loading one ignores those
    "diffsynth": Layout(
        world="diffsynth",
        prefixes={"dit": ""},
    ),
}
