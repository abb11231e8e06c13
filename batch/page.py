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
from pathlib import Path
from string import Template
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from batch.output import DATA, REJECTED, Output
from batch.report import RunReport
from batch.storage import name_of
from schemas.ingest import IngestJob
from schemas.jobs import GenerateJob

SHOWN = 240
SHOWN_REJECTS = 100
THUMB = 192  # pixels
PROMPT_SHOWN = 200  # characters, of a rejected row
PAGE = Path(__file__).with_name("page.html")
COLUMNS = ("key", "sample", "prompt", "seed", "height", "width", "num_inference_steps")
TRAINING = {"image_height": "height", "image_width": "width"}  # as training shards call these


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
    parquet = pq.ParquetFile(file)
    training = set(TRAINING) <= set(parquet.schema_arrow.names)
    wanted = ("key", "prompt", *TRAINING) if training else COLUMNS
    for batch in parquet.iter_batches(16, columns=["image", *wanted]):
        for row in batch.to_pylist():
            data = row.pop("image")["bytes"]
            yield Shown(data, {TRAINING.get(name, name): value for name, value in row.items()})


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


def bucket(told: dict[str, Any]) -> str:
    """Size and steps, by which the page filters."""
    size = f"{told['width']}×{told['height']}"
    steps = told.get("num_inference_steps")
    return size if steps is None else f"{size}, {steps} steps"


def figure(one: Shown) -> str:
    details = ", ".join(f"{n} {one.told[n]}" for n in ("key", "sample", "seed") if n in one.told)
    size = bucket(one.told)
    return (
        f'<figure data-bucket="{escape(size)}">'
        f'<img src="{thumbnail(one.image)}" alt="" loading="lazy">'
        f"<figcaption>{escape(one.told['prompt'])}<small>{escape(details)}, {escape(size)}</small>"
        "</figcaption></figure>"
    )


def rejects(output: Output) -> Iterator[dict[str, Any]]:
    for name in output.storage.names(REJECTED):
        with output.storage.open(f"{REJECTED}/{name}") as file:
            yield from pq.read_table(file).to_pylist()


def rejects_table(output: Output) -> tuple[str, int]:
    """The table, and how many rows it shows."""
    rows = []
    for row, _ in zip(rejects(output), range(SHOWN_REJECTS), strict=False):
        cells = (
            f"{row['manifest_file']}:{row['row']}",
            row["key"],
            row["error"],
            row["reason"],
            (row["prompt"] or "")[:PROMPT_SHOWN],
        )
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    if not rows:
        return "", 0
    head = "".join(f"<th>{name}</th>" for name in ("row", "key", "error", "reason", "prompt"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section id="rejected"><h2>Rejected</h2>{table}</section>', len(rows)


def page(job: GenerateJob | IngestJob, output: Output, report: RunReport) -> str:
    """The page, with the first pictures of the dataset."""
    pictures = [one for one, _ in zip(shown(output), range(SHOWN), strict=False)]
    buckets = sorted({bucket(one.told) for one in pictures})
    table, listed = rejects_table(output)
    counts = f"{report.done} pictures, {report.rejected} rejected, {report.rows} wanted"
    if len(pictures) < report.done:
        counts += f"; the first {len(pictures)} are shown"
    if listed < report.rejected:
        counts += f"; {listed} of the rejected are listed"
    return Template(PAGE.read_text()).substitute(
        title=escape(name_of(job.output) or "dataset"),
        counts=counts,
        buckets="".join(f"<option>{escape(name)}</option>" for name in buckets),
        figures="\n".join(figure(one) for one in pictures),
        rejects=table,
    )
