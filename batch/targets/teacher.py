"""Who a job's teacher is, in the words that a dataset carries."""

from collections.abc import Mapping
from typing import Any

from flux_engine.engine import FluxEngine
from flux_engine.models.vae import SCALE, SHIFT
from schemas.jobs import DistillJob
from schemas.targets import NOISE, SOLVER, VERSION

READERS = ("clip", "t5", "tokenizer", "tokenizer_2")  # of captions: what decides their texts


def identity_of(
    job: DistillJob, engine: FluxEngine, fingerprint: Mapping[str, Any]
) -> dict[str, Any]:
    """Who answers: what a reader compares before it lets targets be used."""
    loras: dict[str, Any] = {}
    for entry in job.sampling.loras:  # a file that is worn twice counts twice
        same = sum(other.name == entry.name for other in job.sampling.loras[: len(loras)])
        told = {"scale": entry.scale, "sha256": fingerprint["weights"][f"LoRA {entry.name}"]}
        loras[f"{entry.name} ({same + 1})" if same else entry.name] = told
    dtype = job.engine.torch_dtype
    return {
        "version": VERSION,
        "target": job.target.model_dump(mode="json"),
        "stored": job.dtype,
        "teacher": {
            "weights": engine.fingerprints.get("dit", {}),
            "loras": loras,
            "dtype": dtype,
            "approximate": list(job.engine.approximate),
        },
        "vae": {"weights": engine.fingerprints.get("vae", {}), "dtype": dtype},
        "text": {
            **{name: engine.fingerprints.get(name, {}) for name in READERS},
            "dtype": dtype,
        },
        "latent": {"scale": SCALE, "shift": SHIFT, "channels": engine.vae.spec.latent_channels},
        "noise": NOISE,
        "solver": SOLVER,
        "code": fingerprint["code"],
        "device": fingerprint["device"],
        "versions": fingerprint["versions"],
    }
