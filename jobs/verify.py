"""Reads every published file of an output again and compares it with its receipt; of distillation
targets, looks at each row, and asks the teacher about a sample again.

    python -m jobs.verify OUTPUT [--sums-only] [--sample 64] [--replays 4]

Of targets it leaves `verify.json` and `verify.html` beside the data. Exit status: 0 all is as it
should be; 1 something is not, a line for each; 2 not an output.
"""

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from batch.errors import OutputError, StorageError
from batch.manifest import Manifest
from batch.output import to_json
from batch.storage import Storage
from batch.verify import verify
from flux_engine.errors import EngineError
from jobs import cli

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def verify_targets(storage: Storage, sample: int, replays: int) -> list[str]:
    """What is wrong with the rows and with what the teacher says of them; leaves the report."""
    from batch.errors import ManifestError
    from batch.targets import verification  # with it comes torch
    from batch.targets.verdict import Verdict, page, sheet
    from flux_engine.assembly import engine_of

    dataset = verification.Dataset(storage)
    verdict = Verdict(storage.uri)
    rows = verification.verify_rows(dataset, verdict, sample)
    pictures: list[Tensor] = []
    captions: list[str] = []
    if sample:
        try:
            folder = Manifest(dataset.job.manifest).root
        except ManifestError:
            folder = dataset.job.manifest
        engine = engine_of(dataset.job.engine.model_copy(update={"device": "auto"}))[0]
        pictures, captions = verification.verify_teacher(
            dataset, engine, rows, verdict, folder=folder, replays=replays
        )
    storage.replace("verify.json", to_json(verdict.as_json()))
    shown = sheet(pictures) if pictures else b""
    storage.replace("verify.html", page(verdict, shown, captions).encode())
    for one in verdict.findings:
        state = "pass" if one.passed else "FAIL"
        typer.echo(f"{state}  {one.name}  {json.dumps(one.facts)}", err=True)
    for why in verdict.skipped:
        typer.echo(f"not looked at: {why}", err=True)
    failed = [one for one in verdict.findings if not one.passed]
    return [f"{one.name}: {fault}" for one in failed for fault in one.faults or ("failed",)]


@app.command()
def main(
    output: Annotated[str, typer.Argument(help="A local path or an s3:// address.")],
    sample: Annotated[
        int, typer.Option(help="Rows that the teacher is asked about; 0: none.", min=0)
    ] = 64,
    replays: Annotated[
        int, typer.Option(help="Paths that are walked from beginning to end.", min=0)
    ] = 4,
    *,
    sums_only: Annotated[
        bool, typer.Option("--sums-only", help="Files against their receipts, and no more.")
    ] = False,
) -> None:
    """Find files, rows and answers that are not what was written."""
    from batch.targets.verification import is_targets

    began = time.monotonic()
    try:
        verdict = verify(output)
        faults, seconds = verdict.faults, time.monotonic() - began
        storage = Storage(output)
        if not faults and not sums_only and is_targets(storage):
            cli.start_logging()
            faults = verify_targets(storage, sample, replays)
    except (OutputError, StorageError, EngineError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(cli.REFUSED) from None
    for fault in faults:
        typer.echo(fault, err=True)
    if verdict.unfinished:
        typer.echo(f"{verdict.unfinished} shards are not finished yet", err=True)
    cli.last_line(
        {
            "files": verdict.files,
            "bytes": verdict.bytes,
            "faults": len(faults),
            "unfinished": verdict.unfinished,
            "seconds": round(seconds, 3),
            "mb_per_second": round(verdict.bytes / 1e6 / max(seconds, 1e-9), 1),
        }
    )
    raise typer.Exit(cli.BROKEN if faults else cli.COMPLETE)


if __name__ == "__main__":
    app()
