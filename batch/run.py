"""A job from its manifest to its dataset: plan, skip what is finished, work, report."""

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from batch.actor import ShardWorker
from batch.backlog import Backlog
from batch.card import card, training_card
from batch.display import display
from batch.errors import JobError, RunFailed, StorageDown, StorageError
from batch.growth import awaited, growing
from batch.lane import MakeWorker
from batch.manifest import Manifest
from batch.nodes import alive, blind
from batch.output import REJECTED, RUN, Output, to_json, unseen
from batch.page import page
from batch.parts import PARTS
from batch.pool import Pool
from batch.report import RunReport
from batch.retry import retry_of, turns
from batch.shards import Shard, plan
from batch.target_plan import check_sizes, target_plan
from batch.targets.card import publish_targets
from batch.targets.spent import COST, publish_cost
from batch.telemetry import Telemetry
from schemas.ingest import IngestJob
from schemas.jobs import BatchJob, DistillJob, GenerateJob, Job, lineage_of, row_of

logger = logging.getLogger(__name__)

WRITTEN_S = 5.0  # between two reports of a run that goes on

Stop = Callable[[], bool]


class WorkerFactory:
    """Makes a worker in whichever process it is called; small, so that it travels."""

    def __init__(self, job: Job, roots: tuple[str, ...]) -> None:
        self.job, self.roots = job, roots

    def __call__(self, crumb: Path) -> ShardWorker:
        # with stages comes torch: not in the driver
        from batch.stages.distill import DistillStage
        from batch.stages.generate import GenerateStage
        from batch.stages.ingest import IngestStage

        match self.job:
            case GenerateJob():
                return ShardWorker(self.job, GenerateStage(self.job, self.roots), crumb)
            case DistillJob():
                return ShardWorker(self.job, DistillStage(self.job, self.roots), crumb)
            case IngestJob():
                return ShardWorker(self.job, IngestStage(self.job), crumb)


def checked_plan(job: GenerateJob | DistillJob) -> tuple[Manifest, list[Shard]]:
    """The manifest's shards; ManifestError before anything is started."""
    manifest = Manifest(job.manifest)
    manifest.check(job.passthrough, row_of(job), lineage_of(job))
    if isinstance(job, DistillJob):
        check_sizes(manifest, job)
        return manifest, target_plan(manifest, job)
    return manifest, plan(manifest, job.rows_per_shard, job.recipe())


def run(
    job: Job,
    manifest: Manifest,
    shards: list[Shard],
    start: Callable[[], Stop],
    factory: Callable[[Job, tuple[str, ...]], MakeWorker] = WorkerFactory,
    *,
    retry_rejected: bool = False,
) -> tuple[RunReport, bool]:
    """Work until the dataset is complete or somebody says stop; the report, and whether it is.

    Manifest and shards are those of `checked_plan`. `job` is resolved: its sampling has no open
    fields but the seed and the shift. `start` is called if there is work, starts Ray and answers
    how to ask whether to stop. `factory` makes what travels to the workers.
    """
    output = Output(job.output, job.format)
    output.claim(job.recipe())
    output.enrol(manifest.files)
    output.storage.sweep()
    output.storage.replace(f"{RUN}/job.json", to_json(job.model_dump(mode="json")))

    report, todo = left_to_do(job, output, shards, retry_rejected=retry_rejected)
    if todo:
        stop = start()
        check_nodes(output)
        with growing(job, Backlog(todo).pieces):
            if (share := awaited(job, stop)) is None:
                return report, False
            name = f"{RUN}/reports/{run_name()}.json"
            make = factory(placed(job, share.resources.gpus), (manifest.root, *job.picture_roots))
            pool = Pool(
                make,
                share,
                retries=job.shard_retries,
                stop=stop,
                row_timeout=job.row_timeout,
                proven=output.storage.exists(f"{RUN}/fingerprint.json"),
            )
            watch(pool, todo, report, job, lambda state: write_report(output, name, report, state))
    complete = report.finished == report.rows
    if complete and todo:
        show_all_rejects(output)
    if complete:  # a page of large pictures takes longer than a stopped run has
        publish(job, output, report)
    if complete and isinstance(job, DistillJob) and (todo or not output.storage.exists(COST)):
        publish_cost(job, output, shards)
    return report, complete


def left_to_do(
    job: Job, output: Output, shards: list[Shard], *, retry_rejected: bool
) -> tuple[RunReport, list[Shard]]:
    """What stands in the output, counted, and the shards that are to be made."""
    published = turns(output.finished())
    receipts = output.receipts()
    output.show_rejects((names[-1] for names in published.values()), receipts)
    counts = output.counts({name for names in published.values() for name in names}, receipts)
    report = RunReport(rows=sum(shard.pictures(job.samples_per_row) for shard in shards))
    todo: list[Shard] = []
    for shard in shards:
        names = published.get(shard.name)
        if names is None:
            todo.append(shard)
            continue
        done, rejected = sum(counts[name][0] for name in names), counts[names[-1]][1]
        if retry_rejected and rejected and (again := retry(output, shard, names[-1])):
            todo.append(again)
            rejected -= len(again.only)
        report.done += done
        report.rejected += rejected
        report.skipped += done + rejected
    tidy(output, published)
    return report, todo


def show_all_rejects(output: Output) -> None:
    """Those of shards too whose worker died in between, and which others found finished."""
    names = (names[-1] for names in turns(output.finished()).values())
    output.show_rejects(names, output.receipts())


def retry(output: Output, shard: Shard, last: str) -> Shard | None:
    told = [(row["row"], row["sample"], row["error"]) for row in output.rejects(last)]
    return retry_of(shard, last, told)


def tidy(output: Output, published: dict[str, list[str]]) -> None:
    """Take away what a process should have that was killed: rejects whose rows were tried again,
    and parts of shards that are published."""
    outdated = {f"{name}.parquet" for names in published.values() for name in names[:-1]}
    for name in outdated.intersection(output.storage.names(REJECTED) if outdated else []):
        output.storage.remove(f"{REJECTED}/{name}")
    finished = {name for names in published.values() for name in names}
    for shard in finished.intersection(output.storage.folders(PARTS)):
        output.storage.remove_folder(f"{PARTS}/{shard}")


def check_nodes(output: Output) -> None:
    """JobError if the output is on a disk that some node does not see."""
    if not output.storage.local or len(alive()) < 2:
        return
    name = f"{RUN}/tmp/probe-{uuid.uuid4().hex}.part"
    output.storage.replace(name, b"is it there?")
    blinded = blind(Path(output.storage.path(name)))
    output.storage.remove(name)
    if blinded:
        raise JobError(unseen(output.storage.uri, ", ".join(blinded)))


def placed(job: Job, gpus: int) -> Job:
    """The job with its device decided: a worker that has a GPU must not fall back to a CPU."""
    if not isinstance(job, BatchJob):
        return job
    engine = job.engine.model_copy(update={"device": "cuda" if gpus else "cpu"})
    return job.model_copy(update={"engine": engine})


def watch(
    pool: Pool,
    todo: Iterable[Shard],
    report: RunReport,
    job: Job,
    write: Callable[[str], None],
) -> None:
    """Drive the pool, count its reports and say every few seconds how far it is."""
    write("running")
    written = time.monotonic()
    telemetry = Telemetry(job.output)
    state = "failed"
    with display() as shown:
        try:
            for answer in pool.run(todo):
                if answer is not None:
                    report.add(answer)
                report.lost_workers, report.busy_seconds = pool.lost, pool.busy
                if report.over(job.max_rejected):
                    raise RunFailed(
                        f"{report.rejected} of {report.finished} pictures were rejected, and "
                        f"max_rejected is {job.max_rejected:g}; rejected/ says why"
                    )
                shown.tell(report, pool.underway)
                if time.monotonic() - written >= WRITTEN_S:
                    written = time.monotonic()
                    telemetry.update(report, pool)
                    write("running")
            state = "finished" if report.finished == report.rows else "stopped"
        finally:
            if state == "failed" and pool.stop():
                state = "stopped"  # asked twice
            report.lost_workers, report.busy_seconds = pool.lost, pool.busy
            telemetry.update(report, pool)
            shown.tell(report, last=True)
            write(state)


def write_report(output: Output, name: str, report: RunReport, state: str) -> None:
    """For people to read: that it cannot be written ends no run, for rows may still get through."""
    try:
        output.storage.replace(name, to_json(report.as_json(state)))
    except (OSError, StorageError, StorageDown) as error:
        logger.warning("report not written", extra={"report": name, "why": str(error)})


def publish(job: Job, output: Output, report: RunReport) -> None:
    """The dataset's page to look at and, last, its card: if that is right, so is the page."""
    if isinstance(job, DistillJob):
        publish_targets(job, output, report)
        return
    if isinstance(job, IngestJob):
        text = training_card(job, report).encode()
    else:
        text = card(job, report).encode()
    storage = output.storage
    if storage.exists("README.md") and storage.read("README.md") == text:
        return
    storage.replace("index.html", page(job, output, report).encode())
    storage.replace("README.md", text)


def run_name() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
