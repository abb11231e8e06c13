from pathlib import Path
from typing import Any

import pytest

from batch.targets.worn import Wardrobe
from flux_engine.weights.lora.shelf import Shelf
from schemas.jobs import DistillJob
from schemas.records import TargetRecord
from tests.batch.stages.test_distill import records, work
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import file_of

Made = tuple[DistillJob, list[TargetRecord], Shelf]


@pytest.fixture
def shelf(shapes_engine: ShapesEngine) -> Shelf:
    return shapes_engine().loras.shelf


def made(folder: Path, lora: dict[str, Any], **sampling: Any) -> tuple[DistillJob, TargetRecord]:
    """A row that wears this LoRA."""
    manifest = {"key": ["a"], "prompt": ["a red circle"], "loras": [[lora]]}
    job, _ = work(folder, manifest, target={"kind": "pair"}, sampling=sampling)
    (record,) = records(folder / "out").values()
    return job, record


def test_a_row_wears_what_it_wore_with_the_scale_that_it_had(
    tmp_path: Path, shapes_engine: ShapesEngine, shelf: Shelf
) -> None:
    file = file_of(tmp_path / "m", shapes_engine())
    entry = {"path": str(file)}
    job, record = made(tmp_path, entry | {"scale": 0.25}, loras=[entry])
    worn = Wardrobe(job, str(tmp_path / "m"), shelf).dress([record])
    assert [[use.scale for use in row.loras] for row in worn.rows] == [[0.25]]
    assert (worn.absent, worn.changed) == ((), ())


def test_a_file_that_went_or_is_another_one_is_named(
    tmp_path: Path, shapes_engine: ShapesEngine, shelf: Shelf
) -> None:
    file = file_of(tmp_path / "m", shapes_engine())
    job, record = made(tmp_path, {"path": file.name})
    twice = [record, record.model_copy(update={"key": "b"})]
    file_of(tmp_path / "other", shapes_engine(), seed=3).replace(file)
    worn = Wardrobe(job, str(tmp_path / "m"), shelf).dress(twice)
    assert (worn.rows, worn.absent) == ((), ())
    (told,) = worn.changed
    assert f"LoRA {file.name} has the hash" in told
    assert record.loras[0].sha256[:12] in told
    file.unlink()
    worn = Wardrobe(job, str(tmp_path / "m"), shelf).dress(twice)
    assert (worn.rows, worn.changed) == ((), ())
    assert [why.partition(":")[0] for why in worn.absent] == ["a", "b"]
    assert "no such file" in worn.absent[0]


@pytest.mark.parametrize("pattern", [None, "lora0.safetensors"])
def test_what_came_from_a_hub_is_found_there_again(
    pattern: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shapes_engine: ShapesEngine,
    shelf: Shelf,
) -> None:
    monkeypatch.setenv("FLUXMILL_MODELS", str(tmp_path / "models"))
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers: files put there serve
    file_of(tmp_path / "models" / "someone" / "owls", shapes_engine())
    entry = {
        "model_id": "someone/owls",
        "origin_file_pattern": pattern,
        "download_source": "huggingface",
    }
    job, record = made(tmp_path, entry)
    worn = Wardrobe(job, str(tmp_path / "m"), shelf).dress([record])
    assert worn.absent == ()
    assert [[use.model_id for use in row.loras] for row in worn.rows] == [["someone/owls"]]
