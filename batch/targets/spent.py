"""What a target dataset has cost, beside what was predicted: `_run/cost.json` and a line."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from batch.output import RUN, Output, to_json
from batch.shards import Shard
from flux_engine.errors import EngineError
from schemas.jobs import DistillJob

logger = logging.getLogger(__name__)

COST = f"{RUN}/cost.json"


@dataclass(frozen=True)
class Spent:
    """Bytes as they lie there, seconds of all cards (or CPUs) of all runs so far."""

    data_bytes: int
    text_bytes: int
    card_seconds: float


def spent(output: Output) -> Spent:
    runs = [
        json.loads(output.storage.read(f"{RUN}/reports/{name}"))
        for name in output.storage.names(f"{RUN}/reports")
    ]
    return Spent(
        data_bytes=size_of(output, "data"),
        text_bytes=size_of(output, "text"),
        card_seconds=sum(run["busy_seconds"] for run in runs),
    )


def size_of(output: Output, folder: str) -> int:
    total = 0
    for name in output.storage.names(folder):
        with output.storage.open(f"{folder}/{name}") as file:
            total += file.size()
    return total


def publish_cost(job: DistillJob, output: Output, shards: Sequence[Shard]) -> None:
    """Write and say both; a prediction that fails costs a finished dataset nothing."""
    from batch.targets.cost import cost_of  # with it comes torch, which a driver needs last if ever

    used = spent(output)
    try:
        predicted = cost_of(job, shards)
    except (EngineError, OSError) as error:
        logger.warning("cost was not predicted", extra={"why": str(error)})
        predicted = None
    told = {"predicted": predicted.as_json() if predicted else None, "used": asdict(used)}
    output.storage.replace(COST, to_json(told))
    logger.info(
        "cost",
        extra={
            "bytes": used.data_bytes + used.text_bytes,
            "predicted_bytes": predicted.bytes if predicted else None,
            "card_seconds": round(used.card_seconds, 1),
            "predicted_card_seconds": predicted.card_seconds if predicted else None,
        },
    )
