from collections.abc import Sequence

import pytest
import torch

from flux_engine import FluxEngine, load_engine
from flux_engine.defaults import model_folder
from flux_engine.deviation import Deviation
from flux_engine.request import Watch
from flux_engine.vram.placements import NARROW, Placements
from flux_engine.weights.source import ModelSource
from tests.flux_engine.asking import asked
from tests.flux_engine.held import held

FILES = (
    "flux1-shapes.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
    "ae.safetensors",
)
ROWS = [asked(f"row {i}", i, cfg_scale=2.0, num_inference_steps=8) for i in range(3)]


def engine_of(*approximate: str, narrow: bool = False) -> FluxEngine:
    folder = model_folder("flux-shapes")
    eight = Placements(offload_dtype=NARROW, offload_device="cpu")
    dit_only = [eight if narrow and name.startswith("flux1") else Placements() for name in FILES]
    return load_engine(
        [ModelSource(str(folder / name)) for name in FILES],
        device="cpu", torch_dtype=torch.float32, text_batch=2, micro_batch=2, decode_batch=2,
        placements=dit_only, approximate=approximate,  # type: ignore[arg-type]
    )  # fmt: skip


def test_rows_are_measured_one_by_one_and_once() -> None:
    deviation = Deviation()
    exact = torch.ones(3, 1, 2, 2)
    approximate = exact * torch.tensor([1.0, 1.5, 9.0])[:, None, None, None]
    deviation.take(approximate, exact, real=2)
    assert deviation.measured == pytest.approx([0.0, 0.5])
    assert not deviation.due
    unmeasured = Deviation()
    unmeasured.take(approximate, None, real=2)
    assert (unmeasured.due, unmeasured.measured) == (False, [])


@pytest.mark.parametrize("on_a_card", [False, True])
@pytest.mark.parametrize(
    ("asked_for", "narrow", "name"),
    [
        ((), True, "fp8_weights(dit)"),
        (("fp8",), False, "fp8"),
        (("step_cache",), False, "step_cache"),
        (("fp8", "step_cache"), True, "fp8_weights(dit), fp8, step_cache"),
    ],
)
def test_what_an_engine_says_of_itself_is_how_far_it_is_from_the_exact_one(
    asked_for: tuple[str, ...], narrow: bool, name: str, on_a_card: bool
) -> None:
    exact = engine_of().generate(ROWS)
    engine = engine_of(*asked_for, narrow=narrow)
    if on_a_card:
        held(engine, seed=2)
    made = engine.generate(ROWS)
    assert {one.approximate for one in made} == {name}
    apart = [
        float((one.latents - other.latents).norm() / other.latents.norm())
        for one, other in zip(made[:2], exact[:2], strict=True)
    ]
    assert engine.deviation.measured == pytest.approx(apart)
    assert 1e-4 < min(apart) < max(apart) < 0.5
    again = engine.generate(ROWS)
    assert len(engine.deviation.measured) == 2
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(made, again, strict=True))


def test_an_exact_engine_measures_nothing() -> None:
    engine = engine_of()
    assert {one.approximate for one in engine.generate(ROWS)} == {""}
    assert engine.deviation.measured == []


def test_what_there_is_no_memory_to_compare_with_is_unmeasured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = engine_of("step_cache")
    calls = []

    def full(*_: object) -> None:
        if not engine.approximation:
            calls.append(1)
            raise torch.OutOfMemoryError("no room on the card")

    engine.dit.single_blocks[0].register_forward_pre_hook(full)
    made = engine.generate(ROWS)
    assert {one.approximate for one in made} == {"step_cache"}
    assert engine.deviation.measured == []
    assert len(calls) == 1  # it is not tried again
    assert "deviation not measured" in caplog.text


def test_measuring_is_a_stage_that_no_row_is_to_blame_for() -> None:
    told: list[tuple[str, list[int]]] = []

    class Told(Watch):
        def at(self, stage: str, rows: Sequence[int]) -> None:
            told.append((stage, list(rows)))

    dict(engine_of("step_cache").each(ROWS, watch=Told()))
    assert [entry for entry in told if entry[0] in ("denoise", "deviation")] == [
        ("denoise", [0, 1]), ("deviation", []), ("denoise", [2]),
    ]  # fmt: skip
