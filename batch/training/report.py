"""The page of a run: its curves, pictures, cost, settings and where its rows are from.

One file without outside parts, so that it opens from a disk, a bucket or an attachment.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from batch.page import thumbnail
from batch.storage import name_of
from batch.training.curve import chart
from schemas.training import TrainJob

PAGE = Path(__file__).with_name("training.html")
FILES_SHOWN = 50

Line = Mapping[str, Any]
Shown = tuple[int, str, bytes]  # step, prompt, picture


def page(
    job: TrainJob,
    lines: Sequence[Line],
    lineage: Mapping[str, Any],
    told: Mapping[str, Any],
    pictures: Sequence[Shown],
) -> str:
    """`lines` are those of the metrics, `told` what the last checkpoint says of the run."""
    last = lines[-1] if lines else {}
    loss = last.get("loss")
    counts = [
        f"{last.get('step', 0)} of {lineage['steps']} steps",
        f"{told['seconds']:.0f} s of all workers together",
        f"last loss {loss:.4g}" if loss is not None else "last loss: no number",
    ]
    if told["skipped"]:
        counts.append(f"{told['skipped']} steps left out: NaN or infinity")
    return Template(PAGE.read_text()).substitute(
        title=escape(name_of(job.output_path) or "training"),
        counts=escape("; ".join(counts)),
        losses=chart(losses_of(lines), log=True),
        rates=chart({"learning rate": curve(lines, "rate")}),
        speed=chart({"samples a second": curve(lines, "samples_per_second")}),
        norms=chart({"gradient norm": curve(lines, "grad_norm")}, log=True),
        pictures="\n".join(gallery(pictures)),
        datasets=datasets_table(lineage["datasets"]),
        base=table(
            ("file", "SHA-256"),
            [
                (f"{role}: {file}", digest)
                for role, files in lineage["base"].items()
                for file, digest in files.items()
            ],
        ),
        settings=escape(json.dumps(job.model_dump(mode="json"), indent=2, sort_keys=True)),
    )


def curve(lines: Iterable[Line], name: str) -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def losses_of(lines: Sequence[Line]) -> dict[str, list[tuple[float, float]]]:
    """Of each dataset; of all together where there are several."""
    out: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, loss in line["losses"].items():
            if loss is not None:
                out.setdefault(name, []).append((line["step"], loss))
    return out if len(out) < 2 else {"all": curve(lines, "loss"), **out}


def gallery(pictures: Sequence[Shown]) -> list[str]:
    return [
        f'<figure><img src="{thumbnail(png)}" alt="" loading="lazy"><figcaption>{escape(prompt)}'
        f"<small>step {step}</small></figcaption></figure>"
        for step, prompt, png in sorted(pictures, key=lambda one: (one[1], one[0]))
    ]


def datasets_table(datasets: Iterable[Mapping[str, Any]]) -> str:
    parts = []
    for one in datasets:
        head = (
            ("address", one["address"]),
            ("kind", one["kind"]),
            ("task", one["task"]),
            ("digest", one["digest"]),
            ("rows", f"{one['rows']}, of which {one['rows_used']} are used"),
            ("samples drawn", one["samples"]),
            ("identity", one["identity"] or "none: pictures"),
        )
        files = [(f["file"], f["rows"], f["digest"]) for f in one["files"][:FILES_SHOWN]]
        more = len(one["files"]) - len(files)
        parts.append(
            table(("", "dataset"), head)
            + table(("file", "rows", "digest"), files)
            + (f"<p>and {more} more files, in lineage.json</p>" if more > 0 else "")
        )
    return "\n".join(parts)


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
