"""Pictures and a table as DiffSynth-Studio's dataset reads them: pandas, Pillow, and the noise of
a seed drawn as its pipeline draws it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from batch.errors import ExportError
from batch.targets.dataset import TargetDataset
from batch.targets.export.diffsynth import coder_of, export, read_back
from batch.targets.identity import IdentityError
from flux_engine.pictures import to_image
from schemas.engine import ModelEntry
from schemas.exports import DiffSynthExport
from tests.batch.targets.made import Targets
from tests.conftest import ShapesEngine

SHAPES = Path(__file__).parents[4] / "flux_engine" / "bundled" / "flux-shapes"


def read(folder: Path) -> list[dict[str, Any]]:
    metadata = pd.read_csv(folder / "metadata.csv")
    return [metadata.iloc[i].to_dict() for i in range(len(metadata))]


def named(targets: Targets, tmp_path: Path) -> str:
    """Pairs of which every caption says something."""
    from tests.batch.targets import made

    folder = tmp_path / "named"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "CAPTIONS", ('a "red", circle', *made.CAPTIONS[1:5], "ü", "1 fox", "b"))
        return str(made.make(folder, "pair"))


def test_pictures_and_table_come_back(targets: Targets, tmp_path: Path) -> None:
    address = named(targets, tmp_path)
    out = tmp_path / "out"
    assert export(address, out, DiffSynthExport(num_inference_steps=3)) == 8
    rows = {row["image"]: row for row in read(out)}
    assert len(rows) == 8
    dataset = TargetDataset(address, parts=("tensors", "noise"))
    coder = coder_of(DiffSynthExport(), dataset.identity["vae"])
    for i in range(8):
        row = dataset[i]
        found = rows[f"images/{row.record.sample_id}.png"]
        assert list(found) == [
            *("image", "prompt", "seed", "rand_device", "num_inference_steps", "cfg_scale")
        ]
        assert found["prompt"] == row.record.caption
        assert (found["num_inference_steps"], found["cfg_scale"]) == (3, 1.0)
        generator = torch.Generator(found["rand_device"]).manual_seed(int(found["seed"]))
        assert row.noise is not None
        drawn = torch.randn((1, *row.noise.shape), generator=generator)
        assert torch.equal(drawn[0], row.noise)
        picture = Image.open(out / found["image"]).convert("RGB")
        assert picture.size == (row.record.width, row.record.height)
        (pixels,) = coder.decode([row.tensors["latent"].float()], 4, None)
        assert np.array_equal(np.asarray(picture), np.asarray(to_image(pixels)))


def test_pictures_are_those_of_the_engine(
    targets: Targets, tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    export(str(targets("pair32")), tmp_path / "out", DiffSynthExport(table="jsonl"))
    row = TargetDataset(targets("pair32"))[0]
    engine = shapes_engine()
    (pixels,) = engine.pictures.decode([row.tensors["latent"]], 2, None)
    picture = Image.open(tmp_path / "out" / "images" / f"{row.record.sample_id}.png")
    apart = np.asarray(picture).astype(int) - np.asarray(to_image(pixels)).astype(int)
    assert np.abs(apart).max() <= 1  # batches of other sizes


def test_prompts_that_a_csv_would_change_are_refused(targets: Targets, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"prompt '' would be read .* as nan \(.*\): write .* jsonl"
    ):
        export(str(targets("pair")), tmp_path / "out", DiffSynthExport())
    assert list(tmp_path.iterdir()) == []
    export(str(targets("pair")), tmp_path / "out", DiffSynthExport(table="jsonl"))
    lines = (tmp_path / "out" / "metadata.jsonl").read_text("utf-8").splitlines()
    found = {json.loads(line)["image"]: json.loads(line) for line in lines}
    dataset = TargetDataset(targets("pair"), parts=())
    for i in range(8):
        record = dataset[i].record
        row = found[f"images/{record.sample_id}.png"]
        assert (row["prompt"], row["seed"]) == (record.caption, record.seed)


@pytest.mark.parametrize("prompt", ["a fox", 'say "hi"', "a, b", " two\nlines ", "ü", "#1"])
def test_most_prompts_survive_a_csv(prompt: str) -> None:
    assert read_back(prompt) == prompt


@pytest.mark.parametrize("prompt", ["", "NA", "None", "null", "1984", "1e5", "True", "nan"])
def test_some_prompts_do_not(prompt: str) -> None:
    assert read_back(prompt) != prompt


def test_another_autoencoder_is_refused(targets: Targets) -> None:
    wanted = dict(TargetDataset(targets("pair"), parts=()).identity["vae"])
    wanted["weights"] = {"ae.safetensors": "0"}
    with pytest.raises(IdentityError, match=r"weights\.ae\.safetensors is '\w+' and '0'"):
        coder_of(DiffSynthExport(), wanted)


def test_the_autoencoder_may_be_a_file(targets: Targets) -> None:
    wanted = TargetDataset(targets("pair"), parts=()).identity["vae"]
    file = ModelEntry(path=str(SHAPES / "ae.safetensors"))
    assert coder_of(DiffSynthExport(model=(file,)), wanted).dtype == torch.float32
    other = ModelEntry(path=str(SHAPES / "text_encoder" / "model.safetensors"))
    with pytest.raises(ExportError, match="has no autoencoder"):
        coder_of(DiffSynthExport(model=(other,)), wanted)


@pytest.mark.parametrize("name", ["cache", "path", "velocity", "feature"])
def test_other_kinds_are_refused(targets: Targets, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=f"{name} targets, which diffsynth cannot carry"):
        export(str(targets(name)), tmp_path / "out", DiffSynthExport())
    assert list(tmp_path.iterdir()) == []
