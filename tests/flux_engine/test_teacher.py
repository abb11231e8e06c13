from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flux_engine import FluxEngine, RequestError, SettingError
from flux_engine.request import Watch
from flux_engine.teacher import Answer, Query, Taps, Teacher
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import file_of, use
from tests.flux_engine.asking import asked, noise
from tests.flux_engine.crowded import Watched

LENGTH = 20


@pytest.fixture
def engine(shapes_engine: ShapesEngine) -> FluxEngine:
    return shapes_engine()


def query(seed: int = 0, sigma: float = 0.5, **other: object) -> Query:
    values = {"prompt": "a red circle", "t5_sequence_length": LENGTH}
    return Query(state=noise(seed, 16, 8, 8), sigma=sigma, **(values | other))  # type: ignore[arg-type]


def answers(teacher: Teacher, *queries: Query) -> list[Answer]:
    found = dict(teacher.each(queries))
    out = []
    for i in range(len(queries)):
        answer = found[i]
        assert isinstance(answer, Answer)
        out.append(answer)
    return out


def test_a_path_is_what_the_teacher_answers_along_it(engine: FluxEngine) -> None:
    request = asked(seed=3, traced=True, decode=False, num_inference_steps=4)
    (made,) = engine.generate([request])
    assert made.pixels is None
    assert made.trace is not None
    x = noise(3, 16, 8, 8)
    for k, velocity in enumerate(made.trace.velocities):
        at = Query(
            state=x,
            sigma=made.trace.sigmas[k],
            prompt=request.prompt,
            t5_sequence_length=request.t5_sequence_length,
        )
        (answer,) = answers(Teacher(engine), at)
        assert (answer.velocity - velocity).norm() <= 2e-5 * velocity.norm()
        x = x + (made.trace.sigmas[k + 1] - made.trace.sigmas[k]) * velocity
    assert (x - made.latents).norm() <= 1e-5 * made.latents.norm()
    (plain,) = engine.generate([asked(seed=3, num_inference_steps=4)])
    assert torch.equal(plain.latents, made.latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_answers_bits_do_not_depend_on_its_neighbours(
    dtype: torch.dtype, shapes_engine: ShapesEngine, tmp_path: Path
) -> None:
    engine = shapes_engine(torch_dtype=dtype)
    lora = use(file_of(tmp_path, engine))
    teacher = Teacher(engine, Taps(names=("double_blocks.0.img", "single_blocks.0"), width=8))
    queries = [
        query(1, 0.9),
        query(2, 0.1, embedded_guidance=1.0),
        query(3, 0.5, prompt="a blue square"),
        query(4, 0.3, loras=(lora,)),
        query(5, 1.0),
    ]
    together = answers(teacher, *queries)
    for one, wanted in zip(queries, together, strict=True):
        (alone,) = answers(teacher, one)
        assert torch.equal(alone.velocity, wanted.velocity)
        assert all(torch.equal(alone.taps[name], wanted.taps[name]) for name in wanted.taps)
    (bare,) = answers(teacher, replace(queries[3], loras=()))
    assert not torch.equal(together[3].velocity, bare.velocity)


def test_taps_are_projected_outputs_of_blocks(engine: FluxEngine) -> None:
    names = ("double_blocks.0.img", "double_blocks.0.txt", "single_blocks.1")
    taps = Taps(names=names, width=8, seed=5)
    (answer,) = answers(Teacher(engine, taps), query())
    counts = (16, LENGTH, 16 + LENGTH)
    assert {name: tuple(t.shape) for name, t in answer.taps.items()} == {
        name: (count, 8) for name, count in zip(names, counts, strict=True)
    }
    seen = {}
    hook = engine.dit.double_blocks[0].register_forward_hook(
        lambda _, __, out: seen.update(img=out[0])
    )
    answers(Teacher(engine), query())
    hook.remove()
    wanted = seen["img"][0].float() @ taps.projection(engine.dit.spec.width)
    torch.testing.assert_close(answer.taps["double_blocks.0.img"], wanted)
    assert not engine.dit.double_blocks[0]._forward_hooks


@pytest.mark.parametrize("name", ["double_blocks.0", "single_blocks.99", "final_layer"])
def test_a_tap_that_is_not_there_is_refused(name: str, engine: FluxEngine) -> None:
    with pytest.raises(SettingError, match=r"there are double_blocks\.0…"):
        Teacher(engine, Taps(names=(name,), width=8))


def test_one_bad_query_costs_no_other(engine: FluxEngine, tmp_path: Path) -> None:
    queries = [
        query(),
        query(sigma=1.5),
        replace(query(), state=torch.zeros(4, 8, 8)),
        replace(query(), state=torch.full((16, 8, 8), torch.nan)),
        query(loras=(use(tmp_path / "absent.safetensors"),)),
    ]
    found = dict(Teacher(engine).each(queries))
    assert isinstance(found[0], Answer)
    reasons = ("sigma is 1.5", "should be (16, H/8, W/8)", "NaN", "absent")
    for i, words in enumerate(reasons, 1):
        assert isinstance(found[i], RequestError)
        assert words in str(found[i])


def test_it_tells_what_it_is_at_and_can_be_left(engine: FluxEngine) -> None:
    class Leaving(Watch):
        def __init__(self) -> None:
            self.told: list[tuple[str, list[int]]] = []

        def at(self, stage: str, rows: object) -> None:
            self.told.append((stage, list(rows)))  # type: ignore[call-overload]

        def leaving(self) -> bool:
            return len(self.told) > 1

    watch = Leaving()
    found = dict(Teacher(engine).each([query(i) for i in range(5)], watch))
    assert list(found) == [0, 1]
    assert watch.told == [("text", [0, 1, 2, 3, 4]), ("denoise", [0, 1])]
    assert dict(Teacher(engine).each([])) == {}


def test_for_lack_of_memory_fewer_are_asked_about_at_once_and_answers_say_so(
    shapes_engine: ShapesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [query(i, sigma=0.1 + 0.2 * i) for i in range(5)]
    expected = answers(Teacher(shapes_engine(micro_batch=2)), *queries)
    engine = shapes_engine(micro_batch=8)
    taps = Taps(names=("single_blocks.0",), width=4)
    teacher = Teacher(engine, taps)
    monkeypatch.setattr(engine, "dit", Watched(engine.dit, room=3))
    made = answers(teacher, *queries)
    assert [one.micro_batch for one in made] == [2] * 5
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one.velocity, other.velocity)
        assert set(one.taps) == {"single_blocks.0"}
    monkeypatch.setattr(engine, "dit", Watched(engine.dit, room=0))
    with pytest.raises(torch.OutOfMemoryError):
        answers(teacher, query())
