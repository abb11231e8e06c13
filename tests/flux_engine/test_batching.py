from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random

import pytest
import torch

from flux_engine import FluxEngine, Generation, GenerationRequest, load_engine
from flux_engine.batching import Batching, Bucket, fixed_batches, mixed_batches
from flux_engine.encode import TextEncoder
from tests.conftest import ShapesEngine
from tests.flux_engine.asking import asked, picture

PROMPTS = ("a red circle", "", "a large green triangle left of a small yellow square", "two stars")
GUIDANCES = (3.5, 1.0, 7.0, 2.2)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.mark.parametrize(
    ("side", "micro", "decode"), [(64, 16, 16), (512, 16, 4), (1024, 4, 1), (2048, 1, 1)]
)
def test_batches_are_a_rule_of_the_pictures_size(side: int, micro: int, decode: int) -> None:
    assert Batching().micro_batch((side // 16) ** 2) == micro
    assert Batching().decode_batch(side, side) == decode


def test_a_job_may_say_the_batches_itself() -> None:
    batching = Batching(micro=3, decode=5)
    assert batching.micro_batch(4096) == batching.micro_batch(16) == 3
    assert batching.decode_batch(1024, 1024) == batching.decode_batch(16, 16) == 5


def test_every_batch_is_full_and_nothing_is_lost() -> None:
    batches = list(fixed_batches("abcde", 2))
    assert [filled for _, filled in batches] == [["a", "b"], ["c", "d"], ["e", "e"]]
    assert [real for real, _ in batches] == [["a", "b"], ["c", "d"], ["e"]]
    assert list(fixed_batches([], 2)) == []


def test_a_bucket_is_what_shares_kernels_and_levels() -> None:
    row = asked(seed=1, embedded_guidance=2.0)
    other = asked("another", seed=2, embedded_guidance=5.0)
    assert Bucket.of(row, 1.5) == Bucket.of(other, 1.5)
    for changed in ({"height": 80}, {"num_inference_steps": 3}, {"cfg_scale": 2.0}):
        assert Bucket.of(row, 1.5) != Bucket.of(replace(row, **changed), 1.5)
    assert Bucket.of(row, 1.5) != Bucket.of(row, 1.6)


def test_strength_counts_only_with_a_picture() -> None:
    row = asked(denoising_strength=0.5)
    assert Bucket.of(row, 1.5) == Bucket.of(asked(), 1.5)
    pictured = replace(row, input_image=torch.zeros(3, 64, 64))
    assert Bucket.of(pictured, 1.5) != Bucket.of(row, 1.5)
    assert Bucket.of(replace(pictured, denoising_strength=1.0), 1.5) == Bucket.of(row, 1.5)


def rows() -> list[GenerationRequest]:
    """Three steps, each with values of its own; guided, pictured, tiled and tall ones."""
    plain = [
        asked(PROMPTS[i % 4], seed=i, embedded_guidance=GUIDANCES[i % 4], num_inference_steps=3)
        for i in range(5)
    ]
    guided = [
        replace(row, cfg_scale=factor, negative_prompt=negative)
        for row, factor, negative in zip(plain, (2.0, 0.5), ("blue", ""), strict=False)
    ]
    return [
        *plain,
        *guided,
        replace(plain[0], input_image=picture(0), denoising_strength=0.7),
        replace(plain[1], input_image=picture(1), denoising_strength=0.7),
        replace(plain[2], input_image=picture(2)),
        replace(guided[0], input_image=picture(3), denoising_strength=0.7),
        replace(plain[1], tiled=True, tile_size=6, tile_stride=4),
        replace(plain[2], height=80),
    ]


ROWS = rows()
PLAIN, GUIDED, PICTURED = 4, 6, 8


SHUFFLED = Random(0).sample(range(len(ROWS)), len(ROWS))
ARRANGEMENTS = {
    "all backwards": list(reversed(range(len(ROWS)))),
    "all shuffled, some twice": SHUFFLED + SHUFFLED[:3],
    "every third": list(range(1, len(ROWS), 3)),
    "a plain one alone": [PLAIN],
    "a guided one alone": [GUIDED],
    "a pictured one alone": [PICTURED],
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def afresh(engine: FluxEngine, requests: list[GenerationRequest]) -> list[Generation]:
    """Pictures by an engine that remembers no text, so that texts too get other neighbours."""
    engine.text = TextEncoder(engine.text.models, engine.device, engine.text.batch, cache_bytes=0)
    return engine.generate(requests)


def assert_same_bits(engine: FluxEngine, orders: Iterable[list[int]]) -> None:
    """Each order of row numbers gives the rows the bits that they have among all."""
    expected = afresh(engine, ROWS)
    for numbers in orders:
        made = afresh(engine, [ROWS[n] for n in numbers])
        for n, one in zip(numbers, made, strict=True):
            assert torch.equal(one.latents, expected[n].latents), f"row {n} among {numbers}"
            assert torch.equal(one.pixels, expected[n].pixels), f"row {n} among {numbers}"


@DTYPES
def test_a_row_is_the_same_whatever_is_made_beside_it(
    dtype: torch.dtype, shapes_engine: ShapesEngine
) -> None:
    engine = shapes_engine(torch_dtype=dtype, text_batch=3, micro_batch=3, decode_batch=2)
    assert_same_bits(engine, ARRANGEMENTS.values())


@pytest.mark.usefixtures("threads")
@DTYPES
def test_a_row_is_the_same_by_any_number_of_threads(
    dtype: torch.dtype, shapes_engine: ShapesEngine
) -> None:
    engine = shapes_engine(torch_dtype=dtype, text_batch=3, micro_batch=3, decode_batch=2)
    numbers = [2, 0, 1, GUIDED]
    made = []
    for order, threads in ((numbers, 1), (numbers[::-1], 2)):
        torch.set_num_threads(threads)
        rows = afresh(engine, [ROWS[n] for n in order])
        made.append(dict(zip(order, rows, strict=True)))
    for n in numbers:
        assert torch.equal(made[0][n].latents, made[1][n].latents), f"row {n}"
        assert torch.equal(made[0][n].pixels, made[1][n].pixels), f"row {n}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@DTYPES
def test_a_row_is_the_same_on_a_card_too(dtype: torch.dtype) -> None:
    engine = load_engine(torch_dtype=dtype, device="cuda", micro_batch=3, decode_batch=2)
    assert_same_bits(engine, ARRANGEMENTS.values())


def test_batches_of_few_kinds_are_filled_too() -> None:
    made = list(mixed_batches("aabbccc", 4, lambda letter: letter, 2))
    assert [("".join(real), "".join(filled)) for real, filled in made] == [
        ("aabb", "aabb"),
        ("ccc", "cccc"),
    ]
    alone = [len(real) for real, _ in mixed_batches("abc", 4, lambda letter: letter, 1)]
    assert alone == [1, 1, 1]
    assert list(mixed_batches("abcde", 2, lambda _: 0, 1)) == list(fixed_batches("abcde", 2))
    assert list(mixed_batches("", 2, lambda _: 0, 1)) == []
