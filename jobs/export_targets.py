"""Targets into the form of another trainer.

    python -m jobs.export_targets DATASET OUT --format fastgen|dmd2|fastvideo|diffsynth
        [--set rows_per_tar=500]...

DATASET is a folder or an s3:// address, OUT a new local folder, which appears whole or not at all.
Exit status: 0; 2 the format cannot carry the dataset, or a row is not as it was written.
"""

from pathlib import Path
from typing import Annotated, Any, assert_never

import typer

from batch.errors import BatchError
from batch.targets.identity import IdentityError
from batch.targets.noise import NoiseError
from batch.targets.text import TextError
from flux_engine.errors import EngineError
from jobs import cli
from schemas.base import SchemaError
from schemas.exports import (
    DiffSynthExport,
    Dmd2Export,
    Export,
    ExportJob,
    FastGenExport,
    FastVideoExport,
)

FAULTS = (SchemaError, BatchError, EngineError, IdentityError, NoiseError, TextError)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def written(dataset: str, out: Path, told: Export) -> int:
    """Export; how many rows there were."""
    from batch.targets.export import diffsynth, dmd2, fastgen, fastvideo  # with them comes torch

    match told:
        case FastGenExport():
            return fastgen.export(dataset, out, told)
        case Dmd2Export():
            return dmd2.export(dataset, out, told)
        case FastVideoExport():
            return fastvideo.export(dataset, out, told)
        case DiffSynthExport():
            return diffsynth.export(dataset, out, told)
        case _:
            assert_never(told)


@app.command()
def main(
    dataset: Annotated[str, typer.Argument(help="A local folder or an s3:// address.")],
    out: Annotated[str, typer.Argument(help="A local folder that is not there yet.")],
    form: Annotated[str, typer.Option("--format", help="fastgen, dmd2, fastvideo or diffsynth.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the format: name=value.")
    ] = None,
) -> None:
    """Write targets for another trainer."""
    cli.start_logging()
    values: dict[str, Any] = {"format": form}
    try:
        for change in set_ or []:
            cli.set_value(values, change)
        if "://" in out:
            raise SchemaError(f"{out}: exports are written to local folders")
        told = ExportJob.parse({"export": values}).export
        rows = written(dataset, Path(out), told)
    except FAULTS as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(cli.REFUSED) from None
    cli.last_line({"rows": rows, "format": told.format, "output": out})


if __name__ == "__main__":
    app()
