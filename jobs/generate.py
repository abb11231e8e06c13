r"""Prompts into an image dataset.

    python -m jobs.generate --config jobs/recipes/demo.yaml
    ray job submit --working-dir . -- python -m jobs.generate --config jobs/recipes/demo.yaml \
        --set output=/where/all/nodes/see/it

Exit status: 0 the dataset is complete, rejected rows counted; 2 the job or the manifest is wrong
and nothing was started; 75 stopped by a signal, a rerun goes on; 1 anything else, too many
rejected rows (`max_rejected`) among it.
"""

from pathlib import Path
from typing import Annotated

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
    code = work.command(
        GenerateJob, config, set_ or [], foresee, dry_run=dry_run, retry_rejected=retry_rejected
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
