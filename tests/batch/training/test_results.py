"""What comes of a run."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from batch.storage import Storage
from batch.training.results import finished_at
from flux_engine import GenerationRequest, LoraUse, load_engine
from flux_engine.weights.lora.read import read_lora
from flux_engine.weights.reader import read_metadata
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson

PROMPT = "a large red circle"


def test_a_run_leaves_weights_pictures_lineage_and_a_page(tmp_path: Path, targets: Targets) -> None:
    job = lesson(
        tmp_path, targets("cache"), sample_prompts=[PROMPT], sample_steps=2, save_steps=2,
        trigger_word="", learning_rate=1e-2, save_dtype="float32",
    )  # fmt: skip
    worker, _ = learned(job)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step-{step:06d}-00.png" for step in (2, 4, 6)
    ]
    assert [path.name for path in sorted(tmp_path.glob("step-*.safetensors"))] == [
        "step-000002.safetensors",
        "step-000004.safetensors",
    ]
    assert finished_at(Storage(str(tmp_path))) == 6
    words = read_metadata(tmp_path / "lora.safetensors")
    assert (words["ss_steps"], words["ss_seed"], words["ss_network_dim"]) == ("6", "0", "4")
    assert json.loads(words["fluxmill.base"])["dit"] == worker.parts.fingerprints["dit"]
    lineage = (tmp_path / "lineage.json").read_bytes()
    assert words["fluxmill.lineage"] == hashlib.sha256(lineage).hexdigest()
    (dataset,) = json.loads(lineage)["datasets"]
    assert dataset["digest"] in json.loads(words["fluxmill.datasets"]).values()
    assert PROMPT in (tmp_path / "training.html").read_text()
    assert "lora.safetensors" not in [p.name for p in (tmp_path / "_run" / "tmp").iterdir()]


def test_sample_pictures_are_what_the_engine_makes_with_the_file(
    tmp_path: Path, targets: Targets
) -> None:
    job = lesson(
        tmp_path, targets("cache"), sample_prompts=[PROMPT], sample_seed=5,
        learning_rate=1e-2, save_dtype="float32",
    )  # fmt: skip
    learned(job)
    engine = load_engine(
        "flux-shapes", device="cpu", torch_dtype=torch.float32,
        text_batch=8, micro_batch=1, decode_batch=1,
    )  # fmt: skip
    request = GenerationRequest(
        prompt=PROMPT, seed=5, height=64, width=64, num_inference_steps=16,
        embedded_guidance=2.0, t5_sequence_length=20, sigma_shift=1.5,
        loras=(LoraUse(path=str(tmp_path / "lora.safetensors")),),
    )  # fmt: skip
    (made,) = engine.generate([request])
    shown = torch.tensor(list(Image.open(tmp_path / "samples/step-000006-00.png").tobytes()))
    wanted = ((made.picture.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).flatten()
    assert float((shown - wanted).abs().max()) <= 1.0


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "bfl", "diffsynth"])
def test_every_layout_says_the_same(layout: str, tmp_path: Path, targets: Targets) -> None:
    job = lesson(
        tmp_path, targets("cache"), lora_layout=layout, save_dtype="float32", max_steps=2, ema=0.0
    )
    worker, _ = learned(job)
    found = read_lora(tmp_path / "lora.safetensors")
    trained = worker.learner.trained.lora()  # type: ignore[union-attr]
    for part in trained.parts:
        mine = [p for p in found.parts if p.place.module == part.place.module]
        delta = torch.zeros(part.place.shape or ())
        for one in mine:
            for start, stop in one.place.rows or ((0, len(delta)),):
                delta[start:stop] += one.delta(None)
        torch.testing.assert_close(delta, part.delta(None), rtol=1e-5, atol=1e-7)


def test_an_output_that_is_not_finished_says_so(tmp_path: Path) -> None:
    assert finished_at(Storage(str(tmp_path))) == 0
