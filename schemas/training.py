"""A training job: rows into a LoRA, or into a transformer that is trained as a whole."""

from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from schemas.address import check_address
from schemas.base import Schema
from schemas.engine import ModelEntry
from schemas.learning import Broken, Loss, OptimizerConfig, RateSchedule, Timesteps, changed
from schemas.mapped import Count, flatten
from schemas.older_words import in_our_words
from schemas.sampling import Prompt, Sampling, Seed, Side
from schemas.task import (
    DRAWN,
    EXTRA_INPUTS,
    GUIDED,
    TAKERS,
    Share,
    Task,
    Told,
    TrainDataset,
    check_range,
)

Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[FiniteFloat, Field(gt=0.0)]


class TrainJob(Schema):
    """Which rows teach which model what, and what comes of it.

    A micro-batch is `batch_size` samples of one dataset and one size; a step sums
    `gradient_accumulation_steps` of them, over all workers together.
    """

    output_path: str
    datasets: Annotated[tuple[TrainDataset, ...], Field(min_length=1)]
    task: Task = "sft"
    dataset_repeat: Count = 1
    dataset_num_workers: Annotated[int, Field(ge=0, le=64)] = 0
    data_file_keys: tuple[str, ...] = ("image",)
    picture_roots: tuple[str, ...] = ()
    extra_inputs: tuple[str, ...] = ()
    trigger_word: str | None = None
    caption_dropout: Share = 0.0
    height: Side | None = None
    width: Side | None = None
    max_pixels: Annotated[int, Field(ge=256)] = 1048576
    bucket_step: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 16
    batch_size: Count = 1
    num_epochs: Count | None = None
    max_steps: Count | None = None
    gradient_accumulation_steps: Count = 1

    model: str | tuple[ModelEntry, ...] | None = None
    model_paths: tuple[str | tuple[str, ...], ...] = ()
    model_id_with_origin_paths: tuple[str, ...] = ()
    tokenizer_1_path: str | None = None
    tokenizer_2_path: str | None = None
    axes_dim: tuple[int, ...] | None = None
    fp8_models: tuple[str, ...] = ()
    torch_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    trainable_models: tuple[str, ...] = ()
    lora_base_model: str | None = None
    lora_target_modules: tuple[str, ...] = ("all",)
    lora_rank: Rank = 32
    lora_alpha: Alpha | None = None
    ranks: dict[str, Rank] = Field(default_factory=dict)
    alphas: dict[str, Alpha] = Field(default_factory=dict)
    lora_checkpoint: str | None = None
    preset_lora_path: str | None = None
    preset_lora_model: Literal["dit"] | None = None
    lora_layout: Literal["diffusers", "kohya", "bfl", "diffsynth"] = "diffusers"
    save_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    align_to_opensource_format: bool = False
    remove_prefix_in_ckpt: Literal["pipe.dit."] | None = None
    use_gradient_checkpointing: bool = False
    use_gradient_checkpointing_offload: bool = False
    find_unused_parameters: bool = False

    timesteps: Timesteps = Timesteps()
    loss: Loss = Loss()
    embedded_guidance: Told | None = None
    learning_rate: Annotated[FiniteFloat, Field(gt=0.0)] = 1e-4
    weight_decay: Annotated[FiniteFloat, Field(ge=0.0)] = 0.01
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: RateSchedule = RateSchedule()
    ema: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.0
    max_grad_norm: Annotated[FiniteFloat, Field(gt=0.0)] | None = 1.0
    nan: Broken = Broken()
    seed: Seed = 0

    workers: Literal["auto", "local"] | Count | tuple[Count, Count] = "auto"
    ordered: bool = True
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    save_steps: Count | None = None
    checkpoint_steps: Count = 100
    keep_checkpoints: Count = 2
    sample_prompts: tuple[Prompt, ...] = ()
    sample_steps: Count | None = None
    sample_seed: Seed = 0
    sampling: Sampling = Sampling()

    @model_validator(mode="before")
    @classmethod
    def _older_words(cls, values: Any) -> Any:
        return in_our_words(values)

    @field_validator("output_path", "lora_checkpoint", "preset_lora_path", "picture_roots")
    @classmethod
    def _no_secrets(cls, told: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for address in [told] if isinstance(told, str) else told or ():
            check_address(address)
        return told

    @field_validator("extra_inputs")
    @classmethod
    def _known_inputs(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in EXTRA_INPUTS]:
            raise ValueError(
                f"{', '.join(unknown)}: no objective here takes that; there are "
                f"{', '.join(EXTRA_INPUTS)}"
            )
        return names

    @field_validator("data_file_keys")
    @classmethod
    def _known_files(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        more = [name for name in names[1:] if name != "mask"]
        if more or not names or names[0] == "mask":
            raise ValueError(
                f"{', '.join(names)}: name the picture's column, and mask if there is one; no "
                "objective here takes other pictures (leave_out of a dataset passes them over)"
            )
        return names

    @field_validator("trainable_models")
    @classmethod
    def _known_models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name != "dit"]:
            raise ValueError(f"{', '.join(unknown)}: cannot be trained here; there is dit")
        return names

    @field_validator("lora_base_model")
    @classmethod
    def _known_base(cls, name: str | None) -> str | None:
        if name not in (None, "dit"):
            raise ValueError(f"{name!r}: no LoRA can be trained on that here; there is dit")
        return name

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        older = [
            name for name in ("model_paths", "model_id_with_origin_paths") if getattr(self, name)
        ]
        if (self.model is not None) == bool(older):
            there = " and ".join(["model", *older] if older else ["none of them"])
            raise ValueError(
                f"give model, or model_paths and model_id_with_origin_paths; there is {there}"
            )
        for entry in self.model_id_with_origin_paths:
            if not all(entry.rpartition(":")[::2]):
                raise ValueError(
                    f"model_id_with_origin_paths {entry!r}: write it as owner/name:pattern"
                )
        named = {"dit", *self.model_id_with_origin_paths}
        named |= {one if isinstance(one, str) else ",".join(one) for one in self.model_paths}
        if unknown := [name for name in self.fp8_models if name not in named]:
            raise ValueError(
                f"fp8_models {', '.join(unknown)}: is no model of this job; there are "
                f"{', '.join(sorted(named))}"
            )
        return self

    @model_validator(mode="after")
    def _one_thing_is_trained(self) -> Self:
        lora = sorted(LORA_ONLY & changed(self))
        if self.trainable_models and lora:
            raise ValueError(
                f"trainable_models trains the whole transformer, and {', '.join(lora)} would have "
                "no effect: leave one out"
            )
        if self.trainable_models and self.fp8_models:
            raise ValueError("fp8_models: weights in eight bits cannot be trained")
        if self.master_dtype == "bfloat16" and not self.trainable_models:
            raise ValueError("master_dtype bfloat16 goes with trainable_models; LoRAs are float32")
        if (self.preset_lora_model is not None) and self.preset_lora_path is None:
            raise ValueError("preset_lora_model goes with preset_lora_path")
        if self.align_to_opensource_format and self.lora_layout != "diffusers":
            raise ValueError("align_to_opensource_format means lora_layout kohya: give one of them")
        if self.align_to_opensource_format and self.trainable_models:
            raise ValueError("align_to_opensource_format is about LoRAs: it goes with no "
                             "trainable_models")  # fmt: skip
        if self.use_gradient_checkpointing_offload and not self.use_gradient_checkpointing:
            raise ValueError(
                "use_gradient_checkpointing_offload goes with use_gradient_checkpointing"
            )
        return self

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("give height and width, or neither: then sizes are the pictures' own")
        if self.height is not None and {"max_pixels", "bucket_step"} & changed(self):
            raise ValueError("max_pixels and bucket_step have no effect with a height and width")
        if self.num_epochs is not None and self.max_steps is not None:
            raise ValueError("give num_epochs or max_steps, not both")
        span = self.workers if isinstance(self.workers, tuple) else None
        if span and span[0] > span[1]:
            raise ValueError(f"workers {list(span)}: the first is the smaller one")
        if not isinstance(self.workers, str) and not self.worker_counts:
            told = list(span) if span else self.workers
            raise ValueError(
                f"workers {told}: gradient_accumulation_steps {self.gradient_accumulation_steps} "
                "are the micro-batches of all workers together, so that their number divides it"
            )
        check_range(self.embedded_guidance)
        weights = [dataset.weight for dataset in self.datasets]
        if None in weights and any(weights):
            raise ValueError("weight: give one to every dataset, or to none")
        self._repeats_count()
        if self.sample_steps is not None and not self.sample_prompts:
            raise ValueError("sample_steps goes with sample_prompts")
        if self.sample_seed and not self.sample_prompts:
            raise ValueError("sample_seed goes with sample_prompts")
        for name in ("seed", "rand_device", "denoising_strength"):
            if name in changed(self.sampling):
                raise ValueError(f"sampling.{name}: of no effect; the noise is of sample_seed")
        if self.sampling.loras:
            raise ValueError("sampling.loras: sample pictures wear what is trained, and no more")
        return self

    def _repeats_count(self) -> None:
        """ValueError for repeats that change neither where an epoch ends nor a dataset's share."""
        repeats = [self.repeat_of(dataset) for dataset in self.datasets]
        shared = self.weights is None and len(set(repeats)) > 1
        if self.max_steps is not None and max(repeats) > 1 and not shared:
            raise ValueError(
                "dataset_repeat: of no effect with max_steps; epochs end by it, and where no "
                "dataset has a weight, unlike repeats are their shares"
            )
        if self.weights is None:
            return
        for dataset in self.datasets[1:]:
            if dataset.dataset_repeat is not None:
                raise ValueError(
                    f"{dataset.path}: dataset_repeat: of no effect with weight, by which datasets "
                    "share; an epoch ends with the first one"
                )

    @model_validator(mode="after")
    def _all_is_used(self) -> Self:
        tasks = [dataset.refuse_idle(self.task_of(dataset)) for dataset in self.datasets]
        for name, users in (("timesteps", DRAWN), ("embedded_guidance", GUIDED)):
            if name in changed(self) and not users.intersection(tasks):
                raise ValueError(
                    f"{name}: of no effect with task {', '.join(sorted(set(tasks)))}; it is for "
                    f"{', '.join(sorted(users))}"
                )
        taken = {name for dataset in self.datasets for name in self.extra_of(dataset)}
        for name in self.extra_inputs:
            if name not in taken:
                raise ValueError(
                    f"extra_inputs {name}: of no effect with task {', '.join(sorted(set(tasks)))}"
                    f"{self._instead(name)}; it is for {', '.join(sorted(TAKERS[name]))}"
                )
        return self

    def _instead(self, name: str) -> str:
        """Which other setting says what rows would."""
        said = {"embedded_guidance": "embedded_guidance", "num_inference_steps": "student_steps"}
        of_task = any(self.task_of(dataset) in TAKERS[name] for dataset in self.datasets)
        return f", where {said[name]} is given" if of_task else ""

    def task_of(self, dataset: TrainDataset) -> Task:
        return dataset.task or self.task

    def guidance_of(self, dataset: TrainDataset) -> Told | None:
        """None: as the task has it."""
        if "embedded_guidance" in self.extra_of(dataset):
            return "row"
        return self._guidance_told(dataset)

    def _guidance_told(self, dataset: TrainDataset) -> Told | None:
        told = dataset.embedded_guidance
        return self.embedded_guidance if told is None else told

    def extra_of(self, dataset: TrainDataset) -> tuple[str, ...]:
        """The extra inputs that decide what is learned from its rows."""
        idle = {name for name in self.extra_inputs if self.task_of(dataset) not in TAKERS[name]}
        if dataset.student_steps is not None:
            idle.add("num_inference_steps")
        if self._guidance_told(dataset) not in (None, "row"):
            idle.add("embedded_guidance")
        return tuple(name for name in self.extra_inputs if name not in idle)

    def repeat_of(self, dataset: TrainDataset) -> int:
        return dataset.dataset_repeat or self.dataset_repeat

    def masked(self, dataset: TrainDataset) -> bool:
        return dataset.mask or "mask" in self.data_file_keys

    def trigger_of(self, dataset: TrainDataset) -> str | None:
        return self.trigger_word if dataset.trigger_word is None else dataset.trigger_word

    def dropout_of(self, dataset: TrainDataset) -> float:
        told = dataset.caption_dropout
        return self.caption_dropout if told is None else told

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """How many workers there may be, rising: numbers that divide a step's micro-batches."""
        n = self.gradient_accumulation_steps
        match self.workers:
            case "auto" | "local":
                low, high = 1, n
            case int(count):
                low, high = count, count
            case (low, high):
                pass
        return tuple(k for k in range(low, min(high, n) + 1) if n % k == 0)

    @property
    def weights(self) -> tuple[Fraction, ...] | None:
        """Shares of the datasets as exact numbers, or None where sizes decide."""
        told = [dataset.weight for dataset in self.datasets]
        return None if None in told else tuple(Fraction(str(weight)) for weight in told)

    @property
    def layout(self) -> Literal["diffusers", "kohya", "bfl", "diffsynth"]:
        return "kohya" if self.align_to_opensource_format else self.lora_layout

    def recipe(self) -> dict[str, Any]:
        """Every setting that changes what is learned, flat, by its path in the file."""
        ends = ENDS if self.lr_schedule.kind == "constant" else ()  # a longer run begins the same
        left_out = (*PLACES, *MEANS, *RESULTS, *ends)
        return {k: v for k, v in self._flat().items() if not k.startswith(left_out)}

    def asked(self) -> dict[str, Any]:
        """Every setting but those of how it is computed: jobs that differ here are two."""
        return {k: v for k, v in self._flat().items() if not k.startswith(MEANS)}

    def _flat(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        flatten(self.model_dump(mode="json"), "", out)
        return out


LORA_ONLY = {
    "lora_base_model", "lora_target_modules", "lora_rank", "lora_alpha", "ranks", "alphas",
    "lora_checkpoint", "lora_layout",
}  # fmt: skip
ENDS = ("num_epochs", "max_steps")
PLACES = ("output_path", "model", "picture_roots")
MEANS = (
    "dataset_num_workers", "device", "workers", "max_failures", "checkpoint_steps",
    "keep_checkpoints", "use_gradient_checkpointing", "find_unused_parameters", "nan",
)  # fmt: skip
RESULTS = (
    "save_steps", "sample_", "sampling", "lora_layout", "save_dtype",
    "align_to_opensource_format", "remove_prefix_in_ckpt",
)  # fmt: skip
