r"""Datasets into a LoRA, or into a transformer that is trained as a whole.

    python -m jobs.train --config jobs/recipes/train-lora.yaml [--dry-run]
    ray job submit --working-dir . -- python -m jobs.train --config jobs/recipes/train-lora.yaml \
        --set output_path=/where/all/nodes/see/it

A run that was stopped or fell goes on where its last checkpoint is. Exit status: 0 finished; 2
refused, nothing was begun; 75 stopped, the same command goes on; 1 broken.
"""

import logging
from functools import partial

import ray
import typer

from batch.errors import (
    BatchError,
    JobError,
    ManifestError,
    OutputError,
    StorageError,
    TargetsError,
)
from batch.storage import Storage
from batch.targets.identity import IdentityError
from batch.training.estimate import foreseen
from batch.training.look import checked
from batch.training.metrics import read_metrics
from batch.training.recipe import resolved
from batch.training.run import standing, train
from flux_engine.errors import CheckpointError, EngineError, SettingError, SourceError
from jobs import cli, work
from schemas.base import SchemaError
from schemas.training import TrainJob

logger = logging.getLogger(__name__)

REFUSED = (
    SchemaError, JobError, ManifestError, OutputError, StorageError, TargetsError, IdentityError,
    CheckpointError, SettingError, SourceError,
)  # fmt: skip

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(config: work.Config, set_: work.Changes = None, *, dry_run: work.DryRun = False) -> None:
    """Train on datasets of targets or of pictures."""
    cli.start_logging()
    stop = cli.StopSignal()
    try:
        raise typer.Exit(command(cli.load(TrainJob, config, set_ or []), stop, dry_run=dry_run))
    except REFUSED as error:
        logger.error(str(error))  # noqa: TRY400  the message is for the user
        raise typer.Exit(cli.REFUSED) from None
    except (BatchError, EngineError, OSError) as error:
        logger.error(str(error))  # noqa: TRY400
        raise typer.Exit(cli.BROKEN) from None
    except cli.Stopped as error:
        logger.warning("stopped", extra={"signal": str(error)})
        raise typer.Exit(cli.STOPPED) from None
    finally:
        ray.shutdown()


def command(job: TrainJob, stop: cli.StopSignal, *, dry_run: bool) -> int:
    """The job, or with `dry_run` what it would do; the exit status."""
    cli.check_place(job.output_path)
    job = resolved(job)
    try:
        curriculum = checked(job)
    except (BatchError, EngineError) as error:
        logger.error(str(error))  # noqa: TRY400
        return cli.REFUSED
    if dry_run:
        typer.echo(job.model_dump_json(indent=2))
        typer.echo("\n".join(foreseen(job, curriculum)))
        typer.echo(standing(job, curriculum))
        return cli.COMPLETE
    report = train(job, curriculum, partial(cli.start_ray, stop), stop)
    lines = read_metrics(Storage(job.output_path))
    cli.last_line(
        {
            "step": report.step,
            "steps": report.steps,
            "resumed": report.resumed,
            "loss": lines[-1]["loss"] if lines else None,
            "output": job.output_path,
        }
    )
    return cli.COMPLETE if report.complete else cli.STOPPED


if __name__ == "__main__":
    app()
