"""The front door of DiffSynth-Studio's FLUX pipeline, over our engine: one call, one picture.

Its quick start runs with only the import changed. For many pictures use the engine itself, or a
job: both batch.
"""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import nn

from flux_engine.assembly import choose_device, load_engine
from flux_engine.engine import FluxEngine
from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxTransformer
from flux_engine.pictures import to_image, to_pixels
from flux_engine.request import GenerationRequest, LoraUse, Schedule
from flux_engine.vram.placements import STATES, Placements
from flux_engine.weights.hub import HubName
from flux_engine.weights.lora.report import Matched, summary
from flux_engine.weights.source import ModelSource

logger = logging.getLogger(__name__)


@dataclass
class ModelConfig:
    """One model file or its shards: a path, or a pattern in a hub's repository.

    The eight placement fields are DiffSynth-Studio's vocabulary of weight states, from which a plan
    is made: see `vram/placements.py`. A state in float8_e4m3fn keeps the weights of the model's
    blocks in eight bits, with a scale a row.
    """

    path: str | Sequence[str] | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    download_source: HubName = "modelscope"
    _: KW_ONLY
    offload_dtype: torch.dtype | str | None = None
    offload_device: str | torch.device | None = None
    onload_dtype: torch.dtype | str | None = None
    onload_device: str | torch.device | None = None
    preparing_dtype: torch.dtype | str | None = None
    preparing_device: str | torch.device | None = None
    computation_dtype: torch.dtype | None = None
    computation_device: str | torch.device | None = None

    def source(self) -> ModelSource:
        """Where its files come from; a pattern that ends in a slash names a folder's files."""
        pattern = self.origin_file_pattern
        if pattern is not None and pattern.endswith("/"):
            pattern += "*"
        if self.path is not None and not isinstance(self.path, str):
            raise SettingError("path is a list: give a folder or a glob that names the shards")
        return ModelSource(self.path, self.model_id, pattern, self.download_source)

    def placements(self) -> Placements:
        return Placements(
            **{
                f"{state}_{part}": words(getattr(self, f"{state}_{part}"))
                for state in STATES
                for part in ("dtype", "device")
            }
        )


def words(value: torch.dtype | torch.device | str | None) -> str | None:
    """A type's name, or a device's kind."""
    return None if value is None else str(value).removeprefix("torch.").partition(":")[0]


class FluxImagePipeline:
    """Prompts into pictures, one at a time."""

    def __init__(self, engine: FluxEngine) -> None:
        self.engine = engine
        self.loras: list[LoraUse] = []

    @property
    def dit(self) -> FluxTransformer:
        return self.engine.dit

    @classmethod
    def from_pretrained(
        cls,
        torch_dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "auto",
        model_configs: Sequence[ModelConfig] = (),
        tokenizer_1_config: ModelConfig | None = None,
        tokenizer_2_config: ModelConfig | None = None,
        vram_limit: float | None = None,
    ) -> Self:
        """Load the models named by `model_configs`; tokenizers are FLUX.1-dev's unless given."""
        place = choose_device(str(device))
        tokenizers = [
            config.source() if config else None
            for config in (tokenizer_1_config, tokenizer_2_config)
        ]
        return cls(
            load_engine(
                [config.source() for config in model_configs],
                torch_dtype=torch_dtype,
                device=str(place),
                tokenizer_1=tokenizers[0],
                tokenizer_2=tokenizers[1],
                vram_limit=vram_limit,
                placements=[config.placements() for config in model_configs],
                text_batch=1,  # one picture a call: larger batches would be filled with copies
                micro_batch=1,
                decode_batch=1,
            )
        )

    def load_lora(
        self,
        module: nn.Module,
        lora_config: "ModelConfig | str | Path",
        alpha: float = 1.0,
        *,
        hotload: bool | None = None,
    ) -> list[Matched]:
        """Use a LoRA from now on, `alpha` times as strong as its file says; several add up.

        `module` is a model of this pipeline (the file itself says which of its layers it changes).
        `hotload` True puts it beside the weights, False merges it into a copy of them; None does
        the former with what is low-rank. Answers what it changes and how much. SourceError,
        CheckpointError or SettingError, and nothing is changed, if it cannot be used.
        """
        text = self.engine.text.models
        if module not in (self.engine.dit, text.clip, text.t5):
            raise SettingError(f"{type(module).__name__} is no model of this pipeline")
        if isinstance(lora_config, ModelConfig):
            source = lora_config.source()
        else:
            source = ModelSource(str(lora_config))
        use = LoraUse(
            path=source.path,
            model_id=source.model_id,
            origin_file_pattern=source.origin_file_pattern,
            download_source=source.download_source,
            scale=alpha,
            merged=None if hotload is None else not hotload,
        )
        matched = self.engine.loras.describe(use, self.engine.residency)
        logger.info("LoRA in use", extra={"lora": use.name, **summary(matched)})
        self.loras.append(use)
        return matched

    def clear_lora(self) -> int:
        """Use no LoRA any more, and say how many were in use; pictures are as before, bit by
        bit."""
        count = len(self.loras)
        self.loras.clear()
        return count

    def __call__(
        self,
        prompt: str = "",
        negative_prompt: str = "",
        cfg_scale: float = 1.0,
        embedded_guidance: float = 3.5,
        t5_sequence_length: int = 512,
        input_image: Image.Image | None = None,
        denoising_strength: float = 1.0,
        height: int = 1024,
        width: int = 1024,
        seed: int | None = None,
        rand_device: str = "cpu",
        sigma_shift: float | None = None,
        num_inference_steps: int = 30,
        *,
        tiled: bool = False,
        tile_size: int = 128,
        tile_stride: int = 64,
        progress_bar_cmd: Callable[[Iterable[int]], Iterable[int]] | None = None,
        schedule: Schedule = "diffsynth",
        **unknown: Any,
    ) -> Image.Image:
        """One picture. Without a seed one is drawn, and logged.

        `schedule` is DiffSynth-Studio's by default here, so that a seed gives the picture it gave
        there. Sizes that are no multiples of 16 are refused, and an `input_image` of another size
        is scaled to cover the picture and cut about its centre.
        """
        if unknown:
            raise SettingError(f"no such parameter here: {', '.join(sorted(unknown))}")
        if seed is None:
            seed = random.SystemRandom().randrange(2**32)
            logger.info("seed drawn: %s", seed)
        request = GenerationRequest(
            prompt=prompt,
            seed=seed,
            negative_prompt=negative_prompt,
            cfg_scale=cfg_scale,
            embedded_guidance=embedded_guidance,
            height=height,
            width=width,
            rand_device=rand_device,
            num_inference_steps=num_inference_steps,
            t5_sequence_length=t5_sequence_length,
            schedule=schedule,
            sigma_shift=sigma_shift,
            denoising_strength=denoising_strength,
            input_image=None if input_image is None else to_pixels(input_image, height, width),
            tiled=tiled,
            tile_size=tile_size,
            tile_stride=tile_stride,
            loras=tuple(self.loras),
        )
        made = self.engine.generate([request], *([progress_bar_cmd] if progress_bar_cmd else []))
        return to_image(made[0].picture)
