from pathlib import Path
from typing import Any

import pytest

from batch.run import checked_plan
from batch.targets.cost import cost_of
from jobs.work import resolved
from schemas.jobs import DistillJob
from tests.batch.doubles import write_manifest
from tests.batch.stages.test_distill import work

PUBLISHED = {"height": 1024, "width": 1024, "num_inference_steps": 28, "t5_sequence_length": 512}


def planned(folder: Path, rows: int, **values: Any) -> tuple[DistillJob, Any]:
    manifest = {"prompt": [f"owl {i % 3}" for i in range(rows)]}
    write_manifest(folder / "m.parquet", manifest)
    told = {"manifest": str(folder / "m.parquet"), "output": str(folder / "out")}
    job = resolved(DistillJob.parse(told | values))
    return job, cost_of(job, checked_plan(job)[1])


@pytest.mark.parametrize(
    ("target", "mebibytes"),
    [
        ({"kind": "cache"}, 0.5),
        ({"kind": "cache", "moments": True}, 1.0),
        ({"kind": "pair"}, 0.5),
        ({"kind": "path"}, 14.0),
        ({"kind": "path", "segments": 4}, 2.0),
        ({"kind": "velocity", "queries": 2, "guidance": [1, 3], "unconditional": True}, 3.5),
        ({"kind": "feature", "taps": ["double_blocks.0.img"], "width": 64}, 1.0),
    ],
)
def test_a_published_sizes_bytes_are_those_of_its_tensors(
    target: dict[str, Any], mebibytes: float, tmp_path: Path
) -> None:
    _, cost = planned(tmp_path, 6, target=target, sampling=PUBLISHED)
    assert cost.rows == 6
    assert cost.data_bytes / 6 == pytest.approx(mebibytes * 2**20, rel=0.01)
    assert cost.texts == 3 + ("unconditional" in target)  # the negative prompt's
    assert "MiB a row" in cost.lines()[0]


def test_what_is_predicted_is_what_is_written(tmp_path: Path) -> None:
    manifest = {"prompt": [f"owl {i % 3}" for i in range(6)], "key": list("abcdef")}
    sampling = {"height": 256, "width": 256, "num_inference_steps": 4}
    for target in ({"kind": "pair"}, {"kind": "path"}):
        folder = tmp_path / target["kind"]
        job, _ = work(folder, manifest, target=target, sampling=sampling)
        cost = cost_of(job, checked_plan(job)[1])
        written = sum(file.stat().st_size for file in (folder / "out" / "data").iterdir())
        assert written == pytest.approx(
            cost.data_bytes, rel=0.02 if target["kind"] == "path" else 0.05
        )
        texts = sum(file.stat().st_size for file in (folder / "out" / "text").iterdir())
        assert texts == pytest.approx(cost.text_bytes, rel=0.5)  # of a toy's texts, mostly words


def test_seconds_are_those_of_a_card_where_one_is_planned_for(tmp_path: Path) -> None:
    dev = {"model": "flux-shapes", "device": "cuda"}

    def seconds(name: str, kind: str, share: float) -> float:
        (tmp_path / name).mkdir()
        told = {"target": {"kind": kind}, "engine": dev, "check_share": share}
        _, cost = planned(tmp_path / name, 6, **told)
        assert "GPU-hours" in cost.lines()[0]
        assert cost.card_seconds is not None
        return cost.card_seconds

    pair, path = seconds("a", "pair", 0.0), seconds("b", "path", 0.0)
    assert pair > 0
    assert path == pytest.approx(pair)
    # a pair that is asked about again is walked whole, of a path one segment is
    assert pair < seconds("d", "path", 1.0) < seconds("e", "pair", 1.0) < 2 * pair
    (tmp_path / "c").mkdir()
    _, none = planned(tmp_path / "c", 6, target={"kind": "pair"}, engine={"device": "cpu"})
    assert none.card_seconds is None
    assert "no card to plan for" in none.lines()[0]
