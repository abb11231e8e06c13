"""An exported table, read by DiffSynth-Studio's own dataset."""

from pathlib import Path

import pytest
from PIL import Image

from batch.targets.dataset import TargetDataset
from batch.targets.export.diffsynth import export
from schemas.exports import DiffSynthExport
from tests.batch.targets.made import Targets
from tests.parity import diffsynth_dataset
from tests.parity.diffsynth_oracle import LIBRARY

pytestmark = pytest.mark.oracle


@pytest.mark.skipif(not LIBRARY.is_dir(), reason="DiffSynth-Studio is not installed in .oracle")
def test_it_reads_every_row_and_draws_the_same_noise(targets: Targets, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(targets("pair")), out, DiffSynthExport(table="jsonl"))
    found = diffsynth_dataset.read(out, "metadata.jsonl", tmp_path / "answer.json")
    dataset = TargetDataset(targets("pair"))
    numbers = [n for rows in dataset.buckets().values() for n in rows.tolist()]
    assert len(found) == len(numbers) == 8
    for told, number in zip(found, numbers, strict=True):
        row = dataset[number]
        picture = Image.open(out / "images" / f"{row.record.sample_id}.png")
        assert row.noise is not None
        assert told == {
            "prompt": row.record.caption,
            "seed": row.record.seed,
            "rand_device": "cpu",
            "num_inference_steps": 4,
            "cfg_scale": 1.0,
            "size": [row.record.width, row.record.height],
            "picture": diffsynth_dataset.digest(picture.tobytes()),
            "noise": diffsynth_dataset.digest(row.noise.numpy().tobytes()),
        }
