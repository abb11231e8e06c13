"""Where and with what a benchmark ran."""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

ENGINE = Path(__file__).parents[1] / "flux_engine"
LIBRARIES = ("torch", "transformers", "tokenizers", "einops", "numpy")


def cpu_model() -> str:
    """As Linux names it; elsewhere, as Python does."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def described() -> dict[str, str | int]:
    return {
        "cpu": cpu_model(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def engine_digest() -> str:
    """Of the engine's sources as they lie here, committed or not."""
    digest = hashlib.sha256()
    for file in sorted(ENGINE.rglob("*.py")):
        digest.update(f"{file.relative_to(ENGINE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
