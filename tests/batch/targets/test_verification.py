import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from batch.errors import OutputError
from batch.media import to_bytes
from batch.output import to_json
from batch.storage import Storage
from batch.targets.layout import digest_of, from_row
from batch.targets.verdict import Finding, Verdict, judged
from batch.targets.verification import (
    ENOUGH,
    Dataset,
    Sample,
    verify_rows,
    verify_teacher,
)
from flux_engine import FluxEngine
from flux_engine.pictures import to_image
from schemas.records import TargetRecord
from tests.batch.stages.test_distill import records, work
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import file_of
from tests.flux_engine.asking import picture

WORDS = [
    f"a {size} {colour} {shape} at the {place} on a {ground} background"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square", "triangle")
    for place, ground in (("top", "black"), ("left", "white"))
]
assert len(WORDS) >= ENOUGH
COARSE = {"device": "cpu", "torch_dtype": "bfloat16", "micro_batch": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of paths, of as many rows as a median takes."""
    return dataset(tmp_path_factory.mktemp("verified"), {"kind": "path"})


def dataset(
    folder: Path, target: dict[str, Any], *, loras: list[Any] | None = None, **values: Any
) -> Path:
    manifest: dict[str, Any] = {"prompt": WORDS, "key": [f"k{i}" for i in range(len(WORDS))]}
    manifest |= {"loras": loras} if loras else {}
    if target["kind"] not in ("pair", "path"):
        pictures = [to_bytes(to_image(picture(i)), "png", 0) for i in range(len(WORDS))]
        manifest |= {"image": [{"bytes": data, "path": None} for data in pictures]}
    job, _ = work(folder, manifest, target=target, sampling={"num_inference_steps": 8}, **values)
    (folder / "out" / "_run" / "job.json").write_bytes(to_json(job.model_dump(mode="json")))
    return folder / "out"


def looked_at(output: Path, engine: FluxEngine | None = None) -> Verdict:
    verdict = Verdict("here")
    found = Dataset(Storage(str(output)))
    sample = verify_rows(found, verdict, len(WORDS))
    if engine is not None:
        folder = str(output.parent / "m")
        pictures, _ = verify_teacher(found, engine, sample, verdict, folder=folder, replays=2)
        assert len(pictures) > 0
    return verdict


def by_name(verdict: Verdict) -> dict[str, Any]:
    return {finding.name: finding for finding in verdict.findings}


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ({"kind": "path"}, {}),
        ({"kind": "path", "segments": 2}, {"dtype": "bfloat16"}),
        ({"kind": "pair"}, {}),
        ({"kind": "pair"}, {"engine": COARSE}),
        ({"kind": "path"}, {"engine": COARSE}),
        ({"kind": "velocity", "queries": 2, "guidance": [1.0, 3.0]}, {}),
        ({"kind": "feature", "taps": ["double_blocks.0.img", "single_blocks.1"]}, {}),
    ],
    ids=[
        "path",
        "segments in bfloat16",
        "pair",
        "pair by bfloat16",
        "path by bfloat16",
        "velocity",
        "feature",
    ],
)
def test_the_teacher_agrees_and_every_control_fails_by_far(
    target: dict[str, Any], values: dict[str, Any], tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    output = dataset(tmp_path, target, **values)
    kind = getattr(torch, values.get("engine", {}).get("torch_dtype", "float32"))
    verdict = looked_at(output, shapes_engine(torch_dtype=kind))
    found = by_name(verdict)
    assert verdict.passed, verdict.as_json()
    assert found["asked again"].facts["rows"] >= ENOUGH
    for control in ("another caption", "guidance off by one", "shifted schedule"):
        assert found[f"must fail: {control}"].facts["times the right ones"] >= 5.0
    assert found["texts encoded again"].passed
    assert not verdict.skipped


def changed(output: Path, to: Path, change: Any) -> Path:
    """A copy of a dataset whose first row is changed, its digests and sums left as they were."""
    shutil.copytree(output, to)
    (file,) = (to / "data").iterdir()
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    return to


def flip(row: dict[str, Any]) -> None:
    data = bytearray(row["u_bytes"])
    data[100] ^= 1
    row["u_bytes"] = bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        flip,
        lambda row: row.update(caption=row["caption"] + " "),
        lambda row: row["sigmas"].__setitem__(3, row["sigmas"][3] + 1e-6),
        lambda row: row.update(noise_hash=b"12345678"),
        lambda row: row.update(seed=row["seed"] + 1),
    ],
    ids=["a latent's byte", "a caption", "a sigma", "a noise's hash", "a seed"],
)
def test_one_change_in_one_row_is_found_and_named(change: Any, made: Path, tmp_path: Path) -> None:
    verdict = looked_at(changed(made, tmp_path / "x", change))
    (finding,) = verdict.findings
    assert not finding.passed
    assert any("(k0)" in fault for fault in finding.faults)


def rows_of(output: Path) -> list[TargetRecord]:
    return verify_rows(Dataset(Storage(str(output))), Verdict("here"), len(WORDS)).rows()


def asked_with(output: Path, engine: FluxEngine, captions: list[str]) -> Finding:
    """What comes of asking the teacher with these captions instead of the rows' own."""
    verdict, lies = Verdict("here"), Sample(len(WORDS))
    for record, caption in zip(rows_of(output), captions, strict=True):
        lies.offer(record.model_copy(update={"caption": caption}))
    found, folder = Dataset(Storage(str(output))), str(output.parent / "m")
    verify_teacher(found, engine, lies, verdict, folder=folder, replays=0)
    finding: Finding = by_name(verdict)["asked again"]
    return finding


def test_a_row_whose_digest_fits_a_lie_is_found_by_the_teacher(
    made: Path, shapes_engine: ShapesEngine
) -> None:
    captions = [record.caption for record in rows_of(made)]
    finding = asked_with(made, shapes_engine(), [*captions[1:], captions[0]])
    assert not finding.passed


def test_one_row_of_many_that_the_teacher_did_not_say_is_found_and_named(
    made: Path, shapes_engine: ShapesEngine
) -> None:
    first, *others = rows_of(made)
    captions = ["a large white star", *(record.caption for record in others)]
    finding = asked_with(made, shapes_engine(), captions)
    assert not finding.passed
    assert [fault.partition(":")[0] for fault in finding.faults] == [first.key]


def test_sigmas_of_another_schedule_are_found_although_the_digest_fits(
    made: Path, tmp_path: Path
) -> None:
    def bend(row: dict[str, Any]) -> None:
        row["sigmas"][3] = float(np.float32(row["sigmas"][3] + 1e-3))
        record = from_row(row, ("u",))
        told = digest_of(record.model_dump(), {"u": row["u_bytes"]})
        row["digest"] = bytes.fromhex(told)

    (finding,) = looked_at(changed(made, tmp_path / "x", bend)).findings
    assert [fault.rpartition(": ")[2] for fault in finding.faults] == [
        "its sigmas are not those of its schedule"
    ]


def test_another_teacher_is_named(made: Path, shapes_engine: ShapesEngine) -> None:
    engine = shapes_engine(text_batch=3)
    engine.fingerprints = engine.fingerprints | {"dit": {"other.safetensors": "00"}}
    finding = by_name(looked_at(made, engine))["teacher's identity"]
    assert not finding.passed
    assert "teacher.weights.other.safetensors" in finding.faults[0]


def test_a_missing_text_and_another_layout_are_found(made: Path, tmp_path: Path) -> None:
    output = changed(made, tmp_path / "x", lambda _: None)
    for file in (output / "text").iterdir():
        file.unlink()
    (finding,) = looked_at(output).findings
    assert len(finding.faults) == len(WORDS)
    assert "has no text" in finding.faults[0]
    identity = output / "_run" / "identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"version": 9}))
    with pytest.raises(OutputError, match="version 9"):
        Dataset(Storage(str(output)))


def test_a_sample_is_the_same_each_time_and_no_larger(made: Path) -> None:
    rows = list(records(made).values())
    samples = []
    for order in (rows, rows[::-1]):
        sample = Sample(5)
        for row in order:
            sample.offer(row)
        samples.append([row.key for row in sample.rows()])
    assert samples[0] == samples[1]
    assert len(samples[0]) == 5


def test_a_row_that_stands_there_twice_is_found(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "x"
    shutil.copytree(made, output)
    (file,) = (output / "data").iterdir()
    shutil.copy(file, file.with_name("again.parquet"))
    (finding,) = looked_at(output).findings
    assert len(finding.faults) == len(WORDS)
    assert all("stands in the dataset twice" in fault for fault in finding.faults)


def test_what_a_maker_found_when_it_asked_again_counts(made: Path, tmp_path: Path) -> None:
    for error, passed in ((1e-4, True), (0.4, False), (float("nan"), False)):
        output = changed(made, tmp_path / str(error), lambda row, e=error: row.update(check_rel=e))
        finding = by_name(looked_at(output))["asked again as they were made"]
        assert (finding.passed, finding.facts["rows"]) == (passed, 1)


def test_loras_that_are_others_now_fail_by_name(
    tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    file = file_of(tmp_path / "m", shapes_engine())
    output = dataset(tmp_path, {"kind": "pair"}, loras=[[{"path": file.name}], *[None] * 35])
    finding = by_name(looked_at(output, shapes_engine()))["LoRAs"]
    assert (finding.passed, finding.facts) == (True, {"rows": 1})
    file_of(tmp_path / "other", shapes_engine(), seed=3).replace(file)
    finding = by_name(looked_at(output, shapes_engine()))["LoRAs"]
    assert not finding.passed
    assert file.name in finding.faults[0]


def test_each_row_is_judged_and_what_is_no_number_fails() -> None:
    assert judged("x", {"a": 1e-4, "b": 4e-3}, 1e-3, 5e-3).passed is False  # the median
    assert judged("x", {"a": 1e-4, "b": 1e-4, "c": 4e-3}, 1e-3, 5e-3).passed
    far = judged("x", {"a": 1e-4, "b": 1e-4, "c": 6e-3}, 1e-3, 5e-3)
    assert (far.passed, far.faults) == (False, ("c: off by 0.006",))
    broken = judged("x", {"a": 1e-4, "b": 1e-4, "c": float("nan")}, 1e-3, 5e-3)
    assert (broken.passed, broken.facts["no numbers"], broken.facts["rows"]) == (False, 1, 3)
