"""A page to look at: thumbnails with their prompts, and why rows were rejected.

One file without outside parts, so that it opens from a disk, a bucket or an attachment.
"""

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from batch.output import DATA, REJECTED, Output
from batch.report import RunReport
from schemas.jobs import GenerateJob

SHOWN = 240
SHOWN_REJECTS = 100
THUMB = 192  # pixels
COLUMNS = ("key", "sample", "prompt", "seed", "height", "width", "num_inference_steps")


@dataclass(frozen=True)
class Shown:
    """One picture with what is told of it."""

    image: bytes
    told: dict[str, Any]


def shown(output: Output) -> Iterator[Shown]:
    """Pictures in the order of their files."""
    for name in output.storage.names(DATA):
        with output.storage.open(f"{DATA}/{name}") as file:
            yield from (from_tar(file) if name.endswith(".tar") else from_parquet(file))


def from_parquet(file: Any) -> Iterator[Shown]:
    for batch in pq.ParquetFile(file).iter_batches(16, columns=["image", *COLUMNS]):
        for row in batch.to_pylist():
            yield Shown(row.pop("image")["bytes"], row)


def from_tar(file: Any) -> Iterator[Shown]:
    with tarfile.open(fileobj=file) as tar:
        while (picture := tar.next()) and (text := tar.next()):
            told = tar.extractfile(text)
            image = tar.extractfile(picture)
            assert told is not None
            assert image is not None
            values = json.load(told)
            yield Shown(image.read(), {name: values[name] for name in COLUMNS})


def thumbnail(data: bytes) -> str:
    """A small copy as a data address; tiny pictures are enlarged without smoothing."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if max(image.size) <= THUMB // 2:
        factor = THUMB // max(image.size)
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def figure(one: Shown) -> str:
    prompt = escape(one.told["prompt"])
    details = escape(", ".join(f"{k} {v}" for k, v in one.told.items() if k != "prompt"))
    return (
        f'<figure data-text="{prompt.lower()} {details.lower()}">'
        f'<img src="{thumbnail(one.image)}" alt="{prompt}" loading="lazy">'
        f"<figcaption>{prompt}<small>{details}</small></figcaption></figure>"
    )


def rejects(output: Output) -> Iterator[dict[str, Any]]:
    for name in output.storage.names(REJECTED):
        with output.storage.open(f"{REJECTED}/{name}") as file:
            yield from pq.read_table(file).to_pylist()


def rejects_table(output: Output) -> str:
    rows = []
    for row, _ in zip(rejects(output), range(SHOWN_REJECTS), strict=False):
        cells = (f"{row['manifest_file']}:{row['row']}", row["key"], row["error"], row["reason"])
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    if not rows:
        return ""
    head = "<tr><th>row</th><th>key</th><th>error</th><th>reason</th></tr>"
    return f"<h2>Rejected</h2><table>{head}{''.join(rows)}</table>"


def page(job: GenerateJob, output: Output, report: RunReport) -> str:
    """The page, with the first pictures of the dataset."""
    figures = [figure(one) for one, _ in zip(shown(output), range(SHOWN), strict=False)]
    title = escape(job.output.rstrip("/").rpartition("/")[2] or "dataset")
    counts = f"{report.done} pictures, {report.rejected} rejected, {report.rows} wanted"
    if len(figures) < report.done:
        counts += f"; the first {len(figures)} are shown"
    return PAGE.format(
        title=title, counts=counts, figures="\n".join(figures), rejects=rejects_table(output)
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }}
header {{ display: flex; gap: 1rem; align-items: baseline; flex-wrap: wrap; }}
h1 {{ margin: 0; font-size: 1.4rem; }}
input {{ margin-left: auto; padding: .4rem .7rem; font: inherit; min-width: 16rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(192px, 1fr)); gap: 1rem;
  margin-top: 1rem; }}
figure {{ margin: 0; }}
img {{ width: 100%; border-radius: 6px; image-rendering: pixelated; }}
figcaption small {{ display: block; opacity: .6; font-size: .75rem; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .3rem .8rem .3rem 0; text-align: left;
  vertical-align: top; }}
</style></head><body>
<header><h1>{title}</h1><span>{counts}</span>
<input type="search" placeholder="filter by words" aria-label="filter by words"></header>
<main>
{figures}
</main>
{rejects}
<script>
document.querySelector("input").addEventListener("input", event => {{
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const figure of document.querySelectorAll("figure"))
    figure.hidden = !words.every(word => figure.dataset.text.includes(word));
}});
</script></body></html>
"""
