from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from flux_engine import FluxEngine, Generation, RequestError, SettingError, load_engine
from flux_engine.batching import Bucket
from flux_engine.defaults import model_folder
from flux_engine.engine import Outcome
from flux_engine.request import GenerationRequest, LoraUse
from flux_engine.sampling.kernels import compile_blocks
from flux_engine.vram.placements import NARROW, Placements
from flux_engine.vram.planner import Stage
from flux_engine.weights.lora.shelf import Shelf
from flux_engine.weights.source import ModelSource
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import dense_file, encoder_file, file_of, use
from tests.flux_engine.asking import asked
from tests.flux_engine.crowded import Watched
from tests.flux_engine.held import held

BATCHES = {"text_batch": 2, "micro_batch": 2, "decode_batch": 2}
FILES = (
    "flux1-shapes.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
    "ae.safetensors",
)


@pytest.fixture
def engine(shapes_engine: ShapesEngine) -> FluxEngine:
    return shapes_engine()


def wearing(*uses: LoraUse, seed: int = 0, **other: object) -> GenerationRequest:
    return asked(seed=seed, loras=uses, **other)


def pixels(engine: FluxEngine, *rows: GenerationRequest) -> list[Tensor]:
    return [made.pixels for made in engine.generate(rows)]


def weights(engine: FluxEngine) -> dict[str, Tensor]:
    models = {"dit": engine.dit, "clip": engine.text.models.clip, "t5": engine.text.models.t5}
    return {f"{n}.{k}": p.clone() for n, m in models.items() for k, p in m.named_parameters()}


@pytest.mark.parametrize("merged", [False, True, None])
def test_a_lora_changes_pictures_and_taking_it_off_is_exact(
    merged: bool | None, engine: FluxEngine, tmp_path: Path
) -> None:
    before, (bare,) = weights(engine), pixels(engine, asked())
    (made,) = pixels(engine, wearing(use(file_of(tmp_path, engine), merged=merged)))
    assert not torch.allclose(made, bare, atol=0.01)
    assert torch.equal(pixels(engine, asked())[0], bare)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())
    assert not any(m._forward_hooks for m in engine.dit.modules())


def test_beside_and_merged_are_the_same_but_for_rounding(
    engine: FluxEngine, tmp_path: Path
) -> None:
    file = file_of(tmp_path, engine)  # modulation layers included: the table is made with it
    for guidance in (1.0, 2.0):
        beside, merged = pixels(
            engine,
            *(wearing(use(file, 0.7, merged=m), cfg_scale=guidance) for m in (False, True)),
        )
        assert (beside - merged).norm() <= 2e-5 * merged.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_wear_others_share_a_micro_batch_and_keep_their_bits(
    dtype: torch.dtype, shapes_engine: ShapesEngine, tmp_path: Path
) -> None:
    engine = shapes_engine(torch_dtype=dtype)
    files = [file_of(tmp_path, engine, seed) for seed in range(3)]
    rows = [
        wearing(use(files[0]), seed=1),
        wearing(use(files[1], 0.5), seed=2),
        asked(seed=3),
        wearing(use(files[2], -1.0), seed=4, cfg_scale=2.0),
        wearing(use(files[0]), seed=5),
        wearing(use(files[1], 2.0), seed=6, cfg_scale=2.0),
    ]
    dit = engine.dit
    watched = Watched(dit)
    engine.dit = watched  # type: ignore[assignment]
    try:
        together = pixels(engine, *rows)
    finally:
        engine.dit = dit
    # two steps each of: four guided rows (both sides), then three rows in two batches, then one
    assert sorted(watched.batches) == [2] * 6 + [4] * 2
    for row, made in zip(rows, together, strict=True):
        assert torch.equal(pixels(engine, row)[0], made)


def test_loras_of_other_ranks_or_layers_do_not_share(engine: FluxEngine, tmp_path: Path) -> None:
    whole = engine.loras.outfit(wearing(use(file_of(tmp_path, engine))))
    again = engine.loras.outfit(wearing(use(file_of(tmp_path, engine, 1), 0.3)))
    some = file_of(tmp_path / "some", engine, only=lambda name: "attn" in name)
    assert whole.kind == again.kind
    assert engine.loras.outfit(wearing(use(some))).kind not in ("", whole.kind)
    assert engine.loras.outfit(wearing(use(file_of(tmp_path, engine), merged=True))).kind not in (
        whole.kind,
        engine.loras.outfit(wearing(use(file_of(tmp_path, engine, 1), merged=True))).kind,
    )


def test_several_at_once_add_up(engine: FluxEngine, tmp_path: Path) -> None:
    one, other = (use(file_of(tmp_path, engine, seed), 0.5) for seed in (0, 1))
    twice, doubled, both, turned = pixels(
        engine,
        wearing(one, one),
        wearing(LoraUse(path=one.path, scale=1.0)),
        wearing(one, other),
        wearing(other, one),
    )
    assert (twice - doubled).norm() <= 2e-5 * doubled.norm()
    assert (both - turned).norm() <= 2e-5 * both.norm()
    assert (both - twice).norm() > 1e-3 * both.norm()


def test_a_scale_of_zero_is_none_at_all(engine: FluxEngine, tmp_path: Path) -> None:
    bare, none = pixels(engine, asked(), wearing(use(file_of(tmp_path, engine), 0.0)))
    assert torch.equal(bare, none)


def test_what_is_not_low_rank_is_merged_and_told_apart(engine: FluxEngine, tmp_path: Path) -> None:
    dense = dense_file(tmp_path, engine)
    bare, made, again, half = pixels(
        engine,
        asked(),
        wearing(use(dense)),
        wearing(use(dense), use(file_of(tmp_path, engine), 0.0)),
        wearing(use(dense, 0.5)),
    )
    assert torch.equal(made, again)
    assert not torch.allclose(made, bare, atol=0.01)
    assert not torch.allclose(made, half, atol=0.01)
    assert torch.equal(pixels(engine, asked())[0], bare)
    with pytest.raises(RequestError, match="has to be merged"):
        engine.generate([wearing(use(dense, merged=False))])


def test_encoders_are_changed_for_their_own_rows_alone(engine: FluxEngine, tmp_path: Path) -> None:
    files = [encoder_file(tmp_path, engine, seed) for seed in (0, 1)]
    encoded = engine.text.encoded
    rows = [
        wearing(use(files[0]), prompt="owl"),
        asked("owl"),
        wearing(use(files[1]), prompt="owl"),
        wearing(use(files[0]), prompt="owl", seed=5),
    ]
    first, bare, second, _ = pixels(engine, *rows)
    assert engine.text.encoded - encoded == 3  # prompts, by what the encoders wear
    assert not torch.allclose(first, bare, atol=1e-4)
    assert not torch.allclose(first, second, atol=1e-4)
    for row, made in zip(rows, (first, bare, second), strict=False):
        assert torch.equal(pixels(engine, row)[0], made)
    assert torch.equal(pixels(engine, asked("bee"))[0], pixels(engine, asked("bee"))[0])


def test_each_is_read_once_a_call_even_where_all_have_no_room(
    shapes_engine: ShapesEngine, tmp_path: Path
) -> None:
    engine = shapes_engine()
    files = [file_of(tmp_path, engine, seed) for seed in range(3)]
    size = files[0].stat().st_size
    rows = [wearing(use(files[n % 3]), seed=n) for n in range(9)]
    wanted = pixels(engine, *rows)
    for room, reads in ((10 * size, 3), (int(1.5 * size), 3)):
        engine.loras.shelf = Shelf(engine.loras.models.sizes, room)
        made = pixels(engine, *rows)
        assert engine.loras.shelf.reads == reads
        assert engine.loras.shelf.nbytes <= room
        assert all(torch.equal(one, other) for one, other in zip(made, wanted, strict=True))


def test_a_picture_says_which_files_it_was_made_with(engine: FluxEngine, tmp_path: Path) -> None:
    file = file_of(tmp_path, engine)
    (made,) = engine.generate([wearing(use(file), use(file, 0.0))])
    lora = engine.loras.shelf.take(use(file))
    assert made.loras == (lora.digest, lora.digest)
    assert engine.generate([asked()])[0].loras == ()


def test_one_rows_bad_lora_costs_no_other_row(engine: FluxEngine, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    other = file_of(tmp_path / "other", engine)
    rows = [
        asked(seed=1),
        wearing(use(tmp_path / "absent.safetensors")),
        wearing(use(tmp_path / "broken.safetensors")),
        wearing(LoraUse()),
        wearing(use(other, float("nan"))),
        wearing(use(other), seed=2),
    ]
    outcomes: dict[int, Outcome] = dict(engine.each(rows))
    assert [isinstance(outcomes[i], Generation) for i in range(6)] == [True] + [False] * 4 + [True]
    for i, words in (
        (1, "absent.safetensors: no such file"),
        (2, "unreadable or cut short"),
        (3, "give one of them"),
        (4, "scale is nan"),
    ):
        assert isinstance(outcomes[i], RequestError)
        assert words in str(outcomes[i])


def test_what_it_does_to_the_model_is_described(engine: FluxEngine, tmp_path: Path) -> None:
    lines = engine.loras.describe(use(file_of(tmp_path, engine)), engine.residency)
    linear = sum(isinstance(m, torch.nn.Linear) for m in engine.dit.modules())
    assert len(lines) == linear
    assert all(line.relative is not None and line.relative > 0 for line in lines)


def test_what_stands_on_the_card_is_what_is_said_of_it(engine: FluxEngine, tmp_path: Path) -> None:
    rows = [wearing(use(file_of(tmp_path, engine, seed))) for seed in range(3)]
    outfits = [engine.loras.outfit(row) for row in rows]
    worn = engine.loras.worn(outfits[:2] * 2)
    assert worn.outfits == 2
    with engine.loras.bucket():
        for some in (outfits[:2], outfits[1:]):
            with engine.loras.beside(some, 1):
                pairs = list(engine.loras._standing.factors.values())
            assert sum(t.numel() for pair in pairs for t in pair) == 2 * worn.factors
            assert max(t[0].numel() for pair in pairs for t in pair) == worn.gathered
    assert not engine.loras._standing.factors
    assert engine.loras.worn([engine.loras.outfit(asked())]).factors == 0


def test_where_few_outfits_fit_on_the_card_rows_keep_their_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(device="cpu", torch_dtype=torch.float32, micro_batch=4)
    rows = [wearing(use(file_of(tmp_path, engine, seed)), seed=seed) for seed in range(3)]
    expected = pixels(engine, *rows)
    for fit, batches in ((1, 3), (2, 2), (3, 1)):
        monkeypatch.setattr(engine.planning, "outfits", lambda _, fit=fit: fit)
        watched = Watched(engine.dit)
        with monkeypatch.context() as patched:
            patched.setattr(engine, "dit", watched)
            assert all(map(torch.equal, pixels(engine, *rows), expected))
        assert watched.batches == [4] * 2 * batches


def test_a_row_whose_loras_leave_no_room_is_an_answer(
    engine: FluxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = engine.planning.denoise

    def denoise(bucket: Bucket) -> Stage:
        if bucket.worn.factors:
            raise SettingError("no room for LoRAs")
        return planned(bucket)

    monkeypatch.setattr(engine.planning, "denoise", denoise)
    outcomes = dict(engine.each([asked(), wearing(use(file_of(tmp_path, engine))), asked(seed=2)]))
    assert str(outcomes[1]) == "no room for LoRAs"
    assert isinstance(outcomes[0], Generation)
    assert isinstance(outcomes[2], Generation)


def test_a_merge_that_is_cut_short_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(engine := load_engine(device="cpu", torch_dtype=torch.float32, **BATCHES))  # type: ignore[arg-type]
    worn = wearing(use(file_of(tmp_path, engine), merged=True))
    (bare,), (expected,) = pixels(engine, asked()), pixels(engine, worn)
    pixels(engine, asked())  # takes it off
    override, calls = engine.residency.override, list[int]()

    def cut(model: Literal["dit"], tensors: Mapping[str, Tensor]) -> None:
        calls.append(len(tensors))
        if len(calls) == 3:
            raise MemoryError
        override(model, tensors)

    monkeypatch.setattr(engine.residency, "override", cut)
    with pytest.raises(MemoryError):
        engine.generate([worn])
    assert torch.equal(pixels(engine, asked())[0], bare)
    assert torch.equal(pixels(engine, worn)[0], expected)
    assert max(calls) < 10  # of one block: not all at once


@pytest.mark.parametrize("on_a_card", [False, True])
@pytest.mark.parametrize("approximate", ["weights", "products"])
def test_loras_stand_beside_eight_bits_too(
    approximate: str, on_a_card: bool, shapes_engine: ShapesEngine, tmp_path: Path
) -> None:
    exact = shapes_engine()
    files = [file_of(tmp_path, exact, seed, strength=0.8) for seed in range(2)]
    rows = [wearing(use(files[0]), seed=1), wearing(use(files[1], 0.5), seed=2), asked(seed=1)]
    eight = Placements(offload_dtype=NARROW, offload_device="cpu")
    folder = model_folder("flux-shapes")
    engine = load_engine(
        [ModelSource(str(file)) for file in (folder / name for name in FILES)],
        device="cpu", torch_dtype=torch.float32, **BATCHES,  # type: ignore[arg-type]
        placements=[eight if name.startswith("flux1") else Placements() for name in FILES],
        approximate=["fp8"] if approximate == "products" else [],
    )  # fmt: skip
    if on_a_card:
        held(engine, seed=2)
    made, expected = engine.generate(rows), exact.generate(rows)
    for one, other in zip(made, expected, strict=True):
        apart = (one.latents - other.latents).norm() / other.latents.norm()
        assert 1e-4 < apart < 0.5
    said, meant = ((m[0].latents - m[2].latents).flatten() for m in (made, expected))
    assert torch.cosine_similarity(said, meant, 0) > 0.9  # what the LoRA adds is what it adds
    for row, one in zip(rows, made, strict=True):
        assert torch.equal(engine.generate([row])[0].latents, one.latents)


def test_compiled_blocks_have_loras_beside_them_and_are_not_compiled_for_each_micro_batch(
    tmp_path: Path,
) -> None:
    engine = load_engine(device="cpu", torch_dtype=torch.float32, **BATCHES)  # type: ignore[arg-type]
    files = [file_of(tmp_path, engine, seed) for seed in range(2)]
    rows = [wearing(use(files[n % 2]), seed=n) for n in range(4)]
    bare, worn = engine.generate([asked()]), engine.generate(rows)
    compile_blocks(engine.dit, counter := CompileCounter())
    seen = []
    for asked_for, expected in ([asked()], bare), (rows, worn), (rows, worn), ([asked()], bare):
        made = engine.generate(asked_for)
        seen.append(counter.frame_count)
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(made, expected, strict=True))
    # each kind of block bare, and with LoRAs; the double blocks' are of two shapes in these files
    assert seen == [2, 5, 5, 5]
