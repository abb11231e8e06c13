"""A job's values with those that its model decides, and what of them an output is bound to."""

from typing import Any

from batch.errors import JobError
from batch.training.curriculum import Curriculum
from flux_engine.defaults import DEFAULTS, folder_defaults, model_folder
from flux_engine.weights.fingerprint import fingerprint
from flux_engine.weights.lora.alphas import config_of
from flux_engine.weights.source import ModelSource, fetch
from schemas.learning import changed
from schemas.sampling import ModelDefaults, Sampling, resolve
from schemas.training import TrainJob

LENGTH = "t5_sequence_length"  # of captions too


def resolved(job: TrainJob) -> TrainJob:
    """The job with every value of its sample pictures, as its model's folder or publication has
    it. SourceError if there is no such folder, JobError for words about pictures that no
    sample_prompts ask for."""
    values = {}
    if isinstance(job.model, str):
        values = folder_defaults(model_folder(job.model))
    defaults = ModelDefaults.parse(values, f"{job.model}/{DEFAULTS}")
    plain, told = resolve(Sampling(), defaults), resolve(job.sampling, defaults)
    others = [name for name in changed(told) if getattr(told, name) != getattr(plain, name)]
    if not job.sample_prompts and (idle := sorted({*others} - {LENGTH})):
        raise JobError(f"sampling.{', '.join(idle)}: of no effect without sample_prompts")
    return job.model_copy(update={"sampling": told})


def recipe_of(job: TrainJob, curriculum: Curriculum) -> dict[str, Any]:
    """All that decides what is learned: the job's settings, the weights, and the rows by
    content."""
    told = job.recipe()
    places = told.pop("datasets")
    for n, (place, lineage) in enumerate(zip(places, curriculum.lineage, strict=True)):
        del place["path"]  # what lies elsewhere is the same by its content
        told[f"datasets.{n}"] = place | {"digest": lineage["digest"]}
    for name in ("tokenizer_1_path", "tokenizer_2_path"):
        del told[name]  # they count by content, if they do
    for name in ("lora_checkpoint", "preset_lora_path"):
        if told[name] is not None:
            files = fetch(ModelSource(told[name]))
            told[name] = fingerprint([*files, *filter(None, map(config_of, files))])
    length = job.sampling.t5_sequence_length if curriculum.pictures else None
    return told | {"t5_sequence_length": length} | weights_of(curriculum)


def weights_of(curriculum: Curriculum) -> dict[str, list[str]]:
    """Digests of the model's files that decide what is learned: the transformer's, the
    autoencoder's if it encodes rows, the text encoders' and tokenizers' if they do."""
    parts = curriculum.parts
    out = {"weights": parts.fingerprint_of("dit")}
    if curriculum.pictures:
        out["weights.vae"] = parts.fingerprint_of("vae")
    if curriculum.captions:
        out |= {
            "weights.clip": parts.fingerprint_of("clip"),
            "weights.t5": parts.fingerprint_of("t5"),
        }
        out |= {f"weights.{name}": files for name, files in parts.tokenizer_fingerprints.items()}
    return {name: sorted(files.values()) for name, files in out.items()}
