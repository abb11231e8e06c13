"""DiffSynth-Studio's FLUX.1 pipeline at toy width; to be imported only where it is installed.

Its model classes fix the published widths in their constructors and nowhere else: they are built
here without those, from DiffSynth's own parts, and filled through DiffSynth's own converters.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from diffsynth.models.flux_dit import (
    AdaLayerNormContinuous,
    FluxDiT,
    FluxJointTransformerBlock,
    FluxSingleTransformerBlock,
    RoPEEmbedding,
)
from diffsynth.models.flux_text_encoder_clip import CLIPEncoderLayer, FluxTextEncoderClip
from diffsynth.models.flux_text_encoder_t5 import FluxTextEncoderT5
from diffsynth.models.flux_vae import (
    DownSampler,
    FluxVAEDecoder,
    FluxVAEEncoder,
    ResnetBlock,
    UpSampler,
    VAEAttentionBlock,
)
from diffsynth.models.general_modules import TimestepEmbeddings
from diffsynth.pipelines.flux_image import FluxImagePipeline
from diffsynth.utils.state_dict_converters.flux_dit import FluxDiTStateDictConverter
from diffsynth.utils.state_dict_converters.flux_text_encoder_clip import (
    FluxTextEncoderClipStateDictConverter,
)
from diffsynth.utils.state_dict_converters.flux_text_encoder_t5 import (
    FluxTextEncoderT5StateDictConverter,
)
from diffsynth.utils.state_dict_converters.flux_vae import (
    FluxVAEDecoderStateDictConverter,
    FluxVAEEncoderStateDictConverter,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from flux_engine.request import GenerationRequest
from tests.parity.pictures import to_bytes
from tests.parity.tiny import EPS, GROUPS, SCALE, SHIFT, THETA, TinySpec

Module = TypeVar("Module", bound=nn.Module)


def assembled(kind: type[Module], **parts: object) -> Module:
    """A `kind` made of `parts`; its constructor is left out."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def build_transformer(spec: TinySpec) -> FluxDiT:
    flux = spec.flux
    width, heads = flux.width, flux.heads
    return assembled(
        FluxDiT,
        pos_embedder=RoPEEmbedding(width, THETA, list(flux.axes)),
        time_embedder=TimestepEmbeddings(256, width),
        guidance_embedder=TimestepEmbeddings(256, width) if flux.guidance else None,
        pooled_text_embedder=nn.Sequential(
            nn.Linear(flux.pooled_width, width), nn.SiLU(), nn.Linear(width, width)
        ),
        context_embedder=nn.Linear(flux.text_width, width),
        x_embedder=nn.Linear(flux.channels_in, width),
        blocks=nn.ModuleList(
            FluxJointTransformerBlock(width, heads) for _ in range(flux.double_blocks)
        ),
        single_blocks=nn.ModuleList(
            FluxSingleTransformerBlock(width, heads) for _ in range(flux.single_blocks)
        ),
        final_norm_out=AdaLayerNormContinuous(width),
        final_proj_out=nn.Linear(width, flux.channels_out),
        input_dim=flux.channels_in,
    )


def residuals(widths: Sequence[int]) -> list[nn.Module]:
    """A residual block from each width to the next."""
    return [ResnetBlock(c_in, c_out, groups=GROUPS, eps=EPS) for c_in, c_out in pairwise(widths)]


def middle(width: int) -> list[nn.Module]:
    before, after = residuals([width] * 3)
    attention = VAEAttentionBlock(1, width, width, 1, norm_num_groups=GROUPS, eps=EPS)
    return [before, attention, after]


def half(kind: type[Module], blocks: list[nn.Module], ends: tuple[int, int, int, int]) -> Module:
    c_in, first, last, c_out = ends
    return assembled(
        kind,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        conv_in=nn.Conv2d(c_in, first, 3, padding=1),
        blocks=nn.ModuleList(blocks),
        conv_norm_out=nn.GroupNorm(GROUPS, last, eps=EPS),
        conv_act=nn.SiLU(),
        conv_out=nn.Conv2d(last, c_out, 3, padding=1),
    )


def build_encoder(spec: TinySpec) -> FluxVAEEncoder:
    widths, latent = spec.vae.widths, spec.vae.latent_channels
    blocks: list[nn.Module] = []
    for before, width in pairwise((widths[0], *widths)):
        if blocks:
            blocks.append(DownSampler(before, padding=0, extra_padding=True))
        blocks += residuals([before] + [width] * spec.vae.encoder_blocks)
    return half(FluxVAEEncoder, blocks + middle(widths[-1]), (3, widths[0], widths[-1], 2 * latent))


def build_decoder(spec: TinySpec) -> FluxVAEDecoder:
    widths = spec.vae.widths[::-1]
    blocks = middle(widths[0])
    for i, (before, width) in enumerate(pairwise((widths[0], *widths))):
        if i:
            blocks.append(UpSampler(before))
        blocks += residuals([before] + [width] * spec.vae.decoder_blocks)
    return half(FluxVAEDecoder, blocks, (spec.vae.latent_channels, widths[0], widths[-1], 3))


def build_clip(spec: TinySpec, vocabulary: int) -> FluxTextEncoderClip:
    clip = spec.clip
    model = FluxTextEncoderClip(embed_dim=clip.width, vocab_size=vocabulary, num_encoder_layers=0)
    model.encoders.extend(
        CLIPEncoderLayer(
            clip.width, clip.inner, num_heads=clip.heads, head_dim=clip.width // clip.heads
        )
        for _ in range(clip.layers)
    )
    return model


def build_t5(config: T5Config) -> FluxTextEncoderT5:
    model = FluxTextEncoderT5.__new__(FluxTextEncoderT5)
    T5EncoderModel.__init__(model, config)
    return model


class DiffSynthOracle:
    """Latents (scaled for the transformer) and unclamped pixels of one request, alone."""

    def __init__(self, folder: Path, spec: TinySpec) -> None:
        pipe = FluxImagePipeline(device="cpu", torch_dtype=torch.float32)
        pipe.tokenizer_1 = AutoTokenizer.from_pretrained(folder / "tokenizer")
        pipe.tokenizer_2 = AutoTokenizer.from_pretrained(folder / "tokenizer_2")
        pipe.dit = build_transformer(spec)
        pipe.vae_encoder, pipe.vae_decoder = build_encoder(spec), build_decoder(spec)
        pipe.text_encoder_1 = build_clip(spec, len(pipe.tokenizer_1))
        pipe.text_encoder_2 = build_t5(T5Config.from_pretrained(folder / "text_encoder_2"))
        autoencoder = load_file(folder / "ae.safetensors")
        for model, convert, weights in (
            (pipe.dit, FluxDiTStateDictConverter, load_file(folder / "flux1-tiny.safetensors")),
            (pipe.vae_encoder, FluxVAEEncoderStateDictConverter, autoencoder),
            (pipe.vae_decoder, FluxVAEDecoderStateDictConverter, autoencoder),
            (
                pipe.text_encoder_1,
                FluxTextEncoderClipStateDictConverter,
                load_file(folder / "text_encoder" / "model.safetensors"),
            ),
            (
                pipe.text_encoder_2,
                FluxTextEncoderT5StateDictConverter,
                load_file(folder / "text_encoder_2" / "model.safetensors"),
            ),
        ):
            model.load_state_dict(convert(weights))
        pipe.eval().requires_grad_(False)
        pipe.vae_output_to_image = lambda pixels: pixels  # theirs ends in whole 8-bit levels
        pipe.vae_decoder.register_forward_pre_hook(self._see)
        self.pipe = pipe
        self.latents = torch.empty(0)

    def _see(self, decoder: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.latents = arguments[0].clone()

    def generate(self, request: GenerationRequest) -> tuple[Tensor, Tensor]:
        picture = request.input_image
        pixels = self.pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            cfg_scale=request.cfg_scale,
            embedded_guidance=request.embedded_guidance,
            t5_sequence_length=request.t5_sequence_length,
            input_image=None if picture is None else to_bytes(picture),
            denoising_strength=1.0 if picture is None else request.denoising_strength,
            height=request.height,
            width=request.width,
            seed=request.seed,
            sigma_shift=request.sigma_shift,
            num_inference_steps=request.num_inference_steps,
            progress_bar_cmd=iter,
        )
        return self.latents[0], pixels[0].clone()
