"""The words in a LoRA file's header: what it is, and what PEFT has to know to load it."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flux_engine.weights.lora.alphas import IN_METADATA

CARRIED = ("modelspec.", "ss_", "training_info", "fluxmill.", "software", "name")


def peft_config(
    ranks: Mapping[str, int], alphas: Mapping[str, float], *, dora: bool
) -> dict[str, Any]:
    """PEFT's configuration of an adapter with these modules; what most share, then exceptions.

    Patterns begin with ^, or `proj_out` would mean the single blocks' own `proj_out` as well.
    """
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": r for name, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {f"^{name}": a for name, a in sorted(alphas.items()) if a != alpha},
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_dora": dora,
        "use_rslora": False,
    }


def in_metadata(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Configurations by the prefix of their model, as diffusers keeps them in one entry."""
    flat = {
        f"{prefix}{name}": value
        for prefix, config in configs.items()
        for name, value in config.items()
        if name != "peft_type"
    }
    return {IN_METADATA: json.dumps(flat, indent=2, sort_keys=True)}


def described(
    source: Mapping[str, str], *, rank: int, alpha: float, content: str, guidance: bool
) -> dict[str, str]:
    """Modelspec and kohya's entries: those of the source, and what is known of the new file."""
    told = {key: value for key, value in source.items() if key.startswith(CARRIED)}
    kind = "dev" if guidance else "schnell"
    ours = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.architecture": f"flux-1-{kind}/lora",
        "modelspec.title": "LoRA",
        "modelspec.prediction_type": "flow",
        "ss_network_module": "networks.lora_flux",
        "ss_base_model_version": "flux1",
    }
    of_content = {
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "sshs_model_hash": content,
        "modelspec.hash_sha256": f"0x{content}",
    }
    return ours | told | of_content
