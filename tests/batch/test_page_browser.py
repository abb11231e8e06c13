"""The page as a browser shows it, from a disk."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest

from batch.actor import ShardWorker
from batch.output import Output
from batch.page import page
from batch.report import RunReport
from batch.run import checked_plan
from tests.batch.doubles import PainterStage, job, write_manifest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = "<script>document.title='broken'</script> & 'owl' $title"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and os.environ.get("FLUXMILL_BROWSER") == "required":
        pytest.fail("FLUXMILL_BROWSER=required, and there is none of " + ", ".join(NAMES))
    if found is None:
        pytest.skip("no headless browser: none of " + ", ".join(NAMES))
    return found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of six pictures of two sizes, and one reject."""
    folder = tmp_path_factory.mktemp("page")
    prompts = ["a red fox", "a blue fox", HOSTILE, "nan", "bee", "ant", "cow"]
    manifest = write_manifest(
        folder / "m.parquet", {"prompt": prompts, "width": [16, 16, 16, 16, 32, 32, 16]}
    )
    asked = job(folder, manifest)
    worker = ShardWorker(asked, PainterStage(asked, ()))
    worker.output.claim(asked.recipe())
    worker.setup()
    for shard in checked_plan(asked)[1]:
        worker(shard)
    path = folder / "index.html"
    text = page(asked, Output(asked.output, "parquet"), RunReport(rows=7, done=6, rejected=1))
    path.write_text(text)
    return path.as_uri()


def opened(browser: str, address: str, *words: str, **told: str) -> str:
    """What the browser made of the page, with its filter in the address."""
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            *words,
            f"{address}#{urlencode(told)}",
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "Uncaught" not in done.stderr, done.stderr
    return done.stdout


def visible(dom: str) -> tuple[list[str], int, str]:
    """Captions that are shown, rejected rows that are shown, and what the page counts."""
    figures = re.findall(r"<figure([^>]*)>.*?<figcaption>(.*?)<small>", dom, re.S)
    rows = re.findall(r"<tr([^>]*)><td>", dom)
    counted = re.search(r"<output>(.*?)</output>", dom)
    assert counted is not None
    return (
        [caption for told, caption in figures if "hidden" not in told],
        sum("hidden" not in told for told in rows),
        counted.group(1),
    )


@pytest.mark.browser
@pytest.mark.parametrize(
    ("told", "captions", "rejects"),
    [
        ({}, 6, 1),
        ({"text": "fox"}, 2, 0),
        ({"text": "FOX  red"}, 1, 0),
        ({"bucket": "32×16, 2 steps"}, 2, 0),
        ({"status": "rejected"}, 0, 1),
        ({"status": "done"}, 6, 0),
        ({"text": "numbersbroke"}, 0, 1),
        ({"text": "nothing of the kind"}, 0, 0),
    ],
)
def test_filters_leave_what_they_say(
    browser: str, address: str, told: dict[str, str], captions: int, rejects: int
) -> None:
    shown, rows, counted = visible(opened(browser, address, "--dump-dom", **told))
    assert (len(shown), rows) == (captions, rejects)
    assert counted == f"{captions} pictures, {rejects} rejected"


@pytest.mark.browser
def test_a_prompt_is_text_and_nothing_else(browser: str, address: str) -> None:
    dom = opened(browser, address, "--dump-dom")
    assert "<title>out</title>" in dom
    assert "&lt;script&gt;document.title='broken'&lt;/script&gt; &amp; 'owl' $title" in dom


@pytest.mark.browser
def test_the_page_is_drawn(browser: str, address: str, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "page.png"
    opened(browser, address, f"--screenshot={file}", "--window-size=1200,800")
    picture = Image.open(file).convert("RGB")
    assert picture.size == (1200, 800)
    colours = picture.getcolors(2**21)
    assert colours is not None
    assert len(colours) > 200  # thumbnails of noise among it
