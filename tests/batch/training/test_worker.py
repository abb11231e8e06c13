"""A rank learns, falls, goes on and stops."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from batch.errors import OutputError, RunFailed
from batch.storage import Storage
from batch.training.checkpoint import COMPLETE, FOLDER
from batch.training.metrics import read_metrics
from batch.training.worker import Autoencoder, Quiet, TrainWorker
from flux_engine.training.chance import chance
from tests.batch.targets.made import Targets, distilled
from tests.batch.training.lessons import checkpoint, learned, lesson, tensors
from tests.batch.training.tables import CAPTIONS, picture, write_table


class Falls(Quiet):
    """The process dies after this step: nothing more of it happens."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def stop(self) -> bool:
        self.seen += 1
        if self.seen == self.step:
            raise KeyboardInterrupt
        return False


class Stops(Quiet):
    """Somebody asks for an end after this step."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def stop(self) -> bool:
        self.seen += 1
        return self.seen >= self.step


class Leaves(Quiet):
    """The machine is about to be taken away at this step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def leaving(self, step: int, seconds: float) -> bool:
        assert seconds > 0
        return step == self.step


def bits(job: Any) -> dict[str, torch.Tensor]:
    return tensors(checkpoint(job))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", ["cache", "velocity"])
def test_a_run_that_fell_anywhere_ends_with_the_bits_of_one_that_did_not(
    kind: str, tmp_path: Path, targets: Targets
) -> None:
    values = {"task": {"cache": "sft", "velocity": "kd"}[kind]}
    whole = lesson(tmp_path / "whole", targets(kind), **values)
    _, outcome = learned(whole)
    assert outcome.complete
    wanted = bits(whole)
    assert {name.partition(" ")[0] for name in wanted} == {"trainable", "optimizer", "average"}
    for step in (1, 3, 4, 6):
        job = lesson(tmp_path / f"fell {step}", targets(kind), **values)
        with pytest.raises(KeyboardInterrupt):
            learned(job, Falls(step))
        worker, outcome = learned(job)
        assert outcome.complete
        assert equal(bits(job), wanted)
        assert [line["step"] for line in read_metrics(worker.storage)] == [1, 2, 3, 4, 5, 6]
    losses = [line["loss"] for line in read_metrics(Storage(whole.output_path))]
    assert losses == [line["loss"] for line in read_metrics(worker.storage)]


def test_other_optimizers_and_schedules_go_on_bit_by_bit_too(
    tmp_path: Path, targets: Targets
) -> None:
    values = {
        "optimizer": {"kind": "torch.optim.SGD", "options": {"momentum": 0.9}},
        "lr_schedule": {"kind": "cosine", "warmup_steps": 2, "floor": 0.1},
        "timesteps": {"kind": "diffsynth"},
        "loss": {"kind": "huber", "weight": "diffsynth"},
        "embedded_guidance": [1.0, 4.0],
        "caption_dropout": 0.5,
        "dataset_num_workers": 2,
    }
    whole, fell = (lesson(tmp_path / n, targets("moments"), **values) for n in ("a", "b"))
    learned(whole)
    with pytest.raises(KeyboardInterrupt):
        learned(fell, Falls(3))
    learned(fell)
    assert equal(bits(fell), bits(whole))
    rates = [line["rate"] for line in read_metrics(Storage(whole.output_path))]
    assert rates[0] < rates[1] > rates[3] > rates[5] > 0


def test_several_datasets_one_of_them_pictures_go_on_bit_by_bit(
    tmp_path: Path, targets: Targets
) -> None:
    table = write_table(tmp_path / "table", noise_scale=[None, 0.5, 1.0, 1.0])
    values = {
        "datasets": [
            {"path": str(targets("path")), "weight": 2, "task": "jump"},
            {"path": str(table), "weight": 1, "trigger_word": "zorb"},
            {"path": str(table), "weight": 1, "task": "prior", "caption_dropout": 0.5},
        ],
        "extra_inputs": "noise_scale",
        "gradient_accumulation_steps": 3,
        "max_steps": 5,
        "ema": 0.8,
        "dataset_num_workers": 2,
    }
    whole = lesson(tmp_path / "whole", table, **values)
    learned(whole)
    wanted = bits(whole)
    assert {name.partition(" ")[0] for name in wanted} == {"trainable", "optimizer", "average"}
    for step in (2, 3, 5):
        job = lesson(tmp_path / f"fell {step}", table, **values)
        with pytest.raises(KeyboardInterrupt):
            learned(job, Falls(step))
        learned(job)
        assert equal(bits(job), wanted)
        told = [read_metrics(Storage(one.output_path)) for one in (whole, job)]
        losses, again = ([line["losses"] for line in lines] for lines in told)
        assert losses == again
        assert len({name for line in losses for name in line}) == 3
        folders = [Path(one.output_path) for one in (whole, job)]
        assert len({(folder / "lineage.parquet").read_bytes() for folder in folders}) == 1
        assert equal(*(load_file(folder / "lora.safetensors") for folder in folders))


def test_who_is_asked_to_stop_keeps_where_it_is(tmp_path: Path, targets: Targets) -> None:
    whole = lesson(tmp_path / "whole", targets("cache"), checkpoint_steps=100)
    learned(whole)
    job = lesson(tmp_path / "stopped", targets("cache"), checkpoint_steps=100)
    _, outcome = learned(job, Stops(3))
    assert (outcome.step, outcome.complete) == (3, False)
    assert checkpoint(job).step == 3
    assert not (tmp_path / "stopped" / "lora.safetensors").exists()
    _, outcome = learned(job)
    assert outcome.complete
    assert equal(bits(job), bits(whole))


def test_a_machine_that_goes_away_leaves_a_checkpoint(tmp_path: Path, targets: Targets) -> None:
    job = lesson(tmp_path, targets("cache"), checkpoint_steps=100, keep_checkpoints=9)
    _, outcome = learned(job, Leaves(3))
    assert outcome.complete
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "step-00000003",
        "step-00000006",
    ]


def test_a_torn_checkpoint_is_not_gone_on_from(
    tmp_path: Path, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    whole = lesson(tmp_path / "whole", targets("cache"))
    learned(whole)
    wanted = bits(whole)
    (tmp_path / "whole" / FOLDER / "step-00000006" / COMPLETE).unlink()
    with caplog.at_level(logging.WARNING):
        worker = TrainWorker(whole)
        worker.setup()
    assert worker.step == 4
    assert "torn checkpoint" in caplog.text
    worker.run()
    assert equal(bits(whole), wanted)


class Poisoned:
    """An objective, one row of which answers with no number at some steps."""

    def __init__(self, inner: Any, name: str) -> None:
        self.inner, self.name, self.kinds = inner, name, inner.kinds

    def draw(self, material: Any, random: torch.Generator) -> Any:
        return self.inner.draw(material, random)

    def loss(self, ask: Any, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = self.inner.loss(ask, batch)
        broken = torch.tensor([self.name in name for name in batch.names])
        return loss * torch.where(broken, torch.nan, 1.0)


def poisoned(job: Any) -> TrainWorker:
    worker = TrainWorker(job)
    worker.setup()
    first = worker.curriculum.courses[0]
    wrapped = Poisoned(first.objective, "(key row 2)")
    worker.curriculum.courses = (type(first)(**(vars(first) | {"objective": wrapped})),)
    return worker


def test_a_sample_that_breaks_is_named_and_its_step_is_left_out(
    tmp_path: Path, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    job = lesson(tmp_path, targets("cache"), nan={"skip": 100}, save_steps=1)
    with caplog.at_level(logging.WARNING):
        outcome = poisoned(job).run()
    assert outcome.complete
    lines = read_metrics(Storage(job.output_path))
    broken = [line for line in lines if "broken" in line]
    assert broken
    assert len(broken) < len(lines)
    assert all("(key row 2)" in name for line in broken for name in line["broken"])
    assert all(line["loss"] is None for line in broken)
    assert "(key row 2)" in str(caplog.records[-1].__dict__.get("in", caplog.text))
    assert checkpoint(job).told["skipped"] == len(broken)
    saved = {path.name for path in tmp_path.glob("step-*.safetensors")}
    assert saved == {f"step-{step:06d}.safetensors" for step in range(1, 6)}  # whatever broke
    state = checkpoint(job).state
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.trainable.values())


def test_too_many_broken_steps_end_the_run(tmp_path: Path, targets: Targets) -> None:
    job = lesson(tmp_path, targets("cache"), nan={"skip": 0})
    with pytest.raises(RunFailed, match=r"step \d: NaN or infinity in .*\(key row 2\)"):
        poisoned(job).run()


def test_a_checkpoint_of_other_layers_is_refused(tmp_path: Path, targets: Targets) -> None:
    learned(lesson(tmp_path, targets("cache")))
    with pytest.raises(OutputError, match=r"other parameters: .*lora_A"):
        learned(lesson(tmp_path, targets("cache"), lora_rank=2))


def test_two_datasets_have_curves_of_their_own(tmp_path: Path, targets: Targets) -> None:
    datasets = [
        {"path": str(targets("cache")), "weight": 1},
        {"path": str(targets("pair")), "weight": 1, "task": "prior"},
    ]
    job = lesson(tmp_path, targets("cache"), datasets=datasets)
    learned(job)
    for line in read_metrics(Storage(job.output_path)):
        assert set(line["losses"]) == {str(targets("cache")), str(targets("pair"))}
    first = read_metrics(Storage(job.output_path))[0]
    assert first["losses"][str(targets("pair"))] == 0.0  # nothing has been learned yet


class OneAtATime:
    """An autoencoder that is loaded once, and has one picture."""

    def __init__(self) -> None:
        self.loaded, self.now, self.most = 0, 0, 0

    def coder(self, device: torch.device, why: str) -> "OneAtATime":
        time.sleep(0.05)
        self.loaded += 1
        return self

    def encode(self, pictures: list[torch.Tensor], batch: int, tiling: None) -> list[torch.Tensor]:
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.02)
        self.now -= 1
        return pictures


def test_the_autoencoder_is_loaded_once_and_sees_one_picture_at_a_time() -> None:
    parts = OneAtATime()
    autoencoder = Autoencoder(parts, torch.device("cpu"))  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as pool:  # of several datasets' sources, and for sample pictures
        shown = pool.submit(autoencoder.coder)
        latents = list(pool.map(autoencoder, [torch.full((1,), float(i)) for i in range(4)]))
    assert shown.result() is parts
    assert [latent.item() for latent in latents] == [0.0, 1.0, 2.0, 3.0]
    assert (parts.loaded, parts.most) == (1, 1)


def test_draws_are_functions_of_their_origin() -> None:
    one, other = (torch.rand(4, generator=chance(0, "sample", 7, 1)) for _ in range(2))
    assert torch.equal(one, other)


def test_direct_distillation_in_two_stages_learns_what_it_does_in_one(tmp_path: Path) -> None:
    told = {"seed": [1, 2, 3, 4], "num_inference_steps": [2, 2, 3, 2], "cfg_scale": [1.0] * 4}
    rows = {
        "key": [f"k{i}" for i in range(len(CAPTIONS))],
        "image": [picture(64, 64, i) for i in range(len(CAPTIONS))],
        "caption": list(CAPTIONS),
    }
    target = {"kind": "cache"}
    cache = distilled(tmp_path / "rows", rows | told, target=target, dtype="float32")
    names = "seed,rand_device,num_inference_steps,cfg_scale"
    losses = []
    table = write_table(tmp_path / "table", rand_device=["cpu"] * 4, **told)
    for dataset, task in ((table, "direct_distill"), (cache, "direct_distill:train")):
        job = lesson(tmp_path / task, dataset, task=task, extra_inputs=names, max_steps=3)
        worker, outcome = learned(job)
        assert outcome.complete
        losses.append([line["loss"] for line in read_metrics(worker.storage)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
