r"""Training material into training shards.

    python -m jobs.ingest --config jobs/recipes/ingest.yaml
    ray job submit --working-dir . -- python -m jobs.ingest --config jobs/recipes/ingest.yaml \
        --set output=/where/all/nodes/see/it

Exit status as of `jobs.generate`.
"""

from pathlib import Path

import typer

from batch.ingest.plan import ingest_plan, survey
from jobs import cli, work
from schemas.base import SchemaError
from schemas.ingest import IngestJob

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def asked(config: Path, changes: list[str]) -> IngestJob:
    """The job as its file has it; SchemaError for one that says what only its source can say."""
    job = cli.load(IngestJob, config, changes)
    if job.found is not None:
        raise SchemaError(f"{config}: found: is filled in from the source, and cannot be given")
    cli.check_place(job.output)
    return job


@app.command()
def main(
    config: work.Config,
    set_: work.Changes = None,
    *,
    dry_run: work.DryRun = False,
    retry_rejected: work.RetryRejected = False,
) -> None:
    """Turn pictures with captions into training shards."""

    def attempt(stop: cli.StopSignal) -> int:
        job = asked(config, set_ or [])
        if dry_run:
            seen = survey(job)
            typer.echo(seen.job.model_dump_json(indent=2))
            typer.echo("\n".join(seen.lines()))
            return cli.COMPLETE
        job, manifest, shards = ingest_plan(job)
        return work.work(job, manifest, shards, stop, retry_rejected=retry_rejected)

    raise typer.Exit(work.guarded(attempt))


if __name__ == "__main__":
    app()
