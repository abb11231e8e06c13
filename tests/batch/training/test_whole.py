"""A transformer that was trained as a whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from batch.storage import Storage
from flux_engine import load_engine
from flux_engine.defaults import model_folder
from flux_engine.weights.load import load_models
from tests.batch.s3 import CREDENTIALS, serving
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson

WHOLE: dict[str, Any] = {
    "trainable_models": "dit", "lora_rank": None, "lora_target_modules": None, "max_steps": 2,
    "save_dtype": "float32", "ema": 0.0,
}  # fmt: skip


def test_a_model_comes_out_that_an_engine_opens(tmp_path: Path, targets: Targets) -> None:
    worker, _ = learned(lesson(tmp_path, targets("pair"), task="reflow", **WHOLE))
    engine = load_engine(tmp_path / "model", device="cpu", torch_dtype=torch.float32)
    trained = dict(worker.learner.dit.named_parameters())
    for name, parameter in engine.dit.named_parameters():
        assert torch.equal(parameter, trained[name].detach())
    base = load_engine("flux-shapes", device="cpu", torch_dtype=torch.float32)
    assert not torch.equal(base.dit.img_in.weight, engine.dit.img_in.weight)


def test_the_base_is_compared_with_where_its_prior_is_kept(
    tmp_path: Path, targets: Targets
) -> None:
    worker, outcome = learned(lesson(tmp_path, targets("cache"), task="prior", **WHOLE))
    assert outcome.complete
    assert worker.metrics.lines[0]["loss"] == 0.0


def test_of_files_the_transformer_alone_is_written(tmp_path: Path, targets: Targets) -> None:
    file = next(model_folder("flux-shapes").glob("flux1-*.safetensors"))
    job = lesson(tmp_path, targets("cache"), model=None, model_paths=[str(file)], **WHOLE)
    learned(job.model_copy(update={"sampling": job.sampling}))
    (written,) = (tmp_path / "model").iterdir()
    assert written.name == "flux1-trained.safetensors"
    assert load_models([[written]], dtype=torch.float32).dit is not None


@pytest.fixture
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with serving() as server:
            yield server.uri("out")


def test_an_output_in_a_bucket_has_all_of_it(bucket: str, targets: Targets) -> None:
    values = WHOLE | {"sample_prompts": ["a large red circle"], "save_steps": 1}
    _, outcome = learned(lesson(bucket, targets("cache"), **values))
    assert outcome.complete
    storage = Storage(bucket)
    assert "ae.safetensors" in storage.names("model")
    assert storage.names("model/tokenizer")
    assert storage.names("samples") == ["step-000002-00.png"]
    for name in ("training.html", "lineage.json", "metrics.jsonl", "_run/finished.json"):
        assert storage.exists(name)
    assert storage.folders("_run/checkpoints") == ["step-00000002"]
    assert len(storage.read("metrics.jsonl").splitlines()) == 2
