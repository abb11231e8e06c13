import inspect
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flux_engine import FluxImagePipeline, ModelConfig, RequestError, SettingError, SourceError
from flux_engine.defaults import model_folder
from flux_engine.pictures import to_image
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import dense_file, file_of
from tests.flux_engine.asking import asked, picture

FOLDER = model_folder("flux-shapes")
FILES = (
    "flux1-shapes.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
    "ae.safetensors",
)
SMALL: dict[str, Any] = {
    "height": 64, "width": 64, "num_inference_steps": 2, "t5_sequence_length": 24,
}  # fmt: skip


@pytest.fixture
def pipe(shapes_engine: ShapesEngine) -> FluxImagePipeline:
    return FluxImagePipeline(shapes_engine())


def test_diffsynths_quick_start_runs_with_another_import() -> None:
    vram_config: dict[str, Any] = {
        "offload_dtype": torch.float8_e4m3fn,
        "offload_device": "cpu",
        "onload_dtype": torch.float8_e4m3fn,
        "onload_device": "cpu",
        "preparing_dtype": torch.float8_e4m3fn,
        "preparing_device": "cpu",
        "computation_dtype": torch.bfloat16,
        "computation_device": "cpu",
    }
    pipe = FluxImagePipeline.from_pretrained(
        torch_dtype=torch.bfloat16,
        device="cpu",
        model_configs=[ModelConfig(path=str(FOLDER / name), **vram_config) for name in FILES],
        vram_limit=1.0,
    )
    image = pipe(prompt="a red circle", seed=0, **SMALL)
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert image.tobytes() == pipe("a red circle", seed=0, **SMALL).tobytes()
    assert image.tobytes() != pipe("a red circle", seed=1, **SMALL).tobytes()


def test_one_picture_costs_one_row(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pipe = FluxImagePipeline.from_pretrained(
            torch.float32,
            "cpu",
            [
                ModelConfig(str(FOLDER / name), onload_dtype=torch.float32, offload_dtype="disk")
                for name in FILES
            ],
        )
    assert caplog.records == []  # weights are stored as asked
    (made,) = pipe.engine.generate([asked()])
    assert made.micro_batch == 1
    assert pipe.engine.batching.decode_batch(64, 64) == pipe.engine.text.batch(512) == 1


def test_weights_in_eight_bits_are_approximate_and_say_so() -> None:
    configs = [ModelConfig(str(FOLDER / name)) for name in FILES]
    exact = FluxImagePipeline.from_pretrained(torch.float32, "cpu", configs)
    for config in configs:
        config.offload_dtype, config.offload_device = torch.float8_e4m3fn, torch.device("cpu")
    pipe = FluxImagePipeline.from_pretrained(torch.float32, "cpu", configs)
    (near,), (made,) = exact.engine.generate([asked()]), pipe.engine.generate([asked()])
    assert (near.approximate, made.approximate) == ("", "fp8_weights(clip+dit+t5)")
    apart = (made.latents - near.latents).norm() / near.latents.norm()
    assert 0 < apart < 0.1
    assert len(pipe.engine.deviation.measured) == 1  # of the transformer's bits, not of the text's


def test_the_picture_is_the_engines_for_the_same_request(pipe: FluxImagePipeline) -> None:
    image = pipe("two stars", "blurry", 2.0, 2.5, 24, None, 1.0, 64, 80, 7, "cpu", 1.5, 2)
    (made,) = pipe.engine.generate(
        [
            asked(
                "two stars", 7, negative_prompt="blurry", cfg_scale=2.0, embedded_guidance=2.5,
                t5_sequence_length=24, width=80, sigma_shift=1.5, schedule="diffsynth",
            )
        ]
    )  # fmt: skip
    assert image.size == (80, 64)
    assert image.tobytes() == to_image(made.pixels).tobytes()


def test_names_order_and_defaults_are_diffsynths() -> None:
    parameters = inspect.signature(FluxImagePipeline.__call__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert list(defaults.items())[:13] == [
        ("prompt", ""),
        ("negative_prompt", ""),
        ("cfg_scale", 1.0),
        ("embedded_guidance", 3.5),
        ("t5_sequence_length", 512),
        ("input_image", None),
        ("denoising_strength", 1.0),
        ("height", 1024),
        ("width", 1024),
        ("seed", None),
        ("rand_device", "cpu"),
        ("sigma_shift", None),
        ("num_inference_steps", 30),
    ]
    assert (defaults["tiled"], defaults["tile_size"], defaults["tile_stride"]) == (False, 128, 64)


@pytest.mark.parametrize(
    "values",
    [
        {"promt": "an owl"},
        {"kontext_images": None},
        {"controlnet_inputs": []},
        {"tea_cache_l1_thresh": 0.2, "eligen_entity_prompts": ["an owl"]},
    ],
)
def test_a_parameter_that_is_not_here_is_named(
    pipe: FluxImagePipeline, values: dict[str, Any]
) -> None:
    with pytest.raises(SettingError, match=", ".join(sorted(values))):
        pipe("an owl", **values)


def test_what_follows_the_base_parameters_has_to_be_named(pipe: FluxImagePipeline) -> None:
    images = [Image.new("RGB", (64, 64))]  # kontext_images, in DiffSynth's order
    values: list[Any] = ["", "", 1.0, 3.5, 24, None, 1.0, 64, 64, 0, "cpu", None, 2, images]
    with pytest.raises(TypeError, match="positional"):
        pipe(*values)


def test_a_seed_is_drawn_and_told_when_none_is_given(
    pipe: FluxImagePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="flux_engine.pipeline"):
        image = pipe("an owl", **SMALL)
    (record,) = caplog.records
    (seed,) = record.args  # type: ignore[misc]
    assert isinstance(seed, int)
    assert pipe("an owl", seed=seed, **SMALL).tobytes() == image.tobytes()


def test_a_picture_of_another_size_is_covered_and_cut(pipe: FluxImagePipeline) -> None:
    wide = to_image(picture(0, 64, 128))
    cut = wide.crop((32, 0, 96, 64))
    values = SMALL | {"seed": 0, "denoising_strength": 0.5}
    assert pipe(input_image=wide, **values).tobytes() == pipe(input_image=cut, **values).tobytes()


def test_progress_can_be_watched(pipe: FluxImagePipeline) -> None:
    seen: list[list[int]] = []

    def bar(steps: Iterable[int]) -> Iterable[int]:
        seen.append(list(steps))
        return steps

    pipe(seed=0, progress_bar_cmd=bar, **SMALL)
    assert seen == [[0, 1]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"height": 70}, "height 70"),
        ({"tiled": True, "tile_stride": 200}, "tile_stride is 200; allowed are 1 to tile_size 128"),
        ({"denoising_strength": 2.0}, "denoising_strength is 2.0"),
        ({"schedule": "karras"}, "schedule is 'karras'"),
    ],
)
def test_a_value_out_of_range_is_refused(
    pipe: FluxImagePipeline, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        pipe(seed=0, **(SMALL | values))


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"computation_dtype": torch.float16},
            "computation_dtype is float16; allowed here: bf",
        ),
        ({"computation_device": "xpu"}, "computation_device is xpu; allowed here: "),
    ],
)
def test_computing_otherwise_than_the_pipeline_is_refused(
    values: dict[str, Any], told: str, device: str
) -> None:
    config = ModelConfig(path="never read", **values)
    with pytest.raises(SettingError, match=told):
        FluxImagePipeline.from_pretrained(torch.bfloat16, device, [config])


def test_a_config_names_files_as_diffsynths_does() -> None:
    source = ModelConfig("models/ae.safetensors").source()
    assert (source.path, source.model_id) == ("models/ae.safetensors", None)
    folder = ModelConfig(model_id="a/b", origin_file_pattern="tokenizer/").source()
    assert (folder.origin_file_pattern, folder.download_source) == ("tokenizer/*", "modelscope")
    with pytest.raises(SettingError, match="path is a list: give a folder or a glob"):
        ModelConfig(path=["1.safetensors", "2.safetensors"]).source()
    with pytest.raises(SettingError, match="give exactly one"):
        ModelConfig().source()


def test_tokenizers_can_be_named(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(FOLDER / name)
    for name in ("text_encoder", "text_encoder_2"):
        (tmp_path / name / "config.json").symlink_to(FOLDER / name / "config.json")
    pipe = FluxImagePipeline.from_pretrained(
        torch.float32,
        "cpu",
        [ModelConfig(str(tmp_path / name)) for name in FILES],
        ModelConfig(str(FOLDER / "tokenizer")),
        ModelConfig(str(FOLDER / "tokenizer_2" / "*.json")),
    )
    assert pipe("an owl", seed=0, **SMALL).size == (64, 64)


def test_loras_are_worn_until_they_are_cleared(pipe: FluxImagePipeline, tmp_path: Path) -> None:
    file = file_of(tmp_path, pipe.engine)
    before = pipe("a red circle", seed=0, **SMALL).tobytes()
    matched = pipe.load_lora(pipe.dit, ModelConfig(path=str(file)), alpha=0.5)
    assert {line.role for line in matched} == {"dit"}
    half = pipe("a red circle", seed=0, **SMALL).tobytes()
    pipe.load_lora(pipe.dit, str(file), 0.5, hotload=False)
    whole = pipe("a red circle", seed=0, **SMALL).tobytes()
    assert len({before, half, whole}) == 3
    assert pipe.clear_lora() == 2
    assert pipe("a red circle", seed=0, **SMALL).tobytes() == before
    assert pipe.clear_lora() == 0


def test_a_lora_that_cannot_be_used_is_refused_at_once(
    pipe: FluxImagePipeline, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="no such file"):
        pipe.load_lora(pipe.dit, str(tmp_path / "absent.safetensors"))
    with pytest.raises(SettingError, match="Linear is no model of this pipeline"):
        pipe.load_lora(torch.nn.Linear(1, 1), str(file_of(tmp_path, pipe.engine)))
    with pytest.raises(SettingError, match="has to be merged"):
        pipe.load_lora(pipe.dit, str(dense_file(tmp_path, pipe.engine)), hotload=True)
    assert pipe.loras == []
