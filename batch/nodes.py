"""The cluster's machines: which are there, and what each of them sees on its own disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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


def wish_for_gpus(count: int) -> list[Any]:
    """Tasks that ask for a GPU and do nothing. As long as one waits, Ray's autoscaler, if there is
    one, brings a node for it; they go with this process, however it ends."""
    task = ray.remote(nothing).options(num_gpus=1, num_cpus=1, max_retries=0)
    return [task.remote() for _ in range(count)]


def waiting(wishes: Sequence[Any]) -> list[Any]:
    """Those of these tasks for which there was no room yet."""
    if not wishes:
        return []
    _, left = ray.wait(list(wishes), num_returns=len(wishes), timeout=0)
    return list(left)


def withdraw(wishes: Sequence[Any]) -> None:
    for wish in wishes:
        ray.cancel(wish)


def nothing() -> None:
    """Done as soon as there is room for it."""


def ask(node: str, question: Callable[[Path], T], path: Path) -> T | None:
    """The answer of a process on that node, or None if it gives none."""
    return ask_all([node], question, path)[0]


def ask_all(nodes: Sequence[str], question: Callable[[Path], T], path: Path) -> list[T | None]:
    """The answers of these nodes, asked at the same time."""
    here = ray.get_runtime_context().get_node_id()
    asked = [None if node == here else _task(node, question).remote(path) for node in nodes]
    waiting = [ref for ref in asked if ref is not None]
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=PATIENCE_S)
    return [question(path) if ref is None else _answer(ref) for ref in asked]


def _task(node: str, question: Callable[[Path], T]) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(question).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=0)
    except (RayError, GetTimeoutError):
        return None


def blind(file: Path) -> list[str]:
    """Host names of the nodes that do not see this file."""
    there = alive()
    answers = ask_all(list(there), is_file, file)
    return sorted(name for name, sees in zip(there.values(), answers, strict=True) if not sees)


def is_file(path: Path) -> bool:
    return path.is_file()
