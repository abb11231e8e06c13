import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from batch.actor import ShardWorker
from batch.errors import ExportError, ManifestError
from batch.output import Output
from batch.preview import preview
from batch.report import RunReport
from batch.run import checked_plan
from batch.stages.distill import DistillStage
from batch.targets.card import publish_targets
from batch.targets.dataset import TargetDataset
from batch.targets.export.fastvideo import export
from batch.verify import verify
from flux_engine.pictures import crop_box
from jobs.work import resolved
from schemas.exports import FastVideoExport
from schemas.jobs import DistillJob
from schemas.records import TargetRecord
from tests.batch.doubles import write_manifest
from tests.batch.ingest.material import folder, ingest, job, picture, rows, table
from tests.batch.stages.test_distill import records, tensor

SIZES = ((40, 24), (100, 70), (64, 64), (17, 33))
FITTED = {"k0": (16, 32), "k1": (48, 64), "k2": (64, 64), "k3": (32, 16)}  # height, width
MOST = 64 * 64


def half_white(width: int, height: int) -> bytes:
    levels = np.zeros((height, width), np.uint8)
    levels[:, width // 2 :] = 255
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Training shards of pictures of several sizes; one has a mask, and one a mask of other
    proportions."""
    files: dict[str, bytes | str] = {
        f"{i}.png": picture(*size, seed=i) for i, size in enumerate(SIZES)
    }
    place = folder(
        tmp_path / "in", files | {"half.png": half_white(200, 140), "odd.png": picture(10, 90)}
    )
    lines = [
        {"key": f"k{i}", "image": f"{i}.png", "prompt": "a circle", "mask": mask}
        for i, mask in enumerate((None, "half.png", None, "odd.png"))
    ]
    source = {
        "kind": "table",
        "dataset_base_path": str(place),
        "dataset_metadata_path": str(table(tmp_path / "t.json", lines)),
        "data_file_keys": "image,mask",
    }
    ingest(job(tmp_path / "shards", source))
    return tmp_path / "shards"


def asked(output: Path, shards: Path, target: dict[str, Any], **values: Any) -> DistillJob:
    told = {
        "manifest": str(shards / "data"),
        "output": str(output),
        "target": target,
        "engine": {"device": "cpu", "torch_dtype": "float32", "micro_batch": 2},
        "check_share": 0.0,
    }
    return resolved(DistillJob.parse(told | values))


def distilled(told: DistillJob) -> dict[str, TargetRecord]:
    manifest, planned = checked_plan(told)
    worker = ShardWorker(told, DistillStage(told, (manifest.root,)))
    worker.output.claim(told.recipe())
    worker.setup()
    for shard in planned:
        worker(shard)
    assert verify(told.output).faults == []
    return records(Path(told.output))


def test_training_shards_are_cached_at_the_sizes_of_their_pictures(
    shards: Path, tmp_path: Path
) -> None:
    told = asked(tmp_path / "out", shards, {"kind": "cache", "max_pixels": MOST})
    made = distilled(told)
    assert {key: (r.height, r.width) for key, r in made.items()} == FITTED
    sources = rows(shards)
    for key, record in made.items():
        height, width = FITTED[key]
        assert tensor(record, "latent").shape == (16, height // 8, width // 8)
        assert record.input_image_sha256 == sources[key]["image_sha256"]
        size = sources[key]["image_width"], sources[key]["image_height"]
        assert (record.image_width, record.image_height) == size
        assert record.crop_box == crop_box(size, height, width)
        assert record.source_file.endswith(".parquet")
    manifest, planned = checked_plan(told)
    assert {shard.bucket for shard in planned} == {f"{h}x{w}" for h, w in FITTED.values()}
    assert sorted(name.partition(",")[0] for name in preview(told, manifest, planned).buckets) == [
        "16×32", "32×16", "64×48", "64×64",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "target",
    [{"kind": "velocity", "timesteps": [0.5]}, {"kind": "feature", "taps": ["single_blocks.0"]}],
)
def test_other_targets_of_pictures_take_their_sizes_too(
    target: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    wanted = target | {"max_pixels": MOST, "bucket_step": 32}
    made = distilled(asked(tmp_path / "out", shards, wanted))
    assert {r.key: (r.height, r.width) for r in made.values()} == {
        "k0": (32, 32), "k1": (32, 64), "k2": (64, 64), "k3": (32, 32),
    }  # fmt: skip


def test_a_row_that_says_a_size_has_it_and_half_a_size_is_rejected(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {"0.png": picture(64, 64)})
    lines = [
        {"key": "both", "image": "0.png", "prompt": "a", "height": 32, "width": 64},
        {"key": "one", "image": "0.png", "prompt": "a", "height": 32, "width": None},
        {"key": "none", "image": "0.png", "prompt": "a", "height": None, "width": None},
    ]
    source = {
        "kind": "table",
        "dataset_base_path": str(place),
        "dataset_metadata_path": str(table(tmp_path / "t.json", lines)),
    }
    ingest(job(tmp_path / "shards", source))
    told = asked(tmp_path / "out", tmp_path / "shards", {"kind": "cache", "max_pixels": MOST})
    made = distilled(told)
    assert {key: (r.height, r.width) for key, r in made.items()} == {
        "both": (32, 64), "none": (64, 64),
    }  # fmt: skip
    _, planned = checked_plan(told)
    assert {shard.bucket for shard in planned} == {"32x64", "64x64"}
    assert "nor both height and width" in rows(tmp_path / "out", "rejected")["one"]["reason"]


def test_a_mask_is_kept_by_cell_beside_the_latent(shards: Path, tmp_path: Path) -> None:
    target = {"kind": "cache", "max_pixels": MOST, "mask": True, "moments": True}
    made = distilled(asked(tmp_path / "out", shards, target, dtype="float32"))
    assert sorted(made) == ["k0", "k1", "k2"]
    mask = tensor(made["k1"], "mask")
    assert (mask.shape, mask.dtype) == ((1, 6, 8), torch.float16)
    assert mask[0, :, :3].max() == 0
    assert mask[0, :, 5:].min() == 1
    assert tensor(made["k0"], "mask").min() == 1
    assert tensor(made["k0"], "moments").dtype == torch.float32
    assert "other proportions" in rows(tmp_path / "out", "rejected")["k3"]["reason"]
    read = TargetDataset(tmp_path / "out", partial=True)
    assert sorted(read[0].tensors) == ["mask", "moments"]


def test_masks_are_not_dropped_on_the_way_into_a_format_without_them(
    shards: Path, tmp_path: Path
) -> None:
    told = asked(tmp_path / "out", shards, {"kind": "cache", "max_pixels": MOST, "mask": True})
    done = len(distilled(told))
    publish_targets(told, Output(told.output, told.format), RunReport(rows=done, done=done))
    with pytest.raises(ExportError, match="has no place for them"):
        export(told.output, tmp_path / "exported", FastVideoExport())


def test_without_masks_a_mask_is_one_more_file_that_means_nothing(
    shards: Path, tmp_path: Path
) -> None:
    made = distilled(asked(tmp_path / "out", shards, {"kind": "cache"}))
    assert sorted(made) == ["k0", "k1", "k2", "k3"]
    assert {(r.height, r.width) for r in made.values()} == {(64, 64)}


def test_sizes_and_masks_that_no_column_has_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    columns = {"image": [picture()], "prompt": ["a"]}
    write_manifest(tmp_path / "data" / "a.parquet", columns)
    with pytest.raises(ManifestError, match="wants the columns image_width and image_height"):
        checked_plan(asked(tmp_path / "out", tmp_path, {"kind": "cache", "max_pixels": MOST}))
    with pytest.raises(ManifestError, match="wants a column mask"):
        checked_plan(asked(tmp_path / "out", tmp_path, {"kind": "cache", "mask": True}))


def test_a_picture_that_is_not_what_its_row_says_is_rejected(tmp_path: Path) -> None:
    columns = {
        "image": [picture(64, 64)] * 2, "prompt": ["a"] * 2, "key": ["right", "wrong"],
        "image_width": [64, 32], "image_height": [64, 32],
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    write_manifest(tmp_path / "data" / "a.parquet", columns)
    told = asked(tmp_path / "out", tmp_path, {"kind": "cache", "max_pixels": MOST})
    assert sorted(distilled(told)) == ["right"]
    reason = rows(tmp_path / "out", "rejected")["wrong"]["reason"]
    assert "has 64 × 64 pixels, and its row says 32 × 32" in reason
