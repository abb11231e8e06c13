"""What a run would ask of its cards: a plan for each kind of picture in the manifest."""

from collections.abc import Iterable

from flux_engine.batching import Bucket
from flux_engine.errors import SettingError
from flux_engine.paper import planned
from flux_engine.request import GenerationRequest
from flux_engine.sampling.schedule import shift_of
from schemas.jobs import BatchJob
from schemas.sampling import Sampling


def forecast(job: BatchJob, kinds: Iterable[Sampling]) -> list[str]:
    """Lines for a dry run: bytes by stage, seconds a picture, what limits them; or why not."""
    paper = planned(job.engine)
    if paper.planning.machine is None:
        return ["no card: all weights stay in this machine's memory"]
    lines = list(paper.assumed)
    for bucket in dict.fromkeys(bucket_of(kind) for kind in kinds):
        try:
            lines += paper.planning.plan(bucket).lines()
        except SettingError as error:
            lines.append(f"does not fit: {error}")
    return lines


def bucket_of(kind: Sampling) -> Bucket:
    values = kind.model_dump() | {"seed": kind.seed or 0, "loras": ()}
    request = GenerationRequest(prompt="", **values)
    tokens = (request.height // 16) * (request.width // 16)
    return Bucket.of(request, shift_of(request.schedule, tokens, request.sigma_shift, True))
