"""What the end of a LoRA file's key says: which tensor of which kind of change."""

import re
from collections.abc import Mapping
from typing import NamedTuple

ADAPTER = r"(\.(?!weight$|bias$)[\w-]+)?"  # PEFT's name of one of several, such as `default`

# the leaf's own name → how files spell the end of its key
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "down": (
        rf"\.lora_A{ADAPTER}\.weight",
        rf"\.lora_A{ADAPTER}",
        r"\.lora_down\.weight",
        r"\.lora\.down\.weight",
        r"\.lora_linear_layer\.down\.weight",
        r"(?<=_lora[12])\.down\.weight",
        r"(?<=_lora)\.down\.weight",
    ),
    "up": (
        rf"\.lora_B{ADAPTER}\.weight",
        rf"\.lora_B{ADAPTER}",
        r"\.lora_up\.weight",
        r"\.lora\.up\.weight",
        r"\.lora_linear_layer\.up\.weight",
        r"(?<=_lora[12])\.up\.weight",
        r"(?<=_lora)\.up\.weight",
    ),
    "down.n": (r"\.lora_down\.(?P<n>\d)\.weight",),
    "up.n": (r"\.lora_up\.(?P<n>\d)\.weight",),
    "alpha": (r"\.alpha",),
    "up bias": (rf"\.lora_B{ADAPTER}\.bias",),
    "diff bias": (r"\.diff_b",),
    "magnitude": (
        r"\.dora_scale",
        rf"\.lora_magnitude_vector{ADAPTER}\.weight",
        rf"\.lora_magnitude_vector{ADAPTER}",
    ),
    "diff": (r"\.scale\.diff", r"\.diff"),
    "set": (
        r"\.scale\.set_weight",
        r"\.set_weight",
        r"(?<=_norm)\.scale",
        r"(?<=\.norm_[qk])\.weight",
        r"(?<=\.norm_added_[qk])\.weight",
    ),
    "a1": (r"\.hada_w1_a",),
    "b1": (r"\.hada_w1_b",),
    "a2": (r"\.hada_w2_a",),
    "b2": (r"\.hada_w2_b",),
    "w1": (r"\.lokr_w1",),
    "w1.a": (r"\.lokr_w1_a",),
    "w1.b": (r"\.lokr_w1_b",),
    "w2": (r"\.lokr_w2",),
    "w2.a": (r"\.lokr_w2_a",),
    "w2.b": (r"\.lokr_w2_b",),
}
LEAVES = [
    (leaf, re.compile(rf"(?P<module>.+?){pattern}"))
    for leaf, patterns in SPELLINGS.items()
    for pattern in patterns
]

# what is known and cannot be taken, with the reason
REFUSED: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r".*\.reshape_weight"),
        "changes the shape of a weight (a control LoRA widens img_in): it needs a model of that "
        "shape",
    ),
    (re.compile(r"bundle_emb\..*"), "is a textual inversion embedding, not a LoRA"),
    (
        re.compile(r".*\.(lora_mid\.weight|hada_t[12]|lokr_t[12])"),
        "is the core of a Tucker decomposition, which only convolutions have",
    ),
    (
        re.compile(r".*\.lora_time_(gamma|beta)\..*"),
        "belongs to a LoRA whose strength follows the timestep, another kind of adapter",
    ),
    (
        re.compile(r".*\.(oft_(blocks|diag)|oft_r|boft_.*|rescale)"),
        "turns the weight (OFT, BOFT) where a LoRA adds to it",
    ),
    (
        re.compile(r".*\.on_input|.*ia3_l"),
        "scales activations ((IA)³) where a LoRA adds to weights",
    ),
    (re.compile(r".*\.([ab][12])\.weight"), "belongs to a GLoRA, which multiplies the weight"),
    (
        re.compile(r".*\.(weight_scale|scale_weight|scaled_fp8|absmax|quant_state.*)"),
        "is part of a quantised weight",
    ),
)


class Leaf(NamedTuple):
    """`module` as the file names it, prefix included; `part` numbers the cuts of a fused module."""

    module: str
    leaf: str
    part: int | None = None


def parse(key: str) -> Leaf | None:
    """The module and leaf that a key names, or None for a key of no known form."""
    for leaf, pattern in LEAVES:
        if match := pattern.fullmatch(key):
            number = match.groupdict().get("n")
            if number is not None:
                return Leaf(match["module"], leaf.removesuffix(".n"), int(number))
            return Leaf(match["module"], leaf)
    return None


def refusal(key: str) -> str | None:
    """Why a key of a known form cannot be used, or None."""
    return next((why for pattern, why in REFUSED if pattern.fullmatch(key)), None)
