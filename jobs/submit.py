"""Hands a job to a cluster's job server, once.

    python -m jobs.submit --config job.yaml [--tick 2026-11-24] [--address URL] [--wait]

The submission id is made of the job and the manifest's files (and the tick, if there is one), so
that submitting again what waits, runs or has succeeded changes nothing; what failed or was stopped
is submitted as the next attempt. Exit status: 0 submitted or there already; 2 refused, nothing was
submitted; with --wait that of the job: 0, 2, 75 or 1.
"""

import asyncio
import logging
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from batch.errors import JobError, ManifestError
from batch.manifest import Manifest
from batch.shards import digest
from batch.storage import name_of
from jobs import cli
from schemas.base import SchemaError
from schemas.ingest import HubSource, IngestJob
from schemas.jobs import DistillJob, Job, lineage_of, row_of
from schemas.training import TrainJob

logger = logging.getLogger(__name__)

# time for a stopped job to keep what is finished; Ray's own is 3 s
ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
UNDER_WAY = {JobStatus.PENDING, JobStatus.RUNNING}
TOKEN = (
    "if the cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or "
    "RAY_AUTH_TOKEN_PATH, or have it in ~/.ray/auth_token"
)


class Server(Protocol):
    """As much of Ray's `JobSubmissionClient` as is needed."""

    def list_jobs(self) -> list[Any]: ...

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]
    ) -> str: ...


@dataclass(frozen=True)
class Submission:
    """What is to be run, and under which name. `seen`: whether the name knows the manifest's files;
    if not, a job that has succeeded may have new rows to do."""

    name: str
    entrypoint: str
    seen: bool

    def hand_in(self, server: Server) -> tuple[str, JobStatus, bool]:
        """The id it has on the server, its state, and whether it was we who submitted it."""
        known = states(server)
        for attempt in count(1):
            name = self.name if attempt == 1 else f"{self.name}-{attempt}"
            state = known.get(name)
            if state is None:
                return self._submit(server, name)
            if state in UNDER_WAY or (state == JobStatus.SUCCEEDED and self.seen):
                return name, state, False
        raise AssertionError("unreachable")

    def _submit(self, server: Server, name: str) -> tuple[str, JobStatus, bool]:
        environment = {"working_dir": ".", "env_vars": dict(ENVIRONMENT)}
        try:
            server.submit_job(
                entrypoint=self.entrypoint, submission_id=name, runtime_env=environment
            )
        except RuntimeError as error:
            if (state := states(server).get(name)) is None:
                raise JobError(one_line(error)) from None
            return name, state, False  # somebody else was faster
        return name, JobStatus.PENDING, True


def states(server: Server) -> Mapping[str, JobStatus]:
    """The state of each submission that the server knows."""
    return {job.submission_id: job.status for job in server.list_jobs() if job.submission_id}


def submission_of(job: Job | TrainJob, config: Path, changes: list[str], tick: str) -> Submission:
    """SchemaError or ManifestError if the job cannot run from a copy of this folder."""
    here = Path.cwd()
    place = config.resolve()
    if not place.is_relative_to(here):
        raise SchemaError(f"{config}: lies outside {here}, the folder that travels to the cluster")
    output = job.output_path if isinstance(job, TrainJob) else job.output
    if not absolute(output):
        raise SchemaError(
            f"output {output}: is relative, and the job runs in a copy of this folder; give an "
            "absolute path that every node sees, or an s3:// address"
        )
    if isinstance(job, IngestJob):
        check_source(job, here)
    elif isinstance(job, TrainJob):
        check_datasets(job, here)
    elif not absolute(job.manifest) and not Path(job.manifest).resolve().is_relative_to(here):
        raise SchemaError(f"manifest {job.manifest}: lies outside {here}; give an absolute path")
    files = manifest_files(job)
    told = job.asked() if isinstance(job, TrainJob) else job.recipe()
    identity = digest([told, rows_of(job), output, files])[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", name_of(output).lower()).strip("-")[:40]
    parts = ["fluxmill", slug, identity, re.sub(r"[^A-Za-z0-9]+", "-", tick).strip("-")]
    modules = {DistillJob: "jobs.distill", IngestJob: "jobs.ingest", TrainJob: "jobs.train"}
    module = modules.get(type(job), "jobs.generate")
    words = ["python", "-m", module, "--config", str(place.relative_to(here))]
    for change in changes:
        words += ["--set", change]
    name = "-".join(part for part in parts if part)
    # what a training job learns from is in its output's recipe: with other rows it would be refused
    seen = bool(tick) or files is not None or isinstance(job, TrainJob)
    return Submission(name, shlex.join(words), seen=seen)


def rows_of(job: Job | TrainJob) -> Any:
    """Where a job's rows are."""
    if isinstance(job, TrainJob):
        return [dataset.path for dataset in job.datasets]
    return job.source.model_dump() if isinstance(job, IngestJob) else job.manifest


def check_datasets(job: TrainJob, here: Path) -> None:
    """SchemaError for a relative path that leads out of the folder that travels."""
    for dataset in job.datasets:
        if not absolute(dataset.path) and not Path(dataset.path).resolve().is_relative_to(here):
            raise SchemaError(f"dataset {dataset.path}: lies outside {here}; give an absolute path")


def check_source(job: IngestJob, here: Path) -> None:
    """SchemaError for a relative path that leads out of the folder that travels."""
    if isinstance(job.source, HubSource):
        return
    for name in ("path", "dataset_base_path", "dataset_metadata_path"):
        place = getattr(job.source, name, None)
        if place and not absolute(place) and not Path(place).resolve().is_relative_to(here):
            raise SchemaError(f"source.{name} {place}: lies outside {here}; give an absolute path")


def absolute(address: str) -> bool:
    return "://" in address or Path(address).is_absolute()


def manifest_files(job: Job | TrainJob) -> list[list[Any]] | None:
    """Name, size and footer of each file, checked; None if only the cluster sees the manifest."""
    if isinstance(job, IngestJob | TrainJob):
        return None  # what there is, is found out where the job runs
    if not seen_here(job.manifest):
        logger.info("manifest is not on this machine: not checked", extra={"at": job.manifest})
        return None
    manifest = Manifest(job.manifest)
    manifest.check(job.passthrough, row_of(job), lineage_of(job))
    return [[file.name, file.size, file.footer] for file in manifest.files]


def seen_here(manifest: str) -> bool:
    """Whether this machine has the folder that an absolute local path leads into."""
    path = Path(manifest.partition("*")[0])
    return "://" in manifest or not path.is_absolute() or path.exists() or path.parent.exists()


def connected(address: str | None) -> JobSubmissionClient:
    """JobError if nobody answers there, or does not know us."""
    try:
        return JobSubmissionClient(address)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"no job server: {one_line(error)} ({TOKEN})") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


async def follow(client: JobSubmissionClient, name: str) -> None:
    """Show the job's log until it ends."""
    async for text in client.tail_job_logs(name):
        typer.echo(text, nl=False, err=True)


def outcome(client: JobSubmissionClient, name: str) -> tuple[JobStatus, int]:
    """The job's end and the exit status that says so."""
    info = client.get_job_info(name)
    status = JobStatus(info.status)
    if status == JobStatus.SUCCEEDED:
        return status, cli.COMPLETE
    if status == JobStatus.STOPPED or info.driver_exit_code == cli.STOPPED:
        return status, cli.STOPPED
    return status, cli.REFUSED if info.driver_exit_code == cli.REFUSED else cli.BROKEN


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="The job, a YAML file in this folder.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of it: a.b=value.")
    ] = None,
    tick: Annotated[
        str, typer.Option(help="Names one turn of a schedule; it is submitted once.")
    ] = "",
    address: Annotated[
        str | None, typer.Option(help="The job server; else RAY_API_SERVER_ADDRESS.")
    ] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Show the log, and end as it does.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and stop.")
    ] = False,
) -> None:
    """Submit a job to a Ray cluster unless it is there."""
    cli.start_logging()
    try:
        job = cli.load_job(config, set_ or [])
        submission = submission_of(job, config, set_ or [], tick)
        if dry_run:
            cli.last_line({"submission_id": submission.name, "entrypoint": submission.entrypoint})
            return
        client = connected(address)
        name, state, ours = submission.hand_in(client)
    except (SchemaError, ManifestError, JobError) as error:
        logger.error(str(error))  # noqa: TRY400  the message is for the user
        raise typer.Exit(cli.REFUSED) from None
    code = cli.COMPLETE
    if wait:
        asyncio.run(follow(client, name))
        state, code = outcome(client, name)
    cli.last_line({"submission_id": name, "state": state.value, "submitted": ours})
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
