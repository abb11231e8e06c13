"""Rows into what a trainer has of them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from batch.bucket import Bucket
from batch.errors import JobError, PictureDown
from batch.targets import dataset
from batch.targets.dataset import TargetDataset
from batch.training.curriculum import Course
from batch.training.look import checked
from batch.training.material import TargetSource
from batch.training.source import Captions
from batch.training.worker import TrainWorker
from flux_engine.encode import TextKey
from flux_engine.weights.load import load_models
from tests.batch.s3 import Server, serving
from tests.batch.targets.made import BUCKETS as SIZES
from tests.batch.targets.made import CAPTIONS, Targets
from tests.batch.training.lessons import lesson
from tests.batch.training.tables import CAPTIONS as CAPTIONS_OF_TABLE
from tests.batch.training.tables import picture, write_table

PLAIN = Captions()
LENGTH = 20  # of the demo model's captions in T5 tokens
KINDS = ("cache", "moments", "pair", "path", "velocity", "feature")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Server]:
    with serving() as running:
        yield running


class NoTexts(dict[TextKey, object]):
    """A dataset's own have to do."""


def captions_of(course: Course) -> list[str]:
    """Of what is given for each of a table's rows."""
    made = (course.source.material(row, course.captions, dropped=False) for row in range(4))
    return [one.caption for one in made]


def source(targets: Targets, name: str, **values: object) -> TargetSource:
    return TargetSource(str(targets(name)), texts=NoTexts(), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_targets_has_all_that_its_dataset_says(kind: str, targets: Targets) -> None:
    found, there = source(targets, kind), TargetDataset(targets(kind))
    assert {bucket: len(rows) for bucket, rows in found.buckets().items()} == SIZES
    for number in range(len(CAPTIONS)):
        row, made = there[number], found.material(number, PLAIN, dropped=False)
        assert row.text is not None
        assert made.caption == row.record.caption
        assert torch.equal(made.t5_TW, row.text.t5.float())
        assert torch.equal(made.pooled_P, row.text.clip.float())
        for name, mine in (
            ("latent", made.latent_ZHW),
            ("moments", made.moments),
            ("v_cond", made.v_cond),
            ("v_uncond", made.v_uncond),
        ):
            theirs = row.tensors.get(name)
            assert (mine is None) == (theirs is None)
            assert theirs is None or torch.equal(mine, theirs.float())  # type: ignore[arg-type]
        assert made.sigmas == row.record.sigmas
        assert (made.t, made.guidances) == (row.record.t, row.record.guidances)
        if kind in ("pair", "path", "velocity"):
            assert made.noise is not None
            assert torch.equal(made.noise, row.noise)  # type: ignore[arg-type]
        if kind == "path":
            assert torch.equal(made.states, row.states)  # type: ignore[arg-type]
        assert made.name.startswith(str(targets(kind)))
        assert made.name.endswith(f"(key {row.record.key})")


def test_only_what_is_not_there_has_to_be_encoded(targets: Targets) -> None:
    found = source(targets, "cache")
    assert found.wanted(PLAIN) == []
    assert found.wanted(Captions(dropout=0.5)) == []  # one of its captions is empty
    plain = [found.material(n, PLAIN, dropped=False) for n in range(len(CAPTIONS))]
    (empty,) = (row for row in plain if not row.caption)
    assert torch.equal(found.material(0, PLAIN, dropped=True).t5_TW, empty.t5_TW)
    told = found.wanted(Captions("zorb"))
    assert ("zorb, a large red circle", LENGTH) in told
    assert len(told) == len(set(CAPTIONS))
    textless = source(targets, "textless")
    assert {caption for caption, _ in textless.wanted(PLAIN)} == set(CAPTIONS)


def test_threads_draw_noise_side_by_side_and_get_what_one_gets(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = source(targets, "path")
    wanted = [alone.material(row, PLAIN, dropped=False) for row in range(len(CAPTIONS))]
    found = source(targets, "path")
    opened: list[Path] = []
    table, draw, both = dataset.TextTable, dataset.checked, threading.Barrier(2)

    def opening(folder: Path) -> dataset.TextTable:
        opened.append(folder)
        return table(folder)

    def drawing(*told: Any) -> torch.Tensor:
        both.wait(timeout=10)  # until the other thread is here as well
        return draw(*told)

    monkeypatch.setattr(dataset, "TextTable", opening)
    monkeypatch.setattr(dataset, "checked", drawing)
    with ThreadPoolExecutor(2) as pool:
        made = list(
            pool.map(lambda row: found.material(row, PLAIN, dropped=False), range(len(CAPTIONS)))
        )
    assert len(opened) == 1
    for one, other in zip(made, wanted, strict=True):
        assert one.caption == other.caption
        for name in ("t5_TW", "noise", "states"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_a_column_or_a_mask_that_is_not_there_is_named(targets: Targets) -> None:
    with pytest.raises(JobError, match="has no column noise_scale, which the job asks for"):
        source(targets, "pair", extra_inputs=("noise_scale",))
    with pytest.raises(JobError, match="mask is asked for"):
        source(targets, "pair", mask=True)
    source(targets, "pair", extra_inputs=("seed", "num_inference_steps"))


def test_a_teachers_scale_that_no_student_has_is_refused(targets: Targets) -> None:
    found = source(targets, "guided", extra_inputs=("rand_device", "cfg_scale"))
    with pytest.raises(JobError, match=r"row 0 \(key .*cfg_scale is 2.0; training takes 1 only"):
        found.material(0, PLAIN, dropped=False)
    source(targets, "pair", extra_inputs=("rand_device", "cfg_scale")).material(
        0, PLAIN, dropped=False
    )


def test_pictures_become_the_mean_of_what_the_autoencoder_says(tmp_path: Path) -> None:
    table = write_table(tmp_path / "rows", noise_scale=[None, 0.5, 1.0, 1.0])
    job = lesson(tmp_path / "out", table, extra_inputs="noise_scale", trigger_word="zorb")
    worker = TrainWorker(job)
    worker.setup()
    (course,) = worker.curriculum.courses
    made = course.source.material(1, course.captions, dropped=False)
    assert made.caption == "zorb, a small blue square"
    assert made.noise_scale == 0.5
    assert course.source.material(0, course.captions, dropped=False).noise_scale == 1.0
    vae = load_models([worker.parts.files["vae"]], dtype=torch.float32).vae
    assert vae is not None
    pixels = course.source.rows.row(1).pixels  # type: ignore[attr-defined]
    with torch.inference_mode():
        wanted = vae.encode(pixels[None])[0]
    torch.testing.assert_close(made.latent_ZHW, wanted, rtol=1e-5, atol=1e-5)
    text = worker.texts["zorb, a small blue square", LENGTH]
    assert torch.equal(made.t5_TW, text.t5.float())


def test_masks_become_weights_of_latent_cells(tmp_path: Path) -> None:
    from tests.batch.test_media import png

    mask = {"bytes": png((64, 64), "white", "L"), "path": None}
    table = write_table(tmp_path / "rows", mask=[mask] * 4)
    job = lesson(tmp_path / "out", table, data_file_keys="image,mask")
    (course,) = checked(job).courses
    made = course.source.material(0, course.captions, dropped=False)
    assert made.mask_1HW is not None
    assert torch.equal(made.mask_1HW, torch.ones(1, 8, 8))
    missing = write_table(tmp_path / "none", mask=[None, mask, mask, mask])
    job = lesson(tmp_path / "out2", missing, data_file_keys="image,mask", batch_size=1)
    (course,) = checked(job).courses
    assert {bucket: rows.tolist() for bucket, rows in course.source.buckets().items()} == {
        (64, 64): [1, 2, 3]
    }
    (reject,) = course.source.rejects()
    assert (reject.key, reject.where) == ("k0", "rows.parquet row 0")
    assert reject.reason == "mask: is null, and the job trains with one of each row"


def test_rows_whose_further_values_cannot_be_taken_are_told_of_and_in_no_bucket(
    tmp_path: Path,
) -> None:
    columns = {"seed": [1, None, 3, 4], "num_inference_steps": [2, 2, 0, 2]}
    sizes = {"image_width": [64] * 4, "image_height": [64] * 4}
    table = write_table(tmp_path / "rows", **columns, **sizes)
    values = {"task": "direct_distill", "extra_inputs": "seed,num_inference_steps"}
    job = lesson(tmp_path / "out", table, **values)
    (course,) = checked(job).courses
    assert [rows.tolist() for rows in course.source.buckets().values()] == [[0, 3]]
    assert {reject.key: reject.reason for reject in course.source.rejects()} == {
        "k1": "seed: there is no value, and the task needs one",
        "k2": "num_inference_steps is 0; allowed are integers from 1 on, below 2**63",
    }
    nulls = write_table(tmp_path / "nulls", **columns | {"seed": pa.nulls(4, pa.int64())})
    with pytest.raises(JobError, match=r"none of its 4 rows .* row 0: seed: there is no value"):
        checked(lesson(tmp_path / "out2", nulls, **values))


def test_targets_whose_further_values_cannot_be_taken_are_in_no_bucket(targets: Targets) -> None:
    found = source(targets, "cache", extra_inputs=("seed",), needed=("seed",))
    assert found.buckets() == {}  # of a cache no seed is recorded
    assert len(found.rejects()) == len(CAPTIONS)
    assert "seed: there is no value" in found.rejects()[0].reason
    assert source(targets, "pair", extra_inputs=("seed",), needed=("seed",)).rejects() == []


def test_a_picture_that_cannot_be_had_now_is_not_passed_over(
    tmp_path: Path, bucket: Server
) -> None:
    names = ["0.png", "1.png", "gone.png", "3.png"]
    for n in (0, 1, 3):
        Bucket(bucket.uri("pictures")).put(names[n], picture(64, 64, n)["bytes"])
    table = write_table(
        tmp_path / "rows",
        image=[f"s3://bucket/pictures/{name}" for name in names],
        image_width=[64] * 4,  # so that nobody looks before
        image_height=[64] * 4,
    )
    job = lesson(tmp_path / "out", table, picture_roots=[bucket.uri("pictures")])
    (course,) = checked(job).courses
    bucket.fail(share=1.0, methods=["GET", "HEAD"], status=403, code="AccessDenied")
    try:
        with pytest.raises(PictureDown, match=r"row \d: s3://.*png: cannot be read"):
            captions_of(course)  # the look has kept some rows, and not all
    finally:
        bucket.fail()
    assert captions_of(course) == [*CAPTIONS_OF_TABLE[:2], *[CAPTIONS_OF_TABLE[3]] * 2]


def test_sizes_are_those_of_the_pictures(tmp_path: Path) -> None:
    images = [picture(64, 64, 0), picture(64, 96, 1), picture(64, 64, 2), picture(64, 96, 3)]
    job = lesson(tmp_path / "out", write_table(tmp_path / "rows", image=images))
    (course,) = checked(job).courses
    assert {bucket: len(rows) for bucket, rows in course.source.buckets().items()} == {
        (64, 64): 2,
        (64, 96): 2,
    }


def test_the_next_row_of_its_size_stands_in_for_a_picture_that_cannot_be_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = [picture(64, 64, i) for i in range(4)]
    cut = {"bytes": whole[1]["bytes"][:-60], "path": None}
    sizes = {"image_width": [64] * 4, "image_height": [64] * 4}  # so that nobody looks before
    table = write_table(tmp_path / "rows", image=[whole[0], cut, cut, whole[3]], **sizes)
    worker = TrainWorker(lesson(tmp_path / "out", table))
    worker.setup()
    (course,) = worker.curriculum.courses
    made = [course.source.material(row, course.captions, dropped=False) for row in range(4)]
    assert [one.caption for one in made] == [
        "a large red circle", "a green star", "a green star", "a green star",
    ]  # fmt: skip
    warned = [record for record in caplog.records if record.message == "row passed over"]
    assert ["row 1" in record.why for record in warned] == [True, False]  # type: ignore[attr-defined]
    assert "row 2" in warned[1].why  # type: ignore[attr-defined]
    bad = write_table(tmp_path / "bad", image=[cut] * 4, **sizes)
    with pytest.raises(JobError, match=r"no picture of the size of row \d can be decoded"):
        checked(lesson(tmp_path / "out2", bad))
