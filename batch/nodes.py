"""The cluster's machines: which are there, and what each of them sees on its own disk."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")

PATIENCE_S = 30.0


def alive() -> dict[str, str]:
    """Ids and host names of the nodes that are there."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}


def resources() -> dict[str, float]:
    """What all of them have together."""
    there: dict[str, float] = ray.cluster_resources()
    return there


def ask(node: str, question: Callable[[Path], T], path: Path) -> T | None:
    """The answer of a process on that node, or None if it gives none."""
    if node == ray.get_runtime_context().get_node_id():
        return question(path)
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(question).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    try:
        answer: T = ray.get(task.remote(path), timeout=PATIENCE_S)
    except (RayError, GetTimeoutError):
        return None
    return answer


def blind(file: Path) -> list[str]:
    """Host names of the nodes that do not see this file."""
    return sorted(name for node, name in alive().items() if not ask(node, is_file, file))


def is_file(path: Path) -> bool:
    return path.is_file()
