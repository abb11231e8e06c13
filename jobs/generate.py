"""Prompts into an image dataset.

    python -m jobs.generate --config jobs/recipes/demo.yaml
    ray job submit --working-dir . -- python -m jobs.generate --config jobs/recipes/demo.yaml

Exit status: 0 the dataset is complete, rejected rows counted; 2 the job or the manifest is wrong
and nothing was started; 75 stopped by a signal, a rerun goes on; 1 anything else.
"""

import logging
from pathlib import Path
from typing import Annotated

import ray
import typer

from batch.errors import BatchError, ManifestError, OutputError
from batch.preview import preview
from batch.run import checked_plan, run
from flux_engine.assembly import engine_defaults
from flux_engine.errors import EngineError
from jobs import cli
from schemas.base import SchemaError
from schemas.jobs import GenerateJob
from schemas.sampling import ModelDefaults, resolve

logger = logging.getLogger(__name__)


def resolved(job: GenerateJob) -> GenerateJob:
    """The job with every sampling value that its model's folder or publication decides."""
    defaults = ModelDefaults.parse(engine_defaults(job.engine), f"defaults of {job.engine.model}")
    return job.model_copy(update={"sampling": resolve(job.sampling, defaults)})


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="The job, a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of it: a.b=value.")
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved job and the plan, and stop.")
    ] = False,
) -> None:
    """Turn a Parquet manifest of prompts into an image dataset."""
    cli.start_logging()
    try:
        job = resolved(cli.load(GenerateJob, config, set_ or []))
        manifest, shards = checked_plan(job)
    except (SchemaError, ManifestError, EngineError) as error:
        logger.error(str(error))  # noqa: TRY400  the message is for the user
        raise typer.Exit(cli.REFUSED) from None
    if dry_run:
        typer.echo(job.model_dump_json(indent=2))
        typer.echo("\n".join(preview(job, manifest, shards).lines()))
        return
    raise typer.Exit(work(job))


def work(job: GenerateJob) -> int:
    """Run the job on Ray and print the last line; the exit status."""
    try:
        report, complete = run(job, cli.start_ray)
    except OutputError as error:
        logger.error(str(error))  # noqa: TRY400
        return cli.REFUSED
    except (BatchError, EngineError) as error:
        logger.error(str(error))  # noqa: TRY400
        return cli.BROKEN
    finally:
        ray.shutdown()
    cli.last_line(
        {
            "rows": report.rows,
            "done": report.done,
            "rejected": report.rejected,
            "skipped": report.skipped,
            "output": job.output,
        }
    )
    return cli.COMPLETE if complete else cli.STOPPED


if __name__ == "__main__":
    app()
