import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from batch.errors import MachineFault
from batch.ingest.plan import ingest_plan
from batch.output import Output
from batch.report import RunReport
from batch.run import publish
from batch.stages import ingest as room
from batch.stages.ingest import IngestStage
from batch.verify import verify
from schemas.arrow import files_in
from tests.batch.ingest.material import folder, ingest, job, picture, rows, table, tar


def reasons(output: Path) -> dict[str, tuple[str, str]]:
    return {key: (row["error"], row["reason"]) for key, row in rows(output, "rejected").items()}


def test_a_folder_becomes_shards_whose_pictures_are_as_they_were(tmp_path: Path) -> None:
    files = {
        "a.png": picture(40, 24, 1),
        "a.txt": "a red square\n",
        "deep/er/b.JPG": picture(16, 32, 2, "JPEG"),
        "deep/er/b.txt": "\ufeffein Kreis für Anna",
        ".hidden": "x",
    }
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    (report,) = ingest(job(tmp_path / "out", source))
    assert (report.done, report.rejected) == (2, 0)
    made = rows(tmp_path / "out")
    assert list(made) == ["a.png", "deep/er/b.JPG"]
    told = made["deep/er/b.JPG"]
    data = files["deep/er/b.JPG"]
    assert isinstance(data, bytes)
    assert told == {
        "key": "deep/er/b.JPG",
        "prompt": "ein Kreis für Anna",
        "image": {"bytes": data, "path": "deep/er/b.JPG"},
        "image_width": 16,
        "image_height": 32,
        "image_sha256": hashlib.sha256(data).hexdigest(),
    }


def test_bad_rows_are_rejected_with_what_is_wrong_and_cost_no_other(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (30000, 30000)).save(bomb, "PNG")
    good = picture()
    files = {
        **{f"{n}.txt": "a circle" for n in ("good", "cut", "empty", "text", "bomb", "lonely")},
        "good.png": good,
        "cut.png": good[: len(good) // 2],
        "empty.png": b"",
        "text.png": b"no picture",
        "bomb.png": bomb.getvalue(),
        "mute.png": good,
        "blank.png": good,
        "blank.txt": " \n",
        "latin.png": good,
        "latin.txt": "für".encode("latin-1"),
    }  # fmt: skip
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    reports = ingest(job(tmp_path / "out", source))
    assert (sum(r.done for r in reports), sum(r.rejected for r in reports)) == (1, 8)
    assert list(rows(tmp_path / "out")) == ["good.png"]
    told = reasons(tmp_path / "out")
    for key, error, words in (
        ("cut.png", "PictureError", "not a readable picture"),
        ("empty.png", "PictureError", "it is empty"),
        ("text.png", "PictureError", "of a known format"),
        ("bomb.png", "PictureError", "decompression bomb"),
        ("lonely.txt", "PictureError", "a caption without a picture"),
        ("mute.png", "CaptionError", "has no caption"),
        ("blank.png", "CaptionError", "has no caption"),
        ("latin.png", "CaptionError", "latin.txt: is not UTF-8"),
    ):
        assert told[key][0] == error
        assert words in told[key][1]
        assert told[key][1].startswith(key)


def test_pictures_without_captions_are_taken_where_the_job_says_so(tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", {"a.png": picture()}))}
    ingest(job(tmp_path / "out", source, allow_empty_captions=True))
    assert rows(tmp_path / "out")["a.png"]["prompt"] == ""


def test_a_turned_photograph_has_the_size_at_which_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (40, 24)).save(out, "JPEG", exif=exif)
    files = {"a.jpg": out.getvalue(), "a.txt": "turned"}
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    ingest(job(tmp_path / "out", source))
    made = rows(tmp_path / "out")["a.jpg"]
    assert (made["image_width"], made["image_height"]) == (24, 40)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_table_names_files_one_or_several_and_carries_the_rest(kind: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {f"{i}.png": picture(seed=i) for i in range(4)})
    lines = [
        {"image": "0.png", "prompt": "a", "kontext_images": ["1.png", "2.png"], "rating": 5},
        {"image": "1.png", "prompt": "b", "kontext_images": "3.png", "rating": None},
        {"image": "2.png", "prompt": "c", "kontext_images": None, "rating": 1},
        {"image": "3.png", "prompt": "d", "kontext_images": ["gone.png"], "rating": 1},
        {"image": 17, "prompt": "e", "kontext_images": [], "rating": 1},
        {"image": "../secret.png", "prompt": "f", "kontext_images": [], "rating": 1},
        {"image": "3.png", "prompt": 5, "kontext_images": [], "rating": 1},
    ]
    source = {
        "kind": "table",
        "dataset_base_path": str(place),
        "dataset_metadata_path": str(table(tmp_path / f"t.{kind}", lines)),
        "data_file_keys": "image,kontext_images",
    }
    ingest(job(tmp_path / "out", source))
    made = rows(tmp_path / "out")
    assert [made[key]["rating"] for key in made] == [5, None, 1]
    paths = [[f["path"] for f in row["kontext_images"] or ()] for row in made.values()]
    assert paths == [["1.png", "2.png"], ["3.png"], []]
    assert made[f"t.{kind}:0"]["kontext_images"][1]["bytes"] == (place / "2.png").read_bytes()
    told = reasons(tmp_path / "out")
    assert "kontext_images: gone.png: cannot be read" in told[f"t.{kind}:3"][1]
    assert "image: 17 is no path" in told[f"t.{kind}:4"][1]
    assert "outside the allowed places" in told[f"t.{kind}:5"][1]
    assert "prompt: 5 is no text" in told[f"t.{kind}:6"][1]


def test_empty_cells_of_a_csv_are_null_and_numbers_keep_their_zeros(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {"0.png": picture(), "m.png": picture(seed=1)})
    lines = [
        {"key": "x", "image": "0.png", "prompt": "a", "mask": "m.png", "code": "007"},
        {"key": "y", "image": "0.png", "prompt": "b", "mask": "", "code": ""},
        {"key": "x", "image": "0.png", "prompt": "c", "mask": "", "code": ""},
        {"key": "z", "image": "", "prompt": "d", "mask": "", "code": ""},
    ]
    source = {
        "kind": "table",
        "dataset_base_path": str(place),
        "dataset_metadata_path": str(table(tmp_path / "t.csv", lines)),
        "data_file_keys": ["image", "mask"],
    }
    ingest(job(tmp_path / "out", source))
    made = rows(tmp_path / "out")
    assert [made[key]["code"] for key in "xy"] == ["007", None]
    assert made["x"]["mask"]["path"] == "m.png"
    assert made["y"]["mask"] is None
    told = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert sorted((row["key"], row["error"]) for row in told) == [
        ("x", "DuplicateKey"), ("z", "PictureError"),
    ]  # fmt: skip
    (reason,) = [row["reason"] for row in told if row["key"] == "z"]
    assert reason == "t.csv:3: the row has no image"


def test_samples_of_tars_are_read_by_their_places(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("x/0.png", picture(seed=0)), ("x/0.txt", "from text"), ("x/0.json", '{"prompt": "no"}'),
        ("x/1.json", '{"prompt": "from json", "n": 1}'), ("x/1.jpg", picture(seed=1, kind="JPEG")),
        ("x/1.mask.png", picture(seed=2)),
        ("x/2.txt", "no picture"),
        ("x/3.png", picture()), ("x/3.json", "[1]"),
    ]  # fmt: skip
    path = tar(tmp_path / "in" / "a.tar", members)
    source = {"kind": "webdataset", "path": str(path), "data_file_keys": "image,mask"}
    ingest(job(tmp_path / "out", source))
    made = rows(tmp_path / "out")
    assert {key: row["prompt"] for key, row in made.items()} == {
        "a/x/0": "from text", "a/x/1": "from json",
    }  # fmt: skip
    assert made["a/x/1"]["image"] == {"bytes": picture(seed=1, kind="JPEG"), "path": "a.tar"}
    assert made["a/x/1"]["mask"]["bytes"] == picture(seed=2)
    assert json.loads(made["a/x/1"]["json"])["n"] == 1
    told = reasons(tmp_path / "out")
    assert "has no picture" in told["a/x/2"][1]
    assert "no mapping" in told["a/x/3"][1]


def test_parquet_is_read_as_it_lies_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.png").write_bytes(picture(seed=3))
    told = {
        "picture": [
            {"bytes": picture(), "path": None}, {"bytes": None, "path": "p.png"},
            {"bytes": None, "path": None}, None,
        ],
        "text": ["a", "b", "c", "d"],
        "score": [0.5, None, 1.0, 2.0],
    }  # fmt: skip
    pq.write_table(pa.table(told), tmp_path / "in" / "a.parquet")
    source = {"kind": "parquet", "path": str(tmp_path / "in"), "image": "picture"}
    (report,) = ingest(job(tmp_path / "out", source))
    assert (report.done, report.rejected) == (2, 2)
    made = list(rows(tmp_path / "out").values())
    assert [row["score"] for row in made] == [0.5, None]
    assert made[1]["image"] == {"bytes": picture(seed=3), "path": "p.png"}
    assert all("a.parquet:" in reason for _, reason in reasons(tmp_path / "out").values())


def test_what_is_made_opens_as_a_dataset_with_a_page_and_is_verified(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {f"{i}.png": picture(seed=i) for i in range(3)})
    lines = [{"image": f"{i}.png", "prompt": f"p{i}", "more": [f"{i}.png"]} for i in range(3)]
    source = {
        "kind": "table",
        "dataset_base_path": str(place),
        "dataset_metadata_path": str(table(tmp_path / "t.json", lines)),
        "data_file_keys": "image,more",
    }
    reports = ingest(job(tmp_path / "out", source))
    asked, _, _ = ingest_plan(job(tmp_path / "out", source))
    done = sum(report.done for report in reports)
    publish(asked, Output(asked.output, asked.format), RunReport(rows=3, done=done))
    assert "3 captioned pictures" in (tmp_path / "out" / "README.md").read_text()
    assert "p1" in (tmp_path / "out" / "index.html").read_text()
    assert verify(asked.output).faults == []
    data = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data[1]["image"].size == (40, 24)
    assert data[1]["more"][0].size == (40, 24)
    (file,) = (tmp_path / "out" / "data").iterdir()
    assert files_in(pq.read_schema(file)) == ("image", "more")


def test_memory_that_gives_out_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size_of(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(room, "size_of", size_of)
    files = {"a.png": picture(), "a.txt": "a"}
    source = {"kind": "folder", "path": str(folder(tmp_path / "in", files))}
    with pytest.raises(MachineFault):
        ingest(job(tmp_path / "out", source))


def test_a_stage_that_is_asked_to_leave_begins_nothing_more(tmp_path: Path) -> None:
    class Leaving:
        def at(self, stage: str, wishes: object) -> None:
            raise AssertionError("nothing is begun")

        def leaving(self) -> bool:
            return True

    stage = IngestStage(job(tmp_path / "out", {"kind": "folder", "path": str(tmp_path)}))
    stage.setup()
    assert list(stage([object()], "f", Leaving())) == []  # type: ignore[list-item]
