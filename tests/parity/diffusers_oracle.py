"""diffusers' FLUX.1 pipelines on a toy folder, one request at a time, in float32.

Their scheduler carries the published configuration, so the noise levels are theirs. With a picture
to start from, the posterior's mean stands in for their draw from it, which would come from the
generator that the noise comes from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from flux_engine.request import GenerationRequest
from tests.parity import diffusers_layout
from tests.parity.pictures import to_bytes
from tests.parity.tiny import GROUPS, SCALE, SHIFT, TinySpec


def build_transformer(spec: TinySpec, weights: dict[str, Tensor]) -> FluxTransformer2DModel:
    flux = spec.flux
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=flux.channels_in,
        num_layers=flux.double_blocks,
        num_single_layers=flux.single_blocks,
        attention_head_dim=flux.width // flux.heads,
        num_attention_heads=flux.heads,
        joint_attention_dim=flux.text_width,
        pooled_projection_dim=flux.pooled_width,
        guidance_embeds=flux.guidance,
        axes_dims_rope=flux.axes,
    )
    model.load_state_dict(diffusers_layout.transformer(weights))
    return model.eval().requires_grad_(False)


def build_autoencoder(spec: TinySpec, weights: dict[str, Tensor]) -> AutoencoderKL:
    vae = spec.vae
    model = AutoencoderKL(
        block_out_channels=vae.widths,
        down_block_types=("DownEncoderBlock2D",) * len(vae.widths),
        up_block_types=("UpDecoderBlock2D",) * len(vae.widths),
        layers_per_block=vae.encoder_blocks,
        latent_channels=vae.latent_channels,
        norm_num_groups=GROUPS,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    model.load_state_dict(diffusers_layout.autoencoder(weights))
    return model.eval().requires_grad_(False)


def posterior_mean(posterior: DiagonalGaussianDistribution, _: torch.Generator) -> Tensor:
    return posterior.mode()


class DiffusersOracle:
    """Latents (scaled for the transformer) and unclamped pixels of one request, alone."""

    def __init__(self, folder: Path, spec: TinySpec) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        text, text_2 = folder / "text_encoder", folder / "text_encoder_2"
        self.parts = {
            "transformer": build_transformer(spec, load_file(folder / "flux1-tiny.safetensors")),
            "vae": build_autoencoder(spec, load_file(folder / "ae.safetensors")),
            "text_encoder": CLIPTextModel.from_pretrained(text, dtype=torch.float32).eval(),
            "text_encoder_2": T5EncoderModel.from_pretrained(text_2, dtype=torch.float32).eval(),
            "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
            "tokenizer_2": AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
        }

    def scheduler_for(self, request: GenerationRequest) -> FlowMatchEulerDiscreteScheduler:
        config = dict(self.scheduler.config)
        if request.sigma_shift is not None:
            config |= {"shift": request.sigma_shift, "use_dynamic_shifting": False}
        return FlowMatchEulerDiscreteScheduler.from_config(config)

    def generate(
        self, request: GenerationRequest, loras: Sequence[tuple[Path, float]] = ()
    ) -> tuple[Tensor, Tensor]:
        parts = self.parts | {"scheduler": self.scheduler_for(request)}
        asked: dict[str, Any] = {
            "prompt": request.prompt,
            "height": request.height,
            "width": request.width,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.embedded_guidance,
            "max_sequence_length": request.t5_sequence_length,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "latent",
        }
        if request.guided:
            assert request.cfg_scale > 1, "diffusers has no guidance by a factor below one"
            asked["negative_prompt"] = request.negative_prompt
            asked["true_cfg_scale"] = request.cfg_scale
        if request.input_image is None:
            pipe = FluxPipeline(**parts)
        else:
            pipe = FluxImg2ImgPipeline(**parts)
            asked["image"] = Image.fromarray(to_bytes(request.input_image))
            asked["strength"] = request.denoising_strength
        for n, (file, _) in enumerate(loras):
            pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"lora{n}")
        if loras:
            pipe.set_adapters([f"lora{n}" for n in range(len(loras))], [s for _, s in loras])
        pipe.set_progress_bar_config(disable=True)
        mean = mock.patch.object(DiagonalGaussianDistribution, "sample", posterior_mean)
        with torch.inference_mode(), mean:
            packed = pipe(**asked).images
            latents = pipe._unpack_latents(packed, request.height, request.width, 8)
            pixels = pipe.vae.decode(latents / SCALE + SHIFT, return_dict=False)[0]
        return latents[0], pixels[0]
