"""Sample pictures while a model learns: the engine's own loop around the transformer that is
trained, so that they are what a job would make of it."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from batch.training.material import TextsByKey
from batch.training.models import ModelParts
from flux_engine.encode import PictureCoder
from flux_engine.latents import PATCH, pack, position_ids, start_noise, unpack
from flux_engine.models.dit import FluxTransformer
from flux_engine.pictures import to_image
from flux_engine.sampling.denoise import Conditions, denoise, modulation_table
from flux_engine.sampling.schedule import shift_of, sigmas
from flux_engine.sampling.tiling import Tiling
from schemas.training import TrainJob


class Sampler:
    """One picture for each of the job's sample prompts. `job` is resolved."""

    def __init__(
        self, job: TrainJob, dit: FluxTransformer, coder: PictureCoder, texts: TextsByKey,
        parts: ModelParts,
    ) -> None:  # fmt: skip
        self.job, self.dit, self.coder, self.texts = job, dit, coder, texts
        self.timestep_shift = parts.timestep_shift
        self.dtype = getattr(torch, job.torch_dtype)

    def __call__(self) -> Iterator[tuple[str, bytes]]:
        """Prompts with their pictures as PNG; those of one prompt have the same noise each time."""
        for n, prompt in enumerate(self.job.sample_prompts):
            with self._computing():
                latent = self._latent(prompt, self.job.sample_seed + n)
            said = self.job.sampling
            tiling = Tiling(said.tile_size, said.tile_stride) if said.tiled else None
            (pixels,) = self.coder.decode([latent], 1, tiling)
            file = io.BytesIO()
            to_image(pixels).save(file, "PNG")
            yield prompt, file.getvalue()

    def _latent(self, prompt: str, seed: int) -> Tensor:
        said, device = self.job.sampling, self.dit.img_in.weight.device
        assert said.height is not None
        assert said.width is not None
        assert said.num_inference_steps is not None
        factor = self.coder.vae.spec.factor
        height, width = said.height // factor, said.width // factor
        tokens = height // PATCH * (width // PATCH)
        shift = shift_of(said.schedule, tokens, said.sigma_shift, self.timestep_shift)
        levels = sigmas(said.schedule, said.num_inference_steps, shift)
        told = self._told(prompt)
        ids = position_ids(told.text_GTW.shape[1], height, width)
        noise = start_noise(seed, (self.coder.vae.spec.latent_channels, height, width))
        made = denoise(
            self.dit,
            pack(noise[None].to(device)),
            told,
            sigmas=levels,
            table_NGMD=modulation_table(self.dit, levels[:-1].to(device), told),
            rotation_2LR=self.dit.rotation(ids).to(device),
        )
        return unpack(made, height, width)[0].cpu()

    def _told(self, prompt: str) -> Conditions:
        said, device = self.job.sampling, self.dit.img_in.weight.device
        assert said.t5_sequence_length is not None
        prompts = [prompt, *([said.negative_prompt] if said.cfg_scale != 1.0 else [])]
        texts = [self.texts[one, said.t5_sequence_length] for one in prompts]
        guided = len(prompts) > 1
        return Conditions(
            text_GTW=torch.stack([text.t5 for text in texts]).to(device, self.dtype),
            pooled_GP=torch.stack([text.clip for text in texts]).to(device, self.dtype),
            guidance_G=torch.tensor([said.embedded_guidance] * len(prompts), device=device),
            cfg_B=torch.tensor([said.cfg_scale], device=device) if guided else None,
        )

    def _computing(self) -> AbstractContextManager[Any]:
        """Weights that are wider than the job computes in are cast as they are used."""
        weight = self.dit.img_in.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        return torch.autocast(weight.device.type, self.dtype, cache_enabled=False)
