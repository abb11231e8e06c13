"""A job from its manifest to its dataset: plan, skip what is finished, work, report."""

import logging
import os
import time
import uuid
from collections.abc import Callable

from batch.actor import ShardWorker
from batch.card import card
from batch.manifest import Manifest
from batch.output import RUN, Output, to_json
from batch.page import page
from batch.pool import MakeWorker, Pool, cluster_share
from batch.report import RunReport
from batch.shards import Shard, count_rows, plan
from schemas.jobs import GenerateJob

logger = logging.getLogger(__name__)

PROGRESS_S = 5.0

Stop = Callable[[], bool]


class WorkerFactory:
    """Makes a worker in whichever process it is called; small, so that it travels."""

    def __init__(self, job: GenerateJob, roots: tuple[str, ...]) -> None:
        self.job, self.roots = job, roots

    def __call__(self) -> ShardWorker:
        from batch.stages.generate import GenerateStage  # with it comes torch: not in the driver

        return ShardWorker(self.job, GenerateStage(self.job, self.roots))


def checked_plan(job: GenerateJob) -> tuple[Manifest, list[Shard]]:
    """The manifest's shards; ManifestError before anything is started."""
    manifest = Manifest(job.manifest)
    manifest.check(job.passthrough)
    return manifest, plan(manifest, job.rows_per_shard, job.recipe())


def run(
    job: GenerateJob,
    manifest: Manifest,
    shards: list[Shard],
    start: Callable[[], Stop],
    factory: Callable[[GenerateJob, tuple[str, ...]], MakeWorker] = WorkerFactory,
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

    finished = output.finished()
    there = [shard for shard in shards if shard.name in finished]
    todo = [shard for shard in shards if shard.name not in finished]
    report = RunReport(rows=count_rows(shards) * job.samples_per_row)
    report.rejected = output.rejects(shard.name for shard in there)
    report.skipped = count_rows(there) * job.samples_per_row
    report.done = report.skipped - report.rejected
    if todo:
        stop = start()
        name = f"{RUN}/reports/{run_name()}.json"
        count, resources = cluster_share(job.workers, job.engine.device)
        make = factory(placed(job, resources.gpus), (manifest.root, *job.picture_roots))
        pool = Pool(make, count, resources, retries=job.shard_retries, stop=stop)
        watch(pool, todo, report, lambda state: write_report(output, name, report, state))
    complete = report.finished == report.rows
    publish(job, output, report)
    return report, complete


def placed(job: GenerateJob, gpus: int) -> GenerateJob:
    """The job with its device decided: a worker that has a GPU must not fall back to a CPU."""
    engine = job.engine.model_copy(update={"device": "cuda" if gpus else "cpu"})
    return job.model_copy(update={"engine": engine})


def watch(pool: Pool, todo: list[Shard], report: RunReport, write: Callable[[str], None]) -> None:
    """Drive the pool, count its reports and say every few seconds how far it is."""
    write("running")
    spoken = time.time()
    state = "failed"
    try:
        for answer in pool.run(todo):
            if answer is not None:
                report.add(answer)
            report.lost_workers = pool.lost
            if time.time() - spoken >= PROGRESS_S:
                spoken = time.time()
                logger.info(report.line(spoken))
                write("running")
        state = "finished" if report.finished == report.rows else "stopped"
    finally:
        report.lost_workers = pool.lost
        logger.info(report.line(time.time()))
        write(state)


def write_report(output: Output, name: str, report: RunReport, state: str) -> None:
    output.storage.replace(name, to_json(report.as_json(state)))


def publish(job: GenerateJob, output: Output, report: RunReport) -> None:
    """The dataset's page to look at and, last, its card: if that is right, so is the page."""
    text = card(job, report).encode()
    storage = output.storage
    if storage.exists("README.md") and storage.read("README.md") == text:
        return
    storage.replace("index.html", page(job, output, report).encode())
    storage.replace("README.md", text)


def run_name() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
