"""What every job that maps over a manifest does from its command line."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import ray
import typer

from batch.errors import BatchError, JobError, ManifestError, OutputError, StorageError
from batch.manifest import Manifest
from batch.output import Output
from batch.preview import Preview, preview
from batch.run import checked_plan, run
from batch.shards import Shard
from flux_engine.defaults import DEFAULTS, folder_defaults, model_folder
from flux_engine.errors import CheckpointError, EngineError, SettingError
from flux_engine.weights.folder import folder_sources
from flux_engine.weights.source import ModelSource, fetch
from jobs import cli
from schemas.base import SchemaError
from schemas.jobs import DistillJob, GenerateJob, Job
from schemas.sampling import ModelDefaults, resolve

logger = logging.getLogger(__name__)

Config = Annotated[Path, typer.Option(help="The job, a YAML file.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value of it: a.b=value.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved job and the plan, and stop.")
]
RetryRejected = Annotated[
    bool, typer.Option("--retry-rejected", help="Try rows again that earlier runs rejected.")
]
J = TypeVar("J", GenerateJob, DistillJob)
Foresee = Callable[[J, Preview, list[Shard]], list[str]]


def resolved(job: J) -> J:
    """The job with every sampling value that its model's folder or publication decides.

    Also finds out that a folder or a local file is not there. Torch is not needed for it.
    """
    model = job.engine.model
    values = {}
    if isinstance(model, str):
        folder_sources(model_folder(model))
        values = folder_defaults(model_folder(model))
    else:
        for entry in model:
            if entry.path is not None:
                fetch(ModelSource(entry.path))
    for lora in job.sampling.loras:
        if lora.path is not None:
            fetch(ModelSource(lora.path))
    defaults = ModelDefaults.parse(values, f"{model}/{DEFAULTS}")
    return job.model_copy(update={"sampling": resolve(job.sampling, defaults)})


def standing(job: Job, manifest: Manifest, shards: list[Shard]) -> str:
    """What of these shards is in the output; OutputError if a run would be refused there."""
    output = Output(job.output, job.format)
    output.check(job.recipe, manifest.files)
    finished = output.finished()
    there = sum(shard.name in finished for shard in shards)
    return f"{there} of {len(shards)} shards are finished in {job.output}"


def command(
    schema: type[J],
    config: Path,
    changes: Sequence[str],
    foresee: Foresee[J],
    *,
    dry_run: bool,
    retry_rejected: bool,
) -> int:
    """The job in `config`, or with `dry_run` what it would do; the exit status. `foresee` says
    what it would cost."""

    def attempt(stop: cli.StopSignal) -> int:
        job: J = resolved(cli.load(schema, config, changes))
        cli.check_place(job.output)
        manifest: Manifest
        shards: list[Shard]
        manifest, shards = checked_plan(job)
        if dry_run:
            typer.echo(job.model_dump_json(indent=2))
            seen: Preview = preview(job, manifest, shards)
            lines = [*seen.lines(), *foresee(job, seen, shards)]
            typer.echo("\n".join(lines))
            typer.echo(standing(job, manifest, shards))
            return cli.COMPLETE
        return work(job, manifest, shards, stop, retry_rejected=retry_rejected)

    return guarded(attempt)


def guarded(attempt: Callable[[cli.StopSignal], int]) -> int:
    """The exit status of a command; what is wrong with a job is told before anything is started."""
    cli.start_logging()
    stop = cli.StopSignal()
    try:
        return attempt(stop)
    except (SchemaError, ManifestError, OutputError, JobError, StorageError, EngineError) as error:
        logger.error(str(error))  # noqa: TRY400  the message is for the user
        return cli.REFUSED
    except cli.Stopped as error:
        logger.warning("stopped", extra={"signal": str(error)})
        return cli.STOPPED


def work(
    job: Job,
    manifest: Manifest,
    shards: list[Shard],
    stop: cli.StopSignal,
    *,
    retry_rejected: bool,
) -> int:
    """Run the job on Ray and print the last line; the exit status."""
    try:
        report, complete = run(
            job,
            manifest,
            shards,
            partial(cli.start_ray, stop),
            retry_rejected=retry_rejected,
        )
    except (JobError, OutputError, CheckpointError, SettingError) as error:
        logger.error(str(error))  # noqa: TRY400
        return cli.REFUSED
    except (BatchError, EngineError, OSError) as error:
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
