"""Other words for a training job: those of DiffSynth-Studio's command line, and short ones."""

import json
from typing import Any

INGEST = "is read by `python -m jobs.ingest` (kind: table), which makes a dataset of it: name that"
LISTS = {
    "data_file_keys", "extra_inputs", "fp8_models", "trainable_models", "lora_target_modules",
    "model_id_with_origin_paths",
}  # fmt: skip


def in_our_words(values: Any) -> Any:
    """Other ways to say the same: commas for lists, `dataset` for a single one."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    for name in ("dataset_base_path", "dataset_metadata_path"):
        if name in values:
            raise ValueError(f"{name}: {INGEST} as `dataset`")
    if "dataset" in values:
        if "datasets" in values:
            raise ValueError("give dataset or datasets, not both")
        values["datasets"] = [values.pop("dataset")]
    if isinstance(values.get("datasets"), list | tuple):
        values["datasets"] = [
            {"path": one} if isinstance(one, str) else one for one in values["datasets"]
        ]
    if values.get("lora_target_modules") == "":
        values["lora_target_modules"] = ["auto"]  # the automatic mode there
    for name in LISTS.intersection(values):
        if isinstance(values[name], str):
            values[name] = [one.strip() for one in values[name].split(",") if one.strip()]
    if isinstance(values.get("model_paths"), str):
        values["model_paths"] = paths_in(values["model_paths"])
    told = [values.get("task"), *(d.get("task") for d in dicts(values.get("datasets")))]
    for task in told:
        if isinstance(task, str) and task.endswith(":data_process"):
            raise ValueError(
                f"task {task}: is `python -m jobs.distill` with target kind cache here; "
                f"{task.replace('data_process', 'train')} then takes its dataset"
            )
    return values


def dicts(values: Any) -> list[dict[str, Any]]:
    return (
        [one for one in values if isinstance(one, dict)] if isinstance(values, list | tuple) else []
    )


def paths_in(text: str) -> Any:
    """A JSON list, as the existing trainer's command line has it, or a single path."""
    if not text.lstrip().startswith("["):
        return [text]
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"model_paths {text!r}: is no JSON list: {error}") from None
