"""A job's values with those that its model decides, and what of them an output is bound to."""

from typing import Any

from batch.training.curriculum import Curriculum
from flux_engine.defaults import DEFAULTS, folder_defaults, model_folder
from flux_engine.weights.fingerprint import fingerprint
from flux_engine.weights.source import ModelSource, fetch
from schemas.sampling import ModelDefaults, resolve
from schemas.training import TrainJob


def resolved(job: TrainJob) -> TrainJob:
    """The job with every value of its sample pictures, as its model's folder or publication has
    it; SourceError if there is no such folder."""
    values = {}
    if isinstance(job.model, str):
        values = folder_defaults(model_folder(job.model))
    defaults = ModelDefaults.parse(values, f"{job.model}/{DEFAULTS}")
    return job.model_copy(update={"sampling": resolve(job.sampling, defaults)})


def recipe_of(job: TrainJob, curriculum: Curriculum) -> dict[str, Any]:
    """All that decides what is learned: the job's settings, the weights, and the rows by
    content."""
    told = job.recipe()
    places = told.pop("datasets")
    for n, (place, lineage) in enumerate(zip(places, curriculum.lineage, strict=True)):
        del place["path"]  # what lies elsewhere is the same by its content
        told[f"datasets.{n}"] = place | {"digest": lineage["digest"]}
    for name in ("lora_checkpoint", "preset_lora_path"):
        if told[name] is not None:
            told[name] = fingerprint(fetch(ModelSource(told[name])))
    length = job.sampling.t5_sequence_length if curriculum.pictures else None
    weights = curriculum.parts.fingerprints["dit"]
    return told | {"t5_sequence_length": length, "weights": sorted(weights.values())}
