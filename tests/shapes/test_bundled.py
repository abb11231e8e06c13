"""The shipped weights draw what they are asked, through the main job at the model's defaults."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from batch.actor import ShardWorker
from batch.run import checked_plan
from batch.stages.generate import GenerateStage
from jobs.work import resolved
from schemas.jobs import GenerateJob
from shapes.dataset import rows_of, to_tensor
from shapes.folder import AUTOENCODER, SAMPLING, TRANSFORMER, defaults
from shapes.manifest import prompts, write_manifest
from shapes.recipe import ONE
from shapes.ruler import score
from shapes.score import score_dataset
from shapes.world import keyed

FOLDER = Path(__file__).parents[2] / "flux_engine" / "bundled" / "flux-shapes"
WORLD = ONE.world
ROWS, UNSEEN = 256, 128


def work(manifest: Path, output: Path, **engine: str) -> Path:
    """The job from its manifest to its dataset, in this process instead of Ray's."""
    told = {
        "manifest": str(manifest),
        "output": str(output),
        "rows_per_shard": 128,
        "engine": {"model": "flux-shapes", "device": "cpu", **engine},
    }
    job = resolved(GenerateJob.parse(told))
    _, shards = checked_plan(job)
    worker = ShardWorker(job, GenerateStage(job, ()))
    worker.output.claim(job.recipe())
    worker.setup()
    reports = [worker(shard) for shard in shards]
    assert sum(report.rejected for report in reports) == 0
    return output


def shown(output: Path) -> tuple[list[str], Tensor]:
    """Prompts and pictures of a dataset."""
    rows = [(row.prompt, row.picture) for row in rows_of(output) if row.picture is not None]
    pictures = [to_tensor(picture, WORLD.side) for _, picture in rows]
    return [prompt for prompt, _ in rows], torch.stack(pictures)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundled")
    write_manifest(path / "m.parquet", prompts(WORLD, ROWS, UNSEEN))
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    """A dataset in float32."""
    return work(folder / "m.parquet", folder / "float32", torch_dtype="float32")


def followed(output: Path) -> None:
    result = score_dataset(output, WORLD)
    assert result.unseen is not None
    assert (result.every.count, result.unseen.count) == (ROWS, UNSEEN)
    assert (result.pictureless, result.unreadable) == (0, 0)
    assert result.every.all >= 0.93
    assert result.unseen.all >= 0.93


def test_prompts_are_followed_in_float32(dataset: Path) -> None:
    followed(dataset)


def test_prompts_are_followed_in_the_default_precision(folder: Path) -> None:
    followed(work(folder / "m.parquet", folder / "bfloat16"))


def test_prompts_of_other_pictures_are_met_by_chance_alone(dataset: Path) -> None:
    texts, pictures = shown(dataset)
    asked = torch.stack([row for text in texts if (row := WORLD.parse(text)) is not None])
    shuffled = asked[torch.randperm(ROWS, generator=keyed("shuffle"))]
    result = score(WORLD, pictures, shuffled)
    assert result.all < 0.02
    for share, count in zip(result.by_attribute.values(), WORLD.counts, strict=True):
        assert abs(share - 1 / count) < 0.1


def test_guidance_changes_the_picture_and_not_what_it_shows(tmp_path: Path) -> None:
    texts = prompts(WORLD, 16, 8, seed=1)
    columns = {
        "key": [f"{i}-{weight}" for weight in (1, 5) for i in range(16)],
        "prompt": texts * 2,
        "seed": list(range(16)) * 2,
        "embedded_guidance": [1.0] * 16 + [5.0] * 16,
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    _, pictures = shown(work(tmp_path / "m.parquet", tmp_path / "out", torch_dtype="float32"))
    weak, strong = pictures[:16], pictures[16:]
    apart = (weak - strong).abs().mean((1, 2, 3))
    others = (weak - strong.roll(1, 0)).abs().mean((1, 2, 3))
    assert apart.min() > 0.001
    assert 0.004 < apart.mean() < 0.25 * others.mean()
    asked = torch.stack([row for text in texts if (row := WORLD.parse(text)) is not None])
    assert score(WORLD, pictures, torch.cat([asked, asked])).all >= 0.85


def test_the_defaults_are_those_of_the_training_script() -> None:
    assert json.loads((FOLDER / SAMPLING).read_text()) == defaults(ONE)


def test_the_folder_is_small_and_in_bfloat16() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*")) < 12_000_000
    for name in (TRANSFORMER, AUTOENCODER, "text_encoder_2/model.safetensors"):
        with safe_open(FOLDER / name, "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
