from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from batch.actor import ShardWorker
from batch.errors import OutputError
from batch.output import Output
from batch.run import checked_plan, left_to_do
from batch.stages.distill import DistillStage
from batch.targets.checks import Checks
from batch.targets.layout import digest_of, from_row, tensor_names
from batch.targets.noise import hash_of, noise_of
from batch.targets.tensors import loaded
from batch.targets.text import TextTable
from batch.verify import verify
from flux_engine import encode
from flux_engine.errors import NumbersBroke
from flux_engine.sampling.trace import states
from flux_engine.teacher import Teacher
from jobs.work import resolved
from schemas.jobs import DistillJob
from schemas.records import TargetRecord
from tests.batch.doubles import write_manifest
from tests.batch.targets.made import CAPTIONS, TARGETS, columns, make
from tests.batch.test_loras import work as make_pictures
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import file_of
from tests.flux_engine.crowded import Crowded, Watched


def records(output: Path) -> dict[str, TargetRecord]:
    """Rows by key."""
    out = {}
    for file in sorted((output / "data").glob("*.parquet")):
        table = pq.read_table(file)
        names = [name.removesuffix("_bytes") for name in table.column_names if "_bytes" in name]
        for row in table.to_pylist():
            out[row["key"]] = from_row(row, names)
    return out


def tensor(record: TargetRecord, name: str) -> torch.Tensor:
    one = record.tensors[name]
    return loaded(one.bytes, one.shape, one.dtype)


def work(folder: Path, manifest: dict[str, Any], **values: Any) -> tuple[DistillJob, list[Any]]:
    write_manifest(folder / "m" / "a.parquet", manifest)
    told = {
        "manifest": str(folder / "m" / "a.parquet"),
        "output": str(folder / "out"),
        "engine": {"device": "cpu", "torch_dtype": "float32", "micro_batch": 2},
        "sampling": {"num_inference_steps": 4, **values.pop("sampling", {})},
    }
    job = resolved(DistillJob.parse(told | values))
    _, shards = checked_plan(job)
    worker = ShardWorker(job, DistillStage(job, (str(folder / "m"),)))
    worker.output.claim(job.recipe())
    worker.setup()
    return job, [worker(shard) for shard in shards]


@pytest.mark.parametrize("name", ["pair", "path", "cache", "velocity", "feature"])
def test_each_kind_is_made_with_all_that_it_promises(name: str, tmp_path: Path) -> None:
    output = make(tmp_path / name, name, check_share=1.0)
    made = records(output)
    assert set(made) == {f"row {i}" for i in range(len(CAPTIONS))}
    target = {"kind": "x"} | TARGETS[name]["target"]
    table = TextTable(output / "text")
    assert len(table) == len(set(CAPTIONS))  # the negative one, which is empty, is among them
    for i, caption in enumerate(CAPTIONS):
        record = made[f"row {i}"]
        assert set(record.tensors) == set(tensor_names(target))
        assert (record.caption, record.source_row) == (caption, i)
        assert table[record.caption_id].caption == caption
        data = {n: t.bytes for n, t in record.tensors.items()}
        assert digest_of(record.model_dump(), data) == record.digest
        if name != "cache":
            rounded = any(t.dtype == "bfloat16" for t in record.tensors.values())
            assert record.check_rel is not None
            assert record.check_rel < (5e-3 if rounded else 1e-3)


def test_a_path_leads_from_its_noise_to_the_pairs_latent(tmp_path: Path) -> None:
    sampling = {"num_inference_steps": 8}
    pairs = records(make(tmp_path / "a", "pair", sampling=sampling, dtype="float32"))
    for segments in (None, 4):
        target = {"kind": "path", "segments": segments}
        paths = records(
            make(
                tmp_path / str(segments), "path", target=target, sampling=sampling, dtype="float32"
            )
        )
        for key, path in paths.items():
            pair = pairs[key]
            assert (path.seed, path.noise_hash) == (pair.seed, pair.noise_hash)
            assert path.seed is not None
            noise = noise_of(path.seed, (16, path.height // 8, path.width // 8))
            assert hash_of(noise) == path.noise_hash
            end = states(noise, tensor(path, "u"), path.sigmas)[-1]
            latent = tensor(pair, "latent")
            assert (end - latent).norm() <= 1e-5 * latent.norm()
            assert len(path.sigmas) == (segments or 8) + 1
            assert set(path.sigmas) <= set(pair.sigmas)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 1e-3), ("bfloat16", 3e-3)])
def test_stored_velocities_and_their_states_are_near_the_truth(
    dtype: str, bound: float, tmp_path: Path
) -> None:
    truth = records(make(tmp_path / "a", "path32"))
    stored = records(make(tmp_path / "b", "path16", dtype=dtype))
    for key, record in stored.items():
        wanted, found = tensor(truth[key], "u"), tensor(record, "u").float()
        assert len(found) == 28
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() <= bound * other.norm()
        assert record.seed is not None
        noise = noise_of(record.seed, found.shape[1:])
        for one, other in zip(
            states(noise, found, record.sigmas), states(noise, wanted, record.sigmas), strict=True
        ):
            assert (one - other).norm() <= bound * other.norm()


def test_a_row_at_a_large_size_costs_little_more_than_its_tensors(tmp_path: Path) -> None:
    manifest = {"prompt": ["a red circle"] * 2, "key": ["a", "b"]}
    for target, most in (({"kind": "pair"}, 0.55), ({"kind": "path", "segments": 4}, 2.2)):
        folder = tmp_path / target["kind"]
        sampling = {"height": 512, "width": 512, "num_inference_steps": 4}
        work(folder, manifest, target=target, sampling=sampling)
        (file,) = (folder / "out" / "data").iterdir()
        # a quarter of the pixels of 1024², so a quarter of the tensors; words do not shrink
        assert file.stat().st_size / 2 <= most / 4 * 2**20


def test_bad_rows_are_rejected_and_cost_no_other(tmp_path: Path) -> None:
    manifest = columns(tmp_path, "cache")
    manifest["image"] = [
        *manifest["image"][:4], {"bytes": b"no picture", "path": None}, None,
        {"bytes": None, "path": "../secret.png"}, manifest["image"][7],
    ]  # fmt: skip
    manifest["rand_device"] = [None] * 7 + ["cuda"]
    del manifest["origin"]
    for file in tmp_path.glob("*.png"):
        (tmp_path / "m").mkdir(exist_ok=True)
        file.rename(tmp_path / "m" / file.name)
    _, reports = work(tmp_path, manifest, target={"kind": "cache"})
    assert (sum(r.done for r in reports), sum(r.rejected for r in reports)) == (4, 4)
    table = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    reasons = {row["key"]: row["reason"] for row in table}
    for key, words in (
        ("row 4", "not a readable picture"),
        ("row 5", "no image"),
        ("row 6", "outside the allowed places"),
        ("row 7", "noise from the CPU alone"),
    ):
        assert words in reasons[key]
    assert len(TextTable(tmp_path / "out" / "text")) == len(set(CAPTIONS))


def test_a_row_that_is_rejected_costs_no_other_its_text(tmp_path: Path) -> None:
    manifest = {
        "prompt": ["a red circle", "a red circle", None, "a blue square"],
        "key": ["bad", "good", "void", "small"],
        "seed": [-5, 5, 6, 7],
        "cfg_scale": [2.0, 2.0, 2.0, 2.0],
        "negative_prompt": [None, None, "blurred", "blurred"],
    }
    _, reports = work(tmp_path, manifest, target={"kind": "pair"})
    assert sum(report.rejected for report in reports) == 2
    table = TextTable(tmp_path / "out" / "text")
    made = records(tmp_path / "out")
    assert sorted(made) == ["good", "small"]
    for record in made.values():
        assert table[record.caption_id].caption == record.caption
        assert record.negative_id is not None
        assert table[record.negative_id].caption == record.negative_caption


def test_our_own_image_datasets_are_manifests_too(tmp_path: Path) -> None:
    prompts = {"prompt": ["a red circle", "a blue square"], "key": ["a", "b"]}
    make_pictures(tmp_path / "images", prompts)
    images = pq.read_table(tmp_path / "images" / "out" / "data")
    for kind in ("cache", "pair"):
        (tmp_path / kind / "m").mkdir(parents=True)
        pq.write_table(images, tmp_path / kind / "m" / "a.parquet")
        told = {
            "manifest": str(tmp_path / kind / "m" / "a.parquet"),
            "output": str(tmp_path / kind / "out"),
            "target": {"kind": kind},
            "engine": {"device": "cpu", "torch_dtype": "float32", "micro_batch": 2},
        }
        job = resolved(DistillJob.parse(told))
        _, shards = checked_plan(job)
        worker = ShardWorker(job, DistillStage(job, (str(tmp_path / kind / "m"),)))
        worker.output.claim(job.recipe())
        worker.setup()
        for shard in shards:
            assert worker(shard).done == 2
        made = records(tmp_path / kind / "out")
        assert [made[key].caption for key in "ab"] == ["a red circle", "a blue square"]
    seeds = dict(zip(images["key"].to_pylist(), images["seed"].to_pylist(), strict=True))
    assert {key: record.seed for key, record in made.items()} == seeds


def test_loras_are_worn_by_the_teacher_and_told_of(
    tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    file = file_of(tmp_path / "m", shapes_engine())
    manifest = columns(tmp_path / "m", "velocity")
    del manifest["origin"]
    loras = [None, [{"path": file.name, "scale": 0.5}], [{"path": file.name, "scale": 0.0}]]
    manifest["loras"] = loras + [None] * 5
    target = {"kind": "velocity", "timesteps": [0.3]}
    work(tmp_path, manifest, target=target, check_share=1.0, dtype="float32")
    made = records(tmp_path / "out")
    assert [lora.scale for lora in made["row 1"].loras] == [0.5]
    assert [lora.scale for lora in made["row 2"].loras] == [0.0]
    assert all(record.check_rel is not None for record in made.values())
    assert all((record.check_rel or 0.0) < 1e-3 for record in made.values())


@pytest.mark.parametrize("told", [[], [{"name": "gone", "scale": 2.0, "sha256": "ab"}]])
def test_loras_that_pictures_were_made_with_are_not_the_teachers(
    told: list[Any], tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    file = file_of(tmp_path / "m", shapes_engine())
    kind = pa.list_(pa.struct([("name", "string"), ("scale", "float64"), ("sha256", "string")]))
    manifest = columns(tmp_path / "m", "velocity") | {"loras": pa.array([told] * 8, kind)}
    del manifest["origin"]
    sampling = {"loras": [{"path": str(file), "scale": 0.5}]}
    target = {"kind": "velocity", "timesteps": [0.3]}
    work(tmp_path, manifest, target=target, sampling=sampling)
    made = records(tmp_path / "out")
    assert [[lora.scale for lora in record.loras] for record in made.values()] == [[0.5]] * 8


@pytest.mark.parametrize(
    ("name", "told"),
    [("pair", (1, "")), ("velocity", (1, "text 1, encode 1")), ("cache", (None, "encode 1"))],
)
def test_rows_that_memory_was_too_short_for_are_made_and_say_so(
    name: str, told: tuple[int | None, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, t5_states = DistillStage.setup, encode.t5_states

    def crowded(stage: DistillStage) -> None:
        setup(stage)
        engine = stage.model
        coder = Crowded(engine.vae, engine.device, engine.dtype)
        monkeypatch.setattr(engine.darkroom, "coder", coder)
        monkeypatch.setattr(engine, "dit", Watched(engine.dit, room=1))

    def narrow(t5: Any, ids_BT: torch.Tensor) -> torch.Tensor:
        if len(ids_BT) > 1:
            raise torch.OutOfMemoryError("no room on the card")
        return t5_states(t5, ids_BT)

    plain = records(make(tmp_path / "plain", name, dtype="float32"))
    monkeypatch.setattr(DistillStage, "setup", crowded)
    if name == "velocity":
        monkeypatch.setattr(encode, "t5_states", narrow)
    output = make(tmp_path / "crowded", name, dtype="float32")
    for key, record in records(output).items():
        assert (record.micro_batch, record.halved) == told
        assert plain[key].halved == ""
        for one in record.tensors:
            wanted = tensor(plain[key], one)
            assert (tensor(record, one) - wanted).norm() <= 1e-5 * wanted.norm()
    table = TextTable(output / "text")
    assert {table[i].halved for i in table.ids()} == {1 if name == "velocity" else 0}


def test_a_seed_decides_what_the_teacher_is_asked(tmp_path: Path) -> None:
    target = {"kind": "velocity", "queries": 2}
    drawn = []
    for place, seed in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / place / "m").mkdir(parents=True)
        manifest = columns(tmp_path / place / "m", "velocity")
        del manifest["origin"]
        work(tmp_path / place, manifest, target=target, sampling={"seed": seed})
        made = records(tmp_path / place / "out")
        assert len({record.t for record in made.values()}) == len(made)
        drawn.append({key: (record.t, record.t_noise_seed) for key, record in made.items()})
    assert drawn[0] == drawn[2]
    assert all(drawn[0][key] != drawn[1][key] for key in drawn[0])


def test_an_output_of_another_teacher_is_refused(tmp_path: Path) -> None:
    manifest = {"prompt": ["a"], "key": ["a"]}
    _, _ = work(tmp_path, manifest, target={"kind": "pair"})
    identity = tmp_path / "out" / "_run" / "identity.json"
    identity.write_text(identity.read_text().replace('"euler"', '"heun"'))
    with pytest.raises(OutputError, match="solver is 'euler' and 'heun'"):
        work(tmp_path, manifest, target={"kind": "pair"})


def test_a_rejected_row_takes_no_text_from_later_ones(tmp_path: Path) -> None:
    manifest = {
        "key": ["a", "b", "c", "d"],
        "prompt": [None, "a red circle", "a red circle", "a red circle"],
        "num_inference_steps": [4, -1, 4, 4],
        "loras": [None, None, None, [{"path": "nowhere.safetensors"}]],
    }
    _, (report,) = work(tmp_path, manifest, target={"kind": "pair"}, sampling={"cfg_scale": 2.0})
    assert (report.done, report.rejected) == (1, 3)
    table = TextTable(tmp_path / "out" / "text")
    (record,) = records(tmp_path / "out").values()
    assert record.negative_id is not None
    assert sorted(table.ids()) == sorted([record.caption_id, record.negative_id])


def test_rejected_rows_that_are_tried_again_bring_their_texts(
    tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    file = file_of(tmp_path / "m", shapes_engine())
    away = file.rename(tmp_path / "away")
    manifest = {
        "key": ["a", "b"],
        "prompt": ["a red circle", "a blue square"],
        "loras": [None, [{"path": file.name}]],
    }
    job, (report,) = work(tmp_path, manifest, target={"kind": "pair"})
    assert (report.done, report.rejected) == (1, 1)
    away.rename(file)
    output = Output(job.output, job.format)
    _, shards = checked_plan(job)
    _, todo = left_to_do(job, output, shards, retry_rejected=True)
    worker = ShardWorker(job, DistillStage(job, (str(tmp_path / "m"),)))
    worker.setup()
    assert [(made.done, made.rejected) for made in map(worker, todo)] == [(1, 0)]
    table = TextTable(tmp_path / "out" / "text")
    assert set(table.ids()) == {r.caption_id for r in records(tmp_path / "out").values()}
    assert not verify(job.output).faults


def test_texts_are_encoded_a_chunk_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.stages.distill.CHUNK", 2)
    told = columns(tmp_path / "m", "pair")
    del told["origin"]
    work(tmp_path, told | {"height": [64] * 8, "width": [64] * 8}, target={"kind": "pair"})
    table = TextTable(tmp_path / "out" / "text")
    assert {table[name].caption for name in table.ids()} == set(CAPTIONS)


def test_texts_of_an_earlier_attempt_stand_and_are_in_the_receipt(tmp_path: Path) -> None:
    manifest = {"key": ["a", "b"], "prompt": ["a red circle", "a blue square"]}
    job, _ = work(tmp_path, manifest, target={"kind": "pair"})
    _, (shard,) = checked_plan(job)
    (data,) = (tmp_path / "out" / "data").iterdir()
    data.unlink()  # killed between the texts and the data; then a file came that has a caption
    worker = ShardWorker(job, DistillStage(job, (str(tmp_path / "m"),)))
    worker.setup()
    worker(replace(shard, texts=shard.texts[:1]))
    assert not verify(job.output).faults


def test_a_way_that_does_not_begin_with_noise_is_no_target(tmp_path: Path) -> None:
    told = columns(tmp_path, "cache")
    (tmp_path / "m").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "m" / "0.png")
    manifest = {
        "key": ["a", "b", "c"],
        "prompt": ["a red circle"] * 3,
        "input_image": ["0.png", None, None],
        "denoising_strength": [None, 0.5, 1.0],
    }
    assert told["image"][0]["path"] == "0.png"
    _, (report,) = work(tmp_path, manifest, target={"kind": "pair"})
    assert (report.done, report.rejected) == (1, 2)
    (file,) = (tmp_path / "out" / "rejected").iterdir()
    reasons = {row["key"]: row["reason"] for row in pq.read_table(file).to_pylist()}
    assert reasons["a"].startswith("input_image: ")
    assert reasons["b"].startswith("denoising_strength: ")


def test_a_row_that_cannot_be_asked_about_again_is_far_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Checks.errors

    def errors(self: Checks, rows: Any, *args: Any, **values: Any) -> dict[str, float]:
        if any(row.record.key == "b" for row in rows):
            raise NumbersBroke("the velocity came out as NaN or infinity")
        return told(self, rows, *args, **values)

    monkeypatch.setattr(Checks, "errors", errors)
    manifest = {"key": ["a", "b"], "prompt": ["a red circle", "a blue square"]}
    _, (report,) = work(tmp_path, manifest, target={"kind": "pair"}, check_share=1.0)
    made = records(tmp_path / "out")
    assert (report.done, report.rejected) == (2, 0)
    assert made["a"].check_rel is not None
    assert made["a"].check_rel < 1e-3
    assert made["b"].check_rel == float("inf")


def test_a_picture_that_makes_the_teacher_raise_falls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Teacher.each

    def each(self: Teacher, queries: Any, *args: Any) -> Any:
        if any(query.prompt == "a small yellow star" for query in queries):
            raise ArithmeticError("nobody foresaw it")
        return told(self, queries, *args)

    monkeypatch.setattr(Teacher, "each", each)
    (tmp_path / "m").mkdir()
    manifest = columns(tmp_path / "m", "velocity")
    del manifest["origin"]
    _, reports = work(tmp_path, manifest, target={"kind": "velocity"}, check_share=0.0)
    assert (sum(r.done for r in reports), sum(r.rejected for r in reports)) == (7, 1)
    (row,) = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert (row["key"], row["error"]) == ("row 4", "RowRaised")


def test_a_cache_keeps_what_its_rows_say_for_a_student_and_is_silent_where_they_are(
    tmp_path: Path,
) -> None:
    told = {
        "seed": [7, None], "num_inference_steps": [4, None],
        "embedded_guidance": [3.5, None], "cfg_scale": [1.0, None],
    }  # fmt: skip
    for place, more in (("plain", {}), ("told", told)):
        (tmp_path / place / "m").mkdir(parents=True)
        manifest = columns(tmp_path / place / "m", "cache")
        del manifest["origin"]
        manifest = {name: values[:2] for name, values in manifest.items()}
        _, reports = work(tmp_path / place, manifest | more, target={"kind": "cache"})
        assert sum(report.done for report in reports) == 2
    plain, made = (records(tmp_path / place / "out") for place in ("plain", "told"))
    first, second = made["row 0"], made["row 1"]
    assert {name: getattr(first, name) for name in told} == {n: v[0] for n, v in told.items()}
    assert all(getattr(second, name) is None for name in told)
    assert second.digest == plain["row 1"].digest
    assert first.digest != plain["row 0"].digest
    assert not verify(str(tmp_path / "told" / "out")).faults
