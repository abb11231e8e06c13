r"""Prompts, or pictures with captions, into distillation targets.

    python -m jobs.distill --config jobs/recipes/distill.yaml
    ray job submit --working-dir . -- python -m jobs.distill --config jobs/recipes/distill.yaml \
        --set output=/where/all/nodes/see/it

Exit status as of `jobs.generate`.
"""

from pathlib import Path
from typing import Annotated

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
    """Turn a Parquet manifest into what a student needs of its teacher."""
    code = work.command(
        DistillJob, config, set_ or [], foresee, dry_run=dry_run, retry_rejected=retry_rejected
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
