"""The ranges of packages, beside the versions that were tested."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def floor_of(name: str) -> tuple[int, ...]:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = re.search(rf"^{name}(\[\w+\])?>=([\d.]+)$", "\n".join(told), re.M)
    assert found
    return version(found[2])


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_ray_is_asked_for_as_it_was_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    (tested,) = (line.partition("==")[2] for line in lines if line.startswith("ray=="))
    assert floor_of("ray") == version(tested)[:2]


def test_ray_has_what_ranks_ask_of_it() -> None:
    import ray.train

    assert callable(ray.train.get_preemption_info)
