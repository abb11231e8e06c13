r"""Prompts into an image dataset.

    python -m jobs.generate --config jobs/recipes/demo.yaml
    ray job submit --working-dir . -- python -m jobs.generate --config jobs/recipes/demo.yaml \
        --set output=/where/all/nodes/see/it

Exit status: 0 the dataset is complete, rejected rows counted; 2 the job or the manifest is wrong
and nothing was started; 75 stopped by a signal, a rerun goes on; 1 anything else, too many
rejected rows (`max_rejected`) among it.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import ray
import typer

from batch.errors import BatchError, JobError, ManifestError, OutputError, StorageError
from batch.manifest import Manifest
from batch.output import Output
from batch.preview import preview
from batch.run import checked_plan, run
from batch.shards import Shard
from flux_engine.defaults import DEFAULTS, folder_defaults, model_folder
from flux_engine.errors import CheckpointError, EngineError, SettingError
from flux_engine.weights.folder import folder_sources
from flux_engine.weights.source import ModelSource, fetch
from jobs import cli
from schemas.base import SchemaError
from schemas.jobs import GenerateJob
from schemas.sampling import ModelDefaults, resolve

logger = logging.getLogger(__name__)


def resolved(job: GenerateJob) -> GenerateJob:
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


def standing(job: GenerateJob, manifest: Manifest, shards: list[Shard]) -> str:
    """What of these shards is in the output; OutputError if a run would be refused there."""
    output = Output(job.output, job.format)
    output.check(job.recipe(), manifest.files)
    finished = output.finished()
    there = sum(shard.name in finished for shard in shards)
    return f"{there} of {len(shards)} shards are finished in {job.output}"


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
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try rows again that earlier runs rejected.")
    ] = False,
) -> None:
    """Turn a Parquet manifest of prompts into an image dataset."""
    cli.start_logging()
    stop = cli.StopSignal()
    try:
        job = resolved(cli.load(GenerateJob, config, set_ or []))
        cli.check_place(job.output)
        manifest, shards = checked_plan(job)
        if dry_run:
            typer.echo(job.model_dump_json(indent=2))
            seen = preview(job, manifest, shards)
            typer.echo("\n".join(seen.lines()))
            from batch.forecast import forecast  # with it comes torch: a run's driver has no use

            typer.echo("\n".join(forecast(job, seen.kinds.values())))
            typer.echo(standing(job, manifest, shards))
            return
        code = work(job, manifest, shards, stop, retry_rejected=retry_rejected)
    except (SchemaError, ManifestError, OutputError, StorageError, EngineError) as error:
        logger.error(str(error))  # noqa: TRY400  the message is for the user
        code = cli.REFUSED
    except cli.Stopped as error:
        logger.warning("stopped", extra={"signal": str(error)})
        code = cli.STOPPED
    raise typer.Exit(code)


def work(
    job: GenerateJob,
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


if __name__ == "__main__":
    app()
