r"""Prompts, or pictures with captions, into distillation targets.

    python -m jobs.distill --config jobs/recipes/distill.yaml
    ray job submit --working-dir . -- python -m jobs.distill --config jobs/recipes/distill.yaml \
        --set output=/where/all/nodes/see/it

Exit status as of `jobs.generate`.
"""

import typer

from batch.preview import Preview
from batch.shards import Shard
from jobs import work
from schemas.jobs import DistillJob

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def foresee(job: DistillJob, seen: Preview, shards: list[Shard]) -> list[str]:
    """Bytes and card seconds, and what the cards would be asked."""
    from batch.forecast import forecast  # with it comes torch: a run's driver has no use
    from batch.targets.cost import cost_of

    return [*cost_of(job, shards).lines(), *forecast(job, seen.kinds.values())]


@app.command()
def main(
    config: work.Config,
    set_: work.Changes = None,
    *,
    dry_run: work.DryRun = False,
    retry_rejected: work.RetryRejected = False,
) -> None:
    """Turn a Parquet manifest into what a student needs of its teacher."""
    code = work.command(
        DistillJob, config, set_ or [], foresee, dry_run=dry_run, retry_rejected=retry_rejected
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
