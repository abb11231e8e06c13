"""LoRAs in the layouts that diffusers loads, and in the one that we write: the same pictures."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from diffusers import FluxPipeline

from flux_engine import FluxEngine, load_engine
from flux_engine.models.dit import FluxSpec
from flux_engine.request import GenerationRequest, LoraUse
from flux_engine.weights.lora.names import Sizes
from flux_engine.weights.lora.read import read_lora
from flux_engine.weights.lora.write import write_lora
from tests.flux_engine.weights.lora.written import (
    DOWN,
    LAYOUTS,
    UP,
    A,
    B,
    Drawn,
    bfl,
    diffusers,
    dotted,
    flat,
    low_rank,
)
from tests.parity import diffsynth_oracle, goldens
from tests.parity.agreement import LATENTS, assert_latents_agree, assert_pixels_agree, deviation
from tests.parity.cases import CASES, cases_of
from tests.parity.diffusers_oracle import DiffusersOracle
from tests.parity.tiny import TinySpec

pytestmark = pytest.mark.oracle
CASE = next(case for case in CASES if case.name == "flux_dev_4")


def in_double_blocks(name: str) -> bool:
    """What diffusers converts at any width: of single blocks it knows only FLUX.1's own."""
    return name.startswith("double_blocks") or name.endswith(("linear2", "modulation.lin"))


def in_blocks(name: str) -> bool:
    return "blocks." in name


def attention(name: str) -> bool:
    return name.startswith("transformer_blocks") and ".attn." in name


DIFFUSERS_LOADS: dict[str, Callable[[FluxSpec], Drawn]] = {
    **{name: LAYOUTS[name] for name in LAYOUTS if name.startswith(("1 ", "8 "))},
    # there, a module without an alpha has another one's (everywhere else its rank), and the last
    # layer's α is taken for that of every single block's layer of the same name, `proj_out`
    "1 diffusers, alpha keys": lambda s: low_rank(
        diffusers, s, dotted("transformer."), A, B, alpha=".alpha", every=1, only=in_blocks
    ),
    "3 kohya": lambda s: low_rank(
        bfl, s, flat("lora_unet_"), DOWN, UP, alpha=".alpha", only=in_double_blocks
    ),
    "4 dotted BFL, down and up": lambda s: low_rank(
        bfl, s, dotted("diffusion_model."), DOWN, UP, alpha=".alpha", only=in_double_blocks
    ),
    "7 OneTrainer": lambda s: low_rank(
        diffusers, s, flat("lora_transformer_"), DOWN, UP, alpha=".alpha", only=attention, every=1
    ),
}
LOW_RANK = [
    name for name in LAYOUTS if not name.startswith(("5", "13")) and "Lo" not in name.split()[-1]
]


@pytest.fixture(scope="module")
def engine(folders: dict[TinySpec, Path]) -> FluxEngine:
    return load_engine(
        folders[CASE.spec], torch_dtype=torch.float32, device="cpu", micro_batch=1, decode_batch=1
    )


@pytest.fixture
def theirs(folders: dict[TinySpec, Path]) -> DiffusersOracle:
    gc.collect()
    return DiffusersOracle(folders[CASE.spec], CASE.spec)


def asked(file: Path, scale: float = 1.0, *, merged: bool | None = None) -> GenerationRequest:
    return replace(CASE.requests[0], loras=(LoraUse(path=str(file), scale=scale, merged=merged),))


@pytest.mark.parametrize("merged", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize("layout", DIFFUSERS_LOADS)
def test_a_layout_that_diffusers_loads_makes_its_picture(
    layout: str, merged: bool, engine: FluxEngine, theirs: DiffusersOracle, tmp_path: Path
) -> None:
    file = DIFFUSERS_LOADS[layout](CASE.spec.flux).save(tmp_path)
    latents, pixels = theirs.generate(CASE.requests[0], [(file, 0.7)])
    (bare,) = engine.generate(CASE.requests[:1])
    (made,) = engine.generate([asked(file, 0.7, merged=merged)])
    assert deviation(made.latents, bare.latents) > 50 * LATENTS
    assert_latents_agree(made.latents[None], latents[None])
    assert_pixels_agree(made.pixels, pixels)
    assert torch.equal(engine.generate(CASE.requests[:1])[0].pixels, bare.pixels)


@pytest.mark.parametrize("layout", LOW_RANK)
def test_what_we_write_diffusers_loads_and_draws(
    layout: str, engine: FluxEngine, theirs: DiffusersOracle, tmp_path: Path
) -> None:
    source = LAYOUTS[layout](CASE.spec.flux).save(tmp_path)
    lora = read_lora(source, Sizes(CASE.spec.flux))
    (file,) = write_lora(lora, tmp_path / "ours.safetensors").files
    latents, _ = theirs.generate(CASE.requests[0], [(file, 1.0)])
    (made,) = engine.generate([asked(source)])
    assert_latents_agree(made.latents[None], latents[None])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_several_at_once_are_diffusers_sum(
    engine: FluxEngine, theirs: DiffusersOracle, tmp_path: Path
) -> None:
    files = [
        LAYOUTS[name](CASE.spec.flux).save(tmp_path / str(n))
        for n, name in enumerate(("1 diffusers, q only", "8 XLabs"))
    ]
    latents, _ = theirs.generate(CASE.requests[0], [(files[0], 0.7), (files[1], -0.4)])
    uses = tuple(LoraUse(path=str(f), scale=s) for f, s in zip(files, (0.7, -0.4), strict=True))
    (made,) = engine.generate([replace(CASE.requests[0], loras=uses)])
    assert_latents_agree(made.latents[None], latents[None])


def test_a_text_encoders_lora_is_diffusers(
    engine: FluxEngine, theirs: DiffusersOracle, tmp_path: Path
) -> None:
    drawn = LAYOUTS["1 diffusers, q only"](CASE.spec.flux)
    width = CASE.spec.clip.width
    for part in ("q_proj", "out_proj"):
        name = f"text_encoder.text_model.encoder.layers.1.self_attn.{part}"
        drawn.tensor(f"{name}.lora_A.weight", 2, width, std=0.3)
        drawn.tensor(f"{name}.lora_B.weight", width, 2, std=0.3)
    file = drawn.save(tmp_path)
    latents, _ = theirs.generate(CASE.requests[0], [(file, 1.0)])
    (made,) = engine.generate([asked(file)])
    assert_latents_agree(made.latents[None], latents[None])


def test_a_file_that_diffusers_saves_is_read(
    engine: FluxEngine, theirs: DiffusersOracle, tmp_path: Path
) -> None:
    model = theirs.parts["transformer"]
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "proj_mlp", "norm_out.linear"],
        alpha_pattern={"transformer_blocks.0.attn.to_q": 2}, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model.add_adapter(config)
    metadata = {"transformer_lora_adapter_metadata": model.peft_config["default"].to_dict()}
    FluxPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=peft.get_peft_model_state_dict(model), **metadata
    )
    latents, _ = theirs.generate(CASE.requests[0])  # the adapter is on
    (made,) = engine.generate([asked(tmp_path / "pytorch_lora_weights.safetensors")])
    assert_latents_agree(made.latents[None], latents[None])


@pytest.mark.parametrize("dora", [False, True])
def test_a_folder_that_peft_saves_is_read(
    dora: bool, engine: FluxEngine, theirs: DiffusersOracle, tmp_path: Path
) -> None:
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_k", "ff.net.2"], use_rslora=True, use_dora=dora,
        rank_pattern={"ff.net.2": 2}, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = peft.get_peft_model(theirs.parts["transformer"], config)
    model.save_pretrained(str(tmp_path))
    latents, _ = theirs.generate(CASE.requests[0])
    (made,) = engine.generate([asked(tmp_path)])
    assert_latents_agree(made.latents[None], latents[None])


def test_a_file_that_we_write_for_peft_is_loaded_by_peft(
    engine: FluxEngine, theirs: DiffusersOracle, tmp_path: Path
) -> None:
    lora = read_lora(LAYOUTS["3 kohya"](CASE.spec.flux).save(tmp_path), Sizes(CASE.spec.flux))
    write_lora(lora, tmp_path / "peft", "peft")
    model = peft.PeftModel.from_pretrained(theirs.parts["transformer"], str(tmp_path / "peft"))
    theirs.parts["transformer"] = model.merge_and_unload()
    latents, _ = theirs.generate(CASE.requests[0])
    (made,) = engine.generate([asked(tmp_path / "lora.safetensors")])
    assert_latents_agree(made.latents[None], latents[None])


@pytest.mark.skipif(
    not diffsynth_oracle.LIBRARY.is_dir(), reason="DiffSynth-Studio is not installed in .oracle"
)
@pytest.mark.parametrize("layout", ["1 diffusers", "6 DiffSynth"])
def test_what_we_write_diffsynth_loads_and_draws(
    layout: str, engine: FluxEngine, tmp_path: Path
) -> None:
    case = next(iter(cases_of("diffsynth", CASE.spec)))
    lora = read_lora(LAYOUTS[layout](CASE.spec.flux).save(tmp_path), Sizes(CASE.spec.flux))
    (file,) = write_lora(lora, tmp_path / "ours.safetensors", "diffsynth").files
    diffsynth_oracle.run(tmp_path / "golden", lora=file)
    wanted = goldens.read(case.name, tmp_path / "golden").latents
    uses = (LoraUse(path=str(tmp_path / "lora.safetensors")),)
    made = engine.generate([replace(request, loras=uses) for request in case.requests])
    assert_latents_agree(torch.stack([one.latents for one in made]), wanted)
