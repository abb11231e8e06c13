"""α where a file has no tensor for it: PEFT's configuration, in the metadata or beside the file."""

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flux_engine.errors import CheckpointError

logger = logging.getLogger(__name__)

# what stands before the names of the model that an adapter was made for
WRAPPED = re.compile(r"(base_model\.model\.)?(transformer\.|text_encoder(_2)?\.)?")
IN_METADATA, BESIDE = "lora_adapter_metadata", "adapter_config.json"
PEFT_STEM = "adapter_model"  # of the files that PEFT's configuration stands beside
LARGEST = 2**20  # bytes of a configuration


@dataclass(frozen=True)
class Alphas:
    """What PEFT was told of one adapter: α for all, α by a pattern of names, and which scale."""

    alpha: float | None = None
    rank: int | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def of(self, module: str, rank: int) -> float:
        """α of a module such that the scale is α ÷ rank; without any word of it, the rank."""
        alpha = by_pattern(self.alpha_pattern, module, self.alpha)
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha

    def scale(self, module: str) -> float | None:
        """α ÷ rank of a module whose tensors do not show a rank, if both were told."""
        alpha = by_pattern(self.alpha_pattern, module, self.alpha)
        rank = by_pattern(self.rank_pattern, module, self.rank)
        return None if alpha is None or rank is None else alpha / rank


def by_pattern(patterns: Mapping[str, float], module: str, default: float | None) -> float | None:
    """PEFT's rule: the first pattern that the end of the name matches, from a dot on."""
    name = module[WRAPPED.match(module).end() :]  # type: ignore[union-attr]
    found = (v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(found, default)


@dataclass(frozen=True)
class Configured:
    """The adapters of a file by the prefix of their names; an empty one is all others."""

    adapters: Mapping[str, Alphas]

    def of(self, module: str) -> Alphas:
        prefix = next((p for p in self.adapters if p and module.startswith(p)), "")
        return self.adapters.get(prefix, Alphas())


def is_pefts(name: str) -> bool:
    """Whether a file of this name is one that PEFT wrote."""
    return name.partition(".")[0] == PEFT_STEM


def config_of(file: Path) -> Path | None:
    """`adapter_config.json` beside a file that PEFT wrote; beside another it is somebody else's."""
    beside = file.parent / BESIDE
    return beside if is_pefts(file.name) and beside.is_file() else None


def configured(file: Path, metadata: Mapping[str, str]) -> Configured:
    """From the file's metadata, else from PEFT's configuration beside it, else nothing."""
    if IN_METADATA in metadata:
        where = f"{file}: metadata {IN_METADATA}"
        values = parsed(metadata[IN_METADATA], where)
        prefixes = {key.partition(".")[0] + "." for key in values}
        return Configured(
            {
                prefix: alphas(
                    {
                        key.removeprefix(prefix): value
                        for key, value in values.items()
                        if key.startswith(prefix)
                    },
                    where,
                )
                for prefix in prefixes
            }
        )
    if beside := config_of(file):
        if beside.stat().st_size > LARGEST:
            raise CheckpointError(str(beside), reason=f"has more than {LARGEST} bytes")
        text = beside.read_text(encoding="utf-8")
        return Configured({"": alphas(parsed(text, str(beside)), str(beside))})
    if (file.parent / BESIDE).is_file():
        logger.warning(
            "adapter_config.json beside a LoRA that PEFT did not name is not taken for its own",
            extra={"lora": str(file), "named": f"{PEFT_STEM}.safetensors"},
        )
    return Configured({})


def alphas(values: Mapping[str, Any], where: str) -> Alphas:
    """From a PEFT configuration; LoHa and LoKr call `alpha` what LoRA calls `lora_alpha`.

    CheckpointError if it is not one; `where` is for messages.
    """
    alpha = values.get("lora_alpha", values.get("alpha"))
    try:
        return Alphas(
            None if alpha is None else float(alpha),
            values.get("r"),
            pattern_of(values, "alpha_pattern"),
            pattern_of(values, "rank_pattern"),
            bool(values.get("use_rslora", False)),
        )
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(where, reason=f"is no configuration of PEFT: {error}") from error


def pattern_of(values: Mapping[str, Any], name: str) -> dict[str, float]:
    told = {pattern: float(value) for pattern, value in (values.get(name) or {}).items()}
    for pattern in told:
        re.compile(pattern)
    return told


def parsed(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(where, reason=f"is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(where, reason="is not a JSON object")
    return values
