"""A training job as it is written down."""

from fractions import Fraction
from typing import Any

import pytest

from schemas.base import SchemaError
from schemas.training import TrainJob


def parsed(**values: Any) -> TrainJob:
    told = {"output_path": "out", "model": "flux-shapes", "dataset": "rows"} | values
    return TrainJob.parse({name: value for name, value in told.items() if value is not None})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lerning_rate": 1}, "lerning_rate: unknown name; did you mean 'learning_rate'?"),
    ({"trainable_models": "dit", "lora_rank": 4}, "lora_rank would have no effect"),
    ({"trainable_models": "vae"}, "vae: cannot be trained here; there is dit"),
    ({"trainable_models": "dit", "fp8_models": "dit"}, "eight bits cannot be trained"),
    ({"lora_base_model": "text_encoder"}, "no LoRA can be trained on that here"),
    ({"master_dtype": "bfloat16"}, "goes with trainable_models"),
    ({"preset_lora_model": "dit"}, "goes with preset_lora_path"),
    ({"align_to_opensource_format": True, "lora_layout": "bfl"}, "give one of them"),
    ({"use_gradient_checkpointing_offload": True}, "goes with use_gradient_checkpointing"),
    ({"workers": 3, "gradient_accumulation_steps": 4}, "workers 3: gradient_accumulation_steps 4"),
    ({"workers": [5, 9], "gradient_accumulation_steps": 4}, "workers [5, 9]: gradient_accum"),
    ({"workers": [2, 1], "gradient_accumulation_steps": 4}, "the first is the smaller one"),
    ({"height": 512}, "give height and width, or neither"),
    ({"height": 512, "width": 512, "max_pixels": 4096}, "max_pixels and bucket_step have no"),
    ({"num_epochs": 2, "max_steps": 5}, "give num_epochs or max_steps, not both"),
    ({"task": "sft:data_process"}, "jobs.distill` with target kind cache"),
    ({"dataset_base_path": "x"}, "`python -m jobs.ingest`"),
    ({"dataset_metadata_path": "x.csv"}, "`python -m jobs.ingest`"),
    ({"extra_inputs": "seed,kontext_images"}, "kontext_images: no objective here takes that"),
    ({"data_file_keys": "image,kontext_images"}, "no objective here takes other pictures"),
    ({"datasets": ["a"]}, "give dataset or datasets, not both"),
    ({"dataset": None, "datasets": [{"path": "a", "weight": 1}, "b"]}, "weight: give one to every"),
    ({"dataset_repeat": 50, "max_steps": 4}, "dataset_repeat: of no effect with max_steps"),
    (
        {
            "dataset": None,
            "datasets": [
                {"path": "a", "weight": 1, "dataset_repeat": 2},
                {"path": "b", "weight": 1, "dataset_repeat": 3},
            ],
        },
        "b: dataset_repeat: of no effect with weight",
    ),
    ({"dataset": None}, "datasets: is missing"),
    ({"sample_steps": 5}, "sample_steps goes with sample_prompts"),
    (
        {"sample_prompts": ["a"], "sampling": {"seed": 5}},
        "sampling.seed: of no effect; the noise is of sample_seed",
    ),
    ({"model": None}, "there is none of them"),
    ({"model_paths": ["a.safetensors"]}, "give model, or model_paths"),
    ({"model": None, "model_id_with_origin_paths": "a/b"}, "write it as owner/name:pattern"),
    ({"task": "kd", "timesteps": {"kind": "uniform"}}, "timesteps: of no effect with task kd"),
    ({"task": "kd", "embedded_guidance": 3.0}, "embedded_guidance: of no effect with task kd"),
    ({"extra_inputs": "seed"}, "extra_inputs seed: of no effect with task sft; it is for direct_"),
    (
        {"extra_inputs": "noise_scale", "task": "reflow"},
        "extra_inputs noise_scale: of no effect with task reflow; it is for prior, sft",
    ),
    (
        {"extra_inputs": "min_timestep_boundary", "task": "direct_distill"},
        "extra_inputs min_timestep_boundary: of no effect with task direct_distill",
    ),
    (
        {"extra_inputs": "embedded_guidance", "embedded_guidance": 2.0},
        "with task sft, where embedded_guidance is given; it is for",
    ),
    (
        {
            "dataset": {"path": "rows", "student_steps": 4},
            "task": "direct_distill",
            "extra_inputs": "seed,num_inference_steps",
        },
        "extra_inputs num_inference_steps: of no effect with task direct_distill, where student_",
    ),
    ({"model_paths": "[1", "model": None}, "is no JSON list"),
    ({"output_path": "s3://key:word@bucket/a"}, "has credentials in it"),
]


@pytest.mark.parametrize(("values", "told"), REFUSED, ids=[told[:40] for _, told in REFUSED])
def test_what_does_not_go_together_is_refused_by_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SchemaError) as refused:
        parsed(**values)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("workers", "counts"),
    [("auto", (1, 2, 3, 4, 6, 12)), (4, (4,)), ([1, 4], (1, 2, 3, 4)), ([5, 20], (6, 12))],
)
def test_workers_are_as_many_as_divide_a_steps_micro_batches(
    workers: Any, counts: tuple[int, ...]
) -> None:
    job = parsed(workers=workers, gradient_accumulation_steps=12)
    assert job.worker_counts == counts


def test_the_words_of_the_existing_trainer_are_understood() -> None:
    job = parsed(
        model=None,
        model_paths='["dit.safetensors", ["t5-1.safetensors", "t5-2.safetensors"]]',
        model_id_with_origin_paths="owner/name:ae.safetensors,owner/name:text_encoder/*",
        data_file_keys="image,mask",
        extra_inputs="noise_scale, embedded_guidance",
        lora_target_modules="a_to_qkv,b_to_qkv",
        task="sft:train",
        remove_prefix_in_ckpt="pipe.dit.",
        align_to_opensource_format=True,
        fp8_models="dit.safetensors",
        lora_base_model="dit",
    )
    assert job.model_paths[1] == ("t5-1.safetensors", "t5-2.safetensors")
    assert job.model_id_with_origin_paths[1] == "owner/name:text_encoder/*"
    assert job.extra_inputs == ("noise_scale", "embedded_guidance")
    assert job.layout == "kohya"


def test_a_job_that_was_written_down_is_the_same_when_it_is_read() -> None:
    job = parsed(trainable_models="dit", task="kd")
    assert TrainJob.parse(job.model_dump(mode="json")) == job


def test_datasets_take_what_the_job_says_unless_they_say_it() -> None:
    job = parsed(
        dataset=None,
        datasets=["a", {"path": "b", "task": "prior", "trigger_word": "", "dataset_repeat": 7}],
        trigger_word="sks",
        caption_dropout=0.1,
        dataset_repeat=3,
    )
    first, second = job.datasets
    assert (job.task_of(first), job.trigger_of(first), job.repeat_of(first)) == ("sft", "sks", 3)
    assert (job.task_of(second), job.trigger_of(second), job.repeat_of(second)) == ("prior", "", 7)
    assert job.dropout_of(second) == 0.1
    assert job.weights is None
    weighed = [{"path": "a", "weight": 0.1}, {"path": "b", "weight": 1}]
    assert parsed(dataset=None, datasets=weighed).weights == (Fraction(1, 10), Fraction(1))


def test_extra_inputs_are_read_where_a_task_takes_them() -> None:
    job = parsed(
        dataset=None,
        datasets=[{"path": "a", "task": "direct_distill"}, {"path": "b", "task": "prior"},
                  {"path": "c", "task": "kd"}],
        extra_inputs="seed,num_inference_steps,noise_scale,embedded_guidance",
    )  # fmt: skip
    direct, prior, kd = job.datasets
    assert job.extra_of(direct) == ("seed", "num_inference_steps", "embedded_guidance")
    assert job.extra_of(prior) == ("noise_scale", "embedded_guidance")
    assert job.extra_of(kd) == ()
    assert [job.guidance_of(dataset) for dataset in job.datasets] == ["row", "row", None]


def test_repeats_are_shares_or_the_end_of_an_epoch() -> None:
    told = [{"path": "a", "dataset_repeat": 2}, {"path": "b"}]
    assert parsed(dataset=None, datasets=told, max_steps=5).max_steps == 5
    assert parsed(dataset=None, datasets=told).repeat_of(parsed().datasets[0]) == 1
    weighed = [{"path": "a", "weight": 1, "dataset_repeat": 2}, {"path": "b", "weight": 3}]
    assert parsed(dataset=None, datasets=weighed, num_epochs=2).num_epochs == 2


def test_where_and_how_fast_is_no_part_of_the_recipe() -> None:
    recipe = parsed().recipe()
    same = parsed(output_path="there", workers="local", save_steps=5, sample_prompts=["a"])
    assert same.recipe() == recipe
    assert parsed(max_steps=5).recipe() == recipe  # a longer run begins the same
    falling = {"kind": "cosine"}
    assert parsed(max_steps=5, lr_schedule=falling).recipe() != parsed(lr_schedule=falling).recipe()
    assert parsed(learning_rate=1e-3).recipe() != recipe
