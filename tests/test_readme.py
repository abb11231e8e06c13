"""What the README says about reading datasets and targets, done; and of training, its tables."""

import re
from pathlib import Path
from typing import Any

import pytest

from batch.targets.export.fastgen import export
from batch.targets.layout import COLUMNS
from schemas.base import SchemaError
from schemas.exports import FastGenExport
from schemas.training import TrainJob
from tests.batch.ingest.material import folder, ingest, job, picture
from tests.batch.targets.made import Targets
from tests.batch.test_actor import worker_and_shards

README = Path(__file__).parents[1] / "README.md"


def snippets(title: str = "Reading a dataset", count: int = 4) -> list[str]:
    section = README.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(found) == count
    return found


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", range(4))
def test_each_way_to_read_a_dataset_reads_it(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = snippets()[place]
    kind = "webdataset" if "webdataset" in code else "parquet"
    (tmp_path / "out").mkdir()
    worker, shards = worker_and_shards(tmp_path, ["fox", "owl", "nan", "bee", "ant"], format=kind)
    for shard in shards:
        worker(shard)
    (tmp_path / "out").rename(tmp_path / "dataset")
    (tmp_path / "out").mkdir()
    (tmp_path / "dataset").rename(tmp_path / "out" / "foxes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    exec(compile(code, "README", "exec"), {})
    printed = capsys.readouterr().out
    for words in re.findall(r"#: (.*)", code):
        assert words in printed


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("title", "count", "place"),
    [("Reading targets", 2, 0), ("Reading targets", 2, 1), ("Exporting targets", 1, 0)],
)
def test_targets_are_read_as_it_says(
    title: str,
    count: int,
    place: int,
    targets: Targets,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = snippets(title, count)[place]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "path").symlink_to(targets("path"))
    monkeypatch.chdir(tmp_path)
    if "tars" in code:
        export("out/path", Path("out/tars"), FastGenExport())
    exec(compile(code, "README", "exec"), {})
    printed = capsys.readouterr().out
    for words in re.findall(r"#: (.*)", code):
        assert words in printed


def test_training_shards_are_read_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = snippets("Training shards", 1)
    files: dict[str, bytes | str] = {}
    for i in range(3):
        files |= {f"{i}.png": picture(70, 50, seed=i), f"{i}.txt": "a red circle"}
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    ingest(job(tmp_path / "out" / "shards", source))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {})
    printed = capsys.readouterr().out
    for words in re.findall(r"#: (.*)", code):
        assert words in printed


def test_the_table_of_target_columns_names_them_all() -> None:
    section = README.read_text().partition("\n## Reading targets\n")[2].partition("\n## ")[0]
    missing = [name for name in COLUMNS if f"`{name}`" not in section]
    assert missing == []


def flags() -> list[str]:
    """Those of the table of the existing trainer's command line."""
    section = README.read_text().partition("takes on its command line:\n")[2]
    table = section.strip().partition("\n\n")[0]
    return [flag for line in table.splitlines() for flag in re.findall(r"`--(\w+)`", cell(line))]


def cell(line: str) -> str:
    return line.split("|")[1]


# a value that is taken for each flag, with what it needs beside it
TAKEN: dict[str, dict[str, Any]] = {
    "dataset_repeat": {"dataset_repeat": 50},
    "dataset_num_workers": {"dataset_num_workers": 4},
    "learning_rate": {"learning_rate": 1e-5},
    "weight_decay": {"weight_decay": 0.1},
    "num_epochs": {"num_epochs": 5},
    "lora_rank": {"lora_rank": 16},
    "height": {"height": 512, "width": 512},
    "width": {"height": 512, "width": 512},
    "max_pixels": {"max_pixels": 262144},
    "tokenizer_1_path": {"tokenizer_1_path": "tokenizer"},
    "tokenizer_2_path": {"tokenizer_2_path": "tokenizer_2"},
    "output_path": {"output_path": "models/train"},
    "lora_checkpoint": {"lora_checkpoint": "a.safetensors"},
    "preset_lora_path": {"preset_lora_path": "a.safetensors"},
    "preset_lora_model": {"preset_lora_model": "dit", "preset_lora_path": "a.safetensors"},
    "use_gradient_checkpointing": {"use_gradient_checkpointing": True},
    "use_gradient_checkpointing_offload": {
        "use_gradient_checkpointing": True,
        "use_gradient_checkpointing_offload": True,
    },
    "data_file_keys": {"data_file_keys": "image,mask"},
    "extra_inputs": {"extra_inputs": "embedded_guidance,noise_scale"},
    "model_paths": {"model": None, "model_paths": '["a.safetensors", ["b-1", "b-2"]]'},
    "model_id_with_origin_paths": {"model": None, "model_id_with_origin_paths": "owner/name:a*"},
    "fp8_models": {
        "model": None,
        "model_paths": '["a.safetensors"]',
        "fp8_models": "a.safetensors",
    },
    "trainable_models": {"trainable_models": "dit"},
    "lora_base_model": {"lora_base_model": "dit"},
    "lora_target_modules": {"lora_target_modules": "a_to_qkv,b_to_qkv,ff_a.0"},
    "task": {"task": "direct_distill:train", "extra_inputs": "seed,num_inference_steps"},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 4},
    "save_steps": {"save_steps": 500},
    "remove_prefix_in_ckpt": {"remove_prefix_in_ckpt": "pipe.dit."},
    "find_unused_parameters": {"find_unused_parameters": True},
    "align_to_opensource_format": {"align_to_opensource_format": True},
}
REFUSED = {
    "dataset_base_path": "is read by `python -m jobs.ingest`",
    "dataset_metadata_path": "is read by `python -m jobs.ingest`",
}
# what the table says to be refused, of flags that are taken
NARROWER = {
    "data_file_keys": ("image,kontext_images", "no objective here takes other pictures"),
    "extra_inputs": ("seed", "of no effect with task sft; it is for direct_distill"),
    "fp8_models": ("nothing", "is no model of this job"),
    "trainable_models": ("controlnet", "cannot be trained here; there is dit"),
    "lora_base_model": ("text_encoder", "no LoRA can be trained on that here"),
    "task": ("sft:data_process", "is `python -m jobs.distill` with target kind cache here"),
    "remove_prefix_in_ckpt": ("pipe.", "remove_prefix_in_ckpt: Input should be 'pipe.dit.'"),
}


def train_job(**values: Any) -> TrainJob:
    told = {"output_path": "out", "model": "flux-shapes", "dataset": "rows"} | values
    return TrainJob.parse({name: value for name, value in told.items() if value is not None})


def test_each_flag_of_the_existing_trainer_is_taken_or_refused_with_a_reason() -> None:
    assert sorted(flags()) == sorted([*TAKEN, *REFUSED])
    plain = train_job()
    for flag, values in TAKEN.items():
        assert flag in values
        assert getattr(train_job(**values), flag) != getattr(plain, flag)
    for flag, why in REFUSED.items():
        assert flag not in TrainJob.model_fields
        with pytest.raises(SchemaError, match=re.escape(why)):
            train_job(**{flag: "there"})
    for flag, (value, why) in NARROWER.items():
        with pytest.raises(SchemaError, match=re.escape(why)):
            train_job(**{flag: value})


def test_each_setting_of_training_stands_in_its_table() -> None:
    section = README.read_text().partition("\n## Training\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)", section))
    assert [name for name in TrainJob.model_fields if name not in {*named, *flags()}] == []
