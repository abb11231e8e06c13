"""Reads every published file of an output again and compares it with its receipt.

    python -m jobs.verify OUTPUT

Exit status: 0 all is as it was written; 1 something is not, a line for each; 2 not an output.
"""

import time
from typing import Annotated

import typer

from batch.errors import OutputError, StorageError
from batch.verify import verify
from jobs import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(output: Annotated[str, typer.Argument(help="A local path or an s3:// address.")]) -> None:
    """Find files that are not what was written."""
    began = time.monotonic()
    try:
        verdict = verify(output)
    except (OutputError, StorageError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(cli.REFUSED) from None
    seconds = time.monotonic() - began
    for fault in verdict.faults:
        typer.echo(fault, err=True)
    if verdict.unfinished:
        typer.echo(f"{verdict.unfinished} shards are not finished yet", err=True)
    cli.last_line(
        {
            "files": verdict.files,
            "bytes": verdict.bytes,
            "faults": len(verdict.faults),
            "unfinished": verdict.unfinished,
            "seconds": round(seconds, 3),
            "mb_per_second": round(verdict.bytes / 1e6 / max(seconds, 1e-9), 1),
        }
    )
    raise typer.Exit(cli.BROKEN if verdict.faults else cli.COMPLETE)


if __name__ == "__main__":
    app()
