"""Says what an output holds: counts, rejects by reason, sizes, throughput, samples.

    python -m jobs.inspect OUTPUT [--samples 5] [--json]

Exit status: 0; 2 not an output.
"""

import json
import time
from typing import Annotated

import typer
from rich.console import Console

from batch.errors import OutputError, StorageError
from batch.storage import name_of
from batch.survey import Survey, survey
from jobs import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def show(told: Survey, title: str, console: Console) -> None:
    """Tables; on a terminal with colours, in a file without."""
    counts = cli.table(title, "", "")
    for name, value in (
        ("rows planned", told.planned_rows),
        ("pictures", told.done),
        ("rejected", told.rejected),
        ("shards", told.shards),
        ("size of data", f"{told.data_bytes / 2**20:.1f} MiB"),
        ("a picture", f"{told.data_bytes / max(told.done, 1) / 2**10:.1f} KiB"),
        *((f"of {size}", count) for size, count in told.sizes.most_common()),
    ):
        counts.add_row(name, str(value))
    console.print(counts)
    if told.reasons:
        reasons = cli.table("rejected", "rows", "error", "for example")
        for error, count in told.reasons.most_common():
            reasons.add_row(str(count), error, told.examples[error])
        console.print(reasons)
    if told.runs:
        runs = cli.table("runs", "began", "state", "rows", "seconds", "rows/s", "card s", "lost")
        for run in told.runs:
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(run["started"]))
            figures = ("rows", "seconds", "rows_per_second", "card_seconds", "lost_workers")
            runs.add_row(began, run["state"], *(str(run[name]) for name in figures))
        console.print(runs)
    if told.samples:
        samples = cli.table("samples", "key", "sample", "seed", "prompt")
        for one in told.samples:
            samples.add_row(one["key"], str(one["sample"]), str(one["seed"]), one["prompt"])
        console.print(samples)


@app.command()
def main(
    output: Annotated[str, typer.Argument(help="A local path or an s3:// address.")],
    samples: Annotated[int, typer.Option(help="How many pictures to tell of.", min=0)] = 5,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell what an output holds."""
    try:
        told = survey(output, samples)
    except (OutputError, StorageError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(cli.REFUSED) from None
    if as_json:
        typer.echo(json.dumps(told.as_json()))
    else:
        show(told, name_of(output), Console(markup=False, highlight=False, soft_wrap=True))


if __name__ == "__main__":
    app()
