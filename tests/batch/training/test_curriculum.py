"""A job's datasets together."""

from pathlib import Path

import pytest

from batch.errors import JobError, TargetsError
from batch.targets.export.diffsynth import export
from batch.training.look import checked
from schemas.exports import DiffSynthExport
from tests.batch.ingest import material
from tests.batch.targets.made import Targets, distilled
from tests.batch.training.lessons import learned, lesson
from tests.batch.training.tables import CAPTIONS, write_table


def test_a_table_has_its_captions_encoded_and_targets_have_them(
    tmp_path: Path, targets: Targets
) -> None:
    assert checked(lesson(tmp_path, targets("cache"))).wanted == []
    assert not checked(lesson(tmp_path, targets("cache"))).pictures
    table = checked(lesson(tmp_path / "out", write_table(tmp_path / "rows")))
    assert table.pictures
    assert len(table.wanted) == 3
    shown = checked(lesson(tmp_path, targets("cache"), sample_prompts=["a new one"]))
    assert shown.wanted == [("a new one", 20)]


def test_lineage_names_files_rows_and_digests(tmp_path: Path, targets: Targets) -> None:
    datasets = [
        {"path": str(targets("cache")), "weight": 1},
        {"path": str(write_table(tmp_path / "rows")), "weight": 3},
    ]
    curriculum = checked(lesson(tmp_path, targets("cache"), datasets=datasets, max_steps=4))
    first, second = curriculum.lineage
    assert (first["kind"], first["rows"], first["samples"]) == ("cache", 8, 4)
    assert (second["kind"], second["rows"], second["samples"]) == ("pictures", 4, 12)
    assert len(first["files"]) == 3 or sum(file["rows"] for file in first["files"]) == 8
    assert all(len(file["digest"]) == 64 for file in first["files"])
    assert second["files"] == [
        {"file": "rows.parquet", "rows": 4, "digest": second["files"][0]["digest"]}
    ]
    assert set(curriculum.digests) == {dataset["path"] for dataset in datasets}


def test_datasets_that_a_task_cannot_learn_from_are_refused(
    tmp_path: Path, targets: Targets
) -> None:
    table = write_table(tmp_path / "rows")
    for values, told in (
        ({"task": "reflow"}, "holds pictures, of which task reflow cannot learn"),
        ({"task": "sft:train"}, "for pictures there is sft"),
    ):
        with pytest.raises(JobError, match=told):
            checked(lesson(tmp_path / "out", table, **values))
    with pytest.raises(TargetsError, match="buckets with fewer than 5 rows"):
        checked(lesson(tmp_path / "out", table, batch_size=5))


@pytest.mark.parametrize("how", ["data_file_keys", "mask"])
def test_targets_without_masks_are_refused_however_masks_are_asked_for(
    how: str, tmp_path: Path, targets: Targets
) -> None:
    path = str(targets("cache"))
    values = {
        "data_file_keys": {"data_file_keys": "image,mask"},
        "mask": {"datasets": [{"path": path, "mask": True}]},
    }[how]
    with pytest.raises(JobError, match="mask is asked for, and its rows have none"):
        checked(lesson(tmp_path / "out", targets("cache"), **values))


def test_one_dataset_twice_has_two_names(tmp_path: Path, targets: Targets) -> None:
    path = str(targets("cache"))
    curriculum = checked(lesson(tmp_path, targets("cache"), datasets=[path, path]))
    assert curriculum.names == [f"{path} (1)", f"{path} (2)"]


def test_an_unreadable_row_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.batch.training.tables import picture

    images = [picture(64, 64, 0), {"bytes": b"no", "path": None}, picture(64, 64, 2), picture(64, 64, 3)]  # fmt: skip  # noqa: E501
    table = write_table(tmp_path / "rows", image=images)
    (course,) = checked(lesson(tmp_path / "out", table)).courses
    assert sum(len(rows) for rows in course.source.buckets().values()) == 3
    told = [record.__dict__.get("row") for record in caplog.records]
    assert "rows.parquet row 1" in told
    none = write_table(tmp_path / "none", image=[{"bytes": b"no", "path": None}] * 4)
    with pytest.raises(JobError, match="none of its 4 rows can be read"):
        checked(lesson(tmp_path / "out", none))


def test_a_table_of_direct_distillation_goes_from_its_export_through_ingest_to_training(
    tmp_path: Path,
) -> None:
    prompts = {"prompt": list(CAPTIONS), "key": [f"k{i}" for i in range(len(CAPTIONS))]}
    sampling = {"num_inference_steps": 4, "cfg_scale": 2.0}
    pairs = distilled(tmp_path / "pairs", prompts, target={"kind": "pair"}, sampling=sampling)
    export(str(pairs), tmp_path / "csv", DiffSynthExport(num_inference_steps=3))
    place = {"dataset_base_path": str(tmp_path / "csv")}
    source = {"kind": "table", "dataset_metadata_path": str(tmp_path / "csv" / "metadata.csv")}
    asked = material.job(tmp_path / "shards", source | place)
    assert sum(report.done for report in material.ingest(asked)) == 4
    names = "seed,rand_device,num_inference_steps,cfg_scale"
    job = lesson(
        tmp_path / "out",
        tmp_path / "shards",
        task="direct_distill",
        extra_inputs=names,
        max_steps=1,
    )
    (course,) = checked(job).courses
    made = course.source.material(0, course.captions, dropped=False)
    assert made.num_inference_steps == 3
    assert isinstance(made.seed, int)
    _, outcome = learned(job)
    assert outcome.complete
