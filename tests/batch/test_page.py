import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from batch import page as page_room
from batch.actor import ShardWorker
from batch.output import Output
from batch.page import page, thumbnail
from batch.report import RunReport
from batch.run import checked_plan
from tests.batch.doubles import PainterStage, job, write_manifest


class Pictures(HTMLParser):
    """The captions of a page's pictures, and addresses that lead out of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.captions: list[str] = []
        self.outside: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_data(self, data: str) -> None:
        if self._tag == "figcaption":
            self.captions.append(data)
            self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told, self._tag = dict(attrs), tag
        for name in ("src", "href"):
            if (told.get(name) or "data:").split(":")[0] != "data":
                self.outside.append(told[name] or "")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_page_shows_pictures_prompts_and_rejects_from_one_file(tmp_path: Path, kind: str) -> None:
    prompts = ['a "quoted" <fox>', "nan", "owl"]
    asked = job(tmp_path, write_manifest(tmp_path / "m.parquet", {"prompt": prompts}), format=kind)
    worker = ShardWorker(asked, PainterStage(asked, ()))
    worker.output.claim(asked.recipe())
    worker.setup()
    reports = [worker(shard) for shard in checked_plan(asked)[1]]
    total = RunReport(rows=3, done=sum(r.done for r in reports), rejected=1)
    text = page(asked, Output(asked.output, kind), total)
    seen = Pictures(text)
    assert seen.captions == ['a "quoted" <fox>', "owl"]
    assert text.count("owl") == 1  # a prompt is there once
    assert seen.outside == []
    assert "2 pictures, 1 rejected, 3 wanted" in text
    assert "m.parquet:1" in text


def test_a_large_dataset_is_shown_in_part_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_room, "SHOWN", 2)
    asked = job(tmp_path, write_manifest(tmp_path / "m.parquet", {"prompt": list("abcd")}))
    worker = ShardWorker(asked, PainterStage(asked, ()))
    worker.output.claim(asked.recipe())
    worker.setup()
    worker(checked_plan(asked)[1][0])
    text = page(asked, Output(asked.output, "parquet"), RunReport(rows=4, done=4))
    assert len(Pictures(text).captions) == 2
    assert "the first 2 are shown" in text


@pytest.mark.parametrize("size", [(16, 16), (64, 32), (1024, 2048)])
def test_thumbnails_are_small_and_tiny_pictures_are_enlarged(size: tuple[int, int]) -> None:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    assert len(thumbnail(out.getvalue())) < 20_000
