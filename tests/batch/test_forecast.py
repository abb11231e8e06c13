from pathlib import Path

from batch.forecast import bucket_of, forecast
from schemas.engine import EngineConfig
from schemas.sampling import Sampling
from tests.batch.doubles import job

HUB = [
    {"model_id": "nobody/FLUX.1-dev", "origin_file_pattern": pattern}
    for pattern in ("flux1-dev.safetensors", "ae.safetensors")
]
KIND = Sampling(
    embedded_guidance=3.5, height=1024, width=1024, num_inference_steps=28, t5_sequence_length=512
)


def lines(tmp_path: Path, **engine: object) -> str:
    asked = job(tmp_path, tmp_path / "m.parquet", engine=engine)
    other = KIND.model_copy(update={"cfg_scale": 3.0, "seed": 5})
    again = KIND.model_copy(update={"seed": 5})
    return "\n".join(forecast(asked, [KIND, other, again]))


def test_weights_that_are_not_here_are_planned_for_as_published(tmp_path: Path) -> None:
    told = lines(tmp_path, model=HUB, vram_limit=8.0)
    assert "dit, vae, clip, t5: not here yet, taken to be FLUX.1-dev's" in told
    assert "8.0 GiB" in told
    assert told.count("1024×1024, 28 steps, 512 tokens") == 2  # with both sides of cfg, and without
    assert told.count("s a picture predicted") == 2


def test_what_does_not_fit_is_told_with_the_numbers(tmp_path: Path) -> None:
    told = lines(tmp_path, model=HUB, vram_limit=2.0)
    assert "does not fit: 1024×1024 in micro-batches of 1 needs" in told
    assert "2.0 GiB may be used" in told


def test_the_shipped_model_is_here_and_a_cpu_has_no_card(tmp_path: Path) -> None:
    assert "not here yet" not in lines(tmp_path, device="auto")
    assert lines(tmp_path, device="cpu") == "no card: all weights stay in this machine's memory"


def test_a_kind_of_picture_is_a_bucket() -> None:
    assert bucket_of(KIND).guided is False
    assert bucket_of(KIND.model_copy(update={"cfg_scale": 2.0})).guided
    assert EngineConfig().vram_limit is None
