"""Rows into what a trainer has of them."""

from pathlib import Path

import pytest
import torch

from batch.errors import JobError
from batch.targets.dataset import TargetDataset
from batch.training.look import checked
from batch.training.material import TargetSource
from batch.training.source import Captions
from batch.training.worker import TrainWorker
from flux_engine.encode import TextKey
from flux_engine.weights.load import load_models
from tests.batch.targets.made import BUCKETS as SIZES
from tests.batch.targets.made import CAPTIONS, Targets
from tests.batch.training.lessons import lesson
from tests.batch.training.tables import picture, write_table

PLAIN = Captions()
LENGTH = 20  # of the demo model's captions in T5 tokens
KINDS = ("cache", "moments", "pair", "path", "velocity", "feature")


class NoTexts(dict[TextKey, object]):
    """A dataset's own have to do."""


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
    (course,) = checked(job.model_copy(update={"max_steps": 1, "seed": 3})).courses
    with pytest.raises(JobError, match=r"row 0 \(key k0\): mask is null"):
        course.source.material(0, course.captions, dropped=False)


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
