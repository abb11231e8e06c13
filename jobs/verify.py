"""Reads every published file of an output again and compares it with its receipt; of distillation
targets, looks at each row, and asks the teacher about a sample again.

    python -m jobs.verify OUTPUT [--sums-only] [--sample 64] [--replays 4]

Of targets it leaves `verify.json` and `verify.html` beside the data (with `--sums-only`: only where
something is wrong). Exit status: 0 all is as it should be; 1 something is not, a line for each; 2
not an output.
"""

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer
from pydantic import ValidationError

from batch.errors import BatchError, ManifestError, OutputError, StorageError
from batch.manifest import Manifest
from batch.output import to_json
from batch.storage import Storage
from batch.verify import Verdict, verify
from flux_engine.errors import EngineError
from jobs import cli

if TYPE_CHECKING:
    from torch import Tensor

    from batch.targets.verdict import Verdict as TargetVerdict

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def verify_targets(storage: Storage, files: Verdict, sample: int, replays: int) -> list[str]:
    """What is wrong with the rows and with what the teacher says of them; leaves the report,
    whatever comes up."""
    from batch.targets import verdict as targets  # with it comes torch

    verdict = targets.Verdict(storage.uri)
    shown = Shown()
    told = {"files": files.files, "bytes": files.bytes, "faults": len(files.faults)}
    verdict.findings.append(targets.Finding("files", not files.faults, told, tuple(files.faults)))
    if files.faults:
        verdict.skipped.append("rows and teacher: files are not what was written")
    else:
        try:
            look_at_rows(storage, verdict, shown, sample, replays)
        except (OutputError, StorageError):
            raise
        except (BatchError, EngineError, pa.ArrowException, ValidationError) as error:
            why = f"{type(error).__name__}: {error}"
            verdict.findings.append(
                targets.Finding("the rest could not be looked at", False, {}, (why,))
            )
    storage.replace("verify.json", to_json(verdict.as_json()))
    picture = targets.sheet(shown.pictures) if shown.pictures else b""
    storage.replace("verify.html", targets.page(verdict, picture, shown.captions).encode())
    for one in verdict.findings:
        state = "pass" if one.passed else "FAIL"
        typer.echo(f"{state}  {one.name}  {json.dumps(one.facts)}", err=True)
    for why in verdict.skipped:
        typer.echo(f"not looked at: {why}", err=True)
    failed = [one for one in verdict.findings if not one.passed and one.name != "files"]
    return [f"{one.name}: {fault}" for one in failed for fault in one.faults or ("failed",)]


@dataclass
class Shown:
    """The contact sheet's pictures and their captions."""

    pictures: "list[Tensor]" = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


def look_at_rows(
    storage: Storage, verdict: "TargetVerdict", shown: Shown, sample: int, replays: int
) -> None:
    from batch.targets import verification
    from flux_engine.assembly import engine_of

    dataset = verification.Dataset(storage)
    rows = verification.verify_rows(dataset, verdict, sample)
    if not sample:
        return
    try:
        folder = Manifest(dataset.job.manifest).root
    except ManifestError:
        folder = dataset.job.manifest
    engine = engine_of(dataset.job.engine.model_copy(update={"device": "auto"}))[0]
    shown.pictures, shown.captions = verification.verify_teacher(
        dataset, engine, rows, verdict, folder=folder, replays=replays
    )


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
        if is_targets(storage) and (faults or not sums_only):
            cli.start_logging()
            faults = [*faults, *verify_targets(storage, verdict, sample, replays)]
    except (OutputError, StorageError) as error:
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
