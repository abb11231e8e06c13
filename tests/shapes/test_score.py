"""A dataset is scored by what its pictures show."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor

from shapes.manifest import prompts
from shapes.recipe import ONE
from shapes.score import score_dataset, table
from shapes.world import keyed

WORLD = ONE.world
TEXTS = prompts(WORLD, 24, 8)


def png(picture_3HW: Tensor, zoom: int = 1) -> bytes:
    pixels = (picture_3HW.permute(1, 2, 0) * 255).round().byte().numpy()
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.resize((64 * zoom, 64 * zoom), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def picture(text: str, zoom: int = 1) -> dict[str, object]:
    row = WORLD.parse(text)
    assert row is not None
    return {"bytes": png(WORLD.draw(row[None], keyed(text))[0], zoom), "path": None}


def write(folder: Path, texts: list[str], images: list[dict[str, object] | None]) -> None:
    (folder / "data").mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    half = len(texts) // 2
    for i, part in enumerate((slice(0, half), slice(half, None))):
        keys = [f"{i}-{n}" for n in range(len(texts[part]))]
        columns = {
            "key": keys,
            "prompt": pa.array(texts[part]),
            "image": pa.array(images[part], kind),
        }
        pq.write_table(pa.table(columns), folder / "data" / f"{i:05}.parquet")


def test_true_pictures_of_all_shards_score_full_marks(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, [picture(text) for text in TEXTS])
    result = score_dataset(tmp_path, WORLD)
    assert (result.every.count, result.every.all) == (24, 1.0)
    assert result.unseen is not None
    assert (result.unseen.count, result.unseen.all) == (8, 1.0)


def test_pictures_of_other_prompts_do_not(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, [picture(text) for text in TEXTS[1:] + TEXTS[:1]])
    assert score_dataset(tmp_path, WORLD).every.all == 0


def test_larger_pictures_are_measured_at_the_worlds_size(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, [picture(text, zoom=2) for text in TEXTS])
    assert score_dataset(tmp_path, WORLD).every.all == 1


def test_rows_that_cannot_be_scored_are_counted_apart(tmp_path: Path) -> None:
    texts = [*TEXTS[:4], "a dream of spring", TEXTS[4]]
    write(tmp_path, texts, [*(picture(text) for text in TEXTS[:5]), None])
    result = score_dataset(tmp_path, WORLD)
    assert (result.every.count, result.pictureless, result.unreadable) == (4, 1, 1)


def test_a_picture_may_lie_beside_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(picture(TEXTS[0])["bytes"]))  # type: ignore[arg-type]
    write(tmp_path, TEXTS[:1], [{"bytes": None, "path": "a.png"}])
    assert score_dataset(tmp_path, WORLD).every.all == 1


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture"):
        score_dataset(tmp_path, WORLD)


def test_the_table_has_a_line_an_attribute(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, [picture(text) for text in TEXTS])
    lines = table(score_dataset(tmp_path, WORLD)).splitlines()
    assert lines[0].split() == ["all", "rows", "held", "out"]
    assert [line.split()[0] for line in lines[2:]] == [
        "colour", "shape", "place", "size", "ground", "all",
    ]  # fmt: skip
    assert lines[-1].split() == ["all", "100.0%", "100.0%"]
