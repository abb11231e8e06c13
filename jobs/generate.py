r"""Prompts into an image dataset.

    python -m jobs.generate --config jobs/recipes/demo.yaml
    ray job submit --working-dir . -- python -m jobs.generate --config jobs/recipes/demo.yaml \
        --set output=/where/all/nodes/see/it

Exit status: 0 the dataset is complete, rejected rows counted; 2 the job or the manifest is wrong
and nothing was started; 75 stopped by a signal, a rerun goes on; 1 anything else, too many
rejected rows (`max_rejected`) among it.
"""

import typer

from batch.preview import Preview
from batch.shards import Shard
from jobs import work
from schemas.jobs import GenerateJob

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def foresee(job: GenerateJob, seen: Preview, shards: list[Shard]) -> list[str]:  # noqa: ARG001
    """What the cards would be asked."""
    from batch.forecast import forecast  # with it comes torch: a run's driver has no use

    return forecast(job, seen.kinds.values())


@app.command()
def main(
    config: work.Config,
    set_: work.Changes = None,
    *,
    dry_run: work.DryRun = False,
    retry_rejected: work.RetryRejected = False,
) -> None:
    """Turn a Parquet manifest of prompts into an image dataset."""
    code = work.command(
        GenerateJob, config, set_ or [], foresee, dry_run=dry_run, retry_rejected=retry_rejected
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
