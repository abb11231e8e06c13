"""What each stage of the engine's work takes at once, and what of the weights it has on the card.

Batch shapes belong to an output: `keep` is asked for each that is not given, by name and with the
number that would be chosen here, and answers the one to take.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from flux_engine.batching import Batching, Bucket
from flux_engine.errors import SettingError
from flux_engine.latents import PATCH
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from flux_engine.sampling.kernels import Attention, fastest_attention
from flux_engine.sampling.tiling import Tiling
from flux_engine.vram.card import Card
from flux_engine.vram.estimates import GIB, Machine, Sizes, Weights, Work, of_kind
from flux_engine.vram.placements import Policy, Stays
from flux_engine.vram.planner import Plan, Stage, decode_stage, plan, text_stage
from flux_engine.vram.residency import Residency
from flux_engine.vram.seating import BATCHES
from flux_engine.vram.weights import Images

T = TypeVar("T", int, str)


class Keep(Protocol):
    """Asked for a choice by name and with the one that would be made here."""

    def __call__(self, name: str, value: T) -> T: ...


EVERYWHERE = Stage(resident={})
LESS = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the memory, where it ran out


def as_chosen(name: str, value: T) -> T:  # noqa: ARG001
    return value


class Planning:
    """Answers for one engine; without a card, batches follow a rule of the picture's size."""

    def __init__(
        self,
        batching: Batching,
        *,
        cell: int,
        machine: Machine | None = None,
        weights: Weights | None = None,
        sizes: Sizes | None = None,
        stays: Mapping[str, Stays] | None = None,
        heads: tuple[int, int] = (1, 1),
    ) -> None:
        self.batching, self.cell = batching, cell
        self.machine, self.weights, self.sizes = machine, weights, sizes
        self.heads, self.head_width = heads
        self._measured: dict[str, str] = {}
        self._kept: dict[str, int] = {}
        self._tight: dict[Bucket, Machine] = {}  # of rows that memory has run out for
        self.stays = stays or {}
        self.passing = frozenset(name for name, how in self.stays.items() if how == "never")
        self.keep: Keep = as_chosen
        self._plan = cache(self._planned)

    def text(self, length: int) -> Stage:
        if self.machine is None or self.weights is None or self.sizes is None:
            return EVERYWHERE
        passing = "t5" in self.passing
        batch = self.text_batch(length)
        stage, _ = text_stage(
            self.machine, self.weights, self.sizes, length, batch, passing=passing
        )
        self._check_that_all_stay("t5", stage)
        return stage

    def text_batch(self, length: int) -> int:
        """Prompts of so many T5 tokens that the encoders take at once."""
        if self.batching.text:
            return self.batching.text
        chosen, passing = self.batching.text_batch, "t5" in self.passing
        if self.machine is not None and self.weights and self.sizes:
            chosen = text_stage(
                self.machine, self.weights, self.sizes, length, None, passing=passing
            )[1]
        return self.keep(f"text_batch {length} tokens", chosen)

    def _check_that_all_stay(self, model: str, stage: Stage) -> None:
        """SettingError if weights that are to be at home on the card do not fit on it."""
        if self.stays.get(model) == "always" and stage.slots and self.machine and self.weights:
            blocks = of_kind(self.weights, model, "block")
            gone = sum(n for name, n in blocks.items() if name not in stage.resident[model])
            if gone:
                raise SettingError(
                    f"{model} is to be offloaded to the card itself, and {gone / GIB:.1f} GiB of "
                    f"its blocks do not fit into the {self.machine.memory / GIB:.1f} GiB that may "
                    f"be used on {self.machine.name}; offload_device: cpu lets them pass through"
                )

    def micro_batch(self, bucket: Bucket) -> int:
        chosen = self.batching.micro or self._kept_micro_batch(bucket)
        if self.machine is not None:
            self.plan(bucket, chosen)  # raises where another card has chosen what is too much here
        return chosen

    def _kept_micro_batch(self, bucket: Bucket) -> int:
        """The first one that is chosen for such rows, however many outfits later ones wear."""
        name = f"micro_batch {_named(bucket)}"
        if name not in self._kept:
            if self.machine is None:
                size = self.batching.micro_batch(self._tokens(bucket.height, bucket.width))
            else:
                size = self.plan(bucket).micro_batch
            self._kept[name] = self.keep(name, size)
        return self._kept[name]

    def outfits(self, bucket: Bucket) -> int:
        """How many LoRA outfits may stand beside the weights in a micro-batch: where there is no
        room for more, it is filled up with copies, which changes no bit of a row."""
        if self.machine is None:
            return bucket.worn.outfits
        return self.plan(bucket, self.micro_batch(bucket)).work.worn.outfits

    def decode_batch(self, height: int, width: int, tiling: Tiling | None) -> int:
        """Pictures that the autoencoder takes at once, either way."""
        if self.batching.decode:
            return self.batching.decode
        chosen = self.batching.decode_batch(height, width)
        if self.machine is not None and self.weights and self.sizes:
            work = self._picture(height, width, tiling)
            chosen = decode_stage(self.machine, self.weights, work, self.sizes, None)[1]
        tiles = f" tiles {tiling.size}" if tiling else ""
        return self.keep(f"decode_batch {height}x{width}{tiles}", chosen)

    def decode(self, height: int, width: int, tiling: Tiling | None) -> Stage:
        if self.machine is None or self.weights is None or self.sizes is None:
            return EVERYWHERE
        work = self._picture(height, width, tiling)
        batch = self.decode_batch(height, width, tiling)
        return decode_stage(self.machine, self.weights, work, self.sizes, batch)[0]

    def denoise(self, bucket: Bucket) -> Stage:
        if self.machine is None:
            return EVERYWHERE
        stage = self.plan(bucket, self.micro_batch(bucket)).denoise
        self._check_that_all_stay("dit", stage)
        return stage

    def limit(self, bucket: Bucket) -> float:
        """Bytes of the card that such rows are planned for."""
        found = self._tight.get(bucket, self.machine)
        return math.inf if found is None else found.memory

    def shrink(self, bucket: Bucket) -> bool:
        """Plan for so much less memory that fewer weights stay on the card while such rows are
        denoised; False if none can go. Other rows' plans are as they were."""
        if self.machine is None:
            return False
        before, stays = self._tight.get(bucket, self.machine), self.denoise(bucket).resident
        for share in LESS:
            self._tight[bucket] = replace(before, memory=int(share * before.memory))
            self._plan.cache_clear()
            try:
                if self.denoise(bucket).resident != stays:
                    return True
            except SettingError:
                break
        self._tight[bucket] = before
        self._plan.cache_clear()
        return False

    def attention(
        self, bucket: Bucket, asked: Attention, dtype: torch.dtype, device: torch.device
    ) -> str:
        """The back end for micro-batches of this kind; what is measured is, once for an output."""
        if asked != "measured":
            return asked
        name = f"attention {_named(bucket)}"
        if name not in self._measured:
            rows = self.micro_batch(bucket) * (1 + bucket.guided)
            shape = (rows, self.heads, self._work(bucket).tokens, self.head_width)
            self._measured[name] = self.keep(name, fastest_attention(shape, dtype, device))
        return self._measured[name]

    def together(self, bucket: Bucket) -> bool:
        """Whether pictures can be decoded while the transformer is on the card."""
        return self.machine is None or self.plan(bucket, self.micro_batch(bucket)).together

    def plan(self, bucket: Bucket, micro_batch: int | None = None) -> Plan:
        return self._plan(bucket, micro_batch)

    def _planned(self, bucket: Bucket, micro_batch: int | None) -> Plan:
        if self.machine is None or self.weights is None or self.sizes is None:
            raise SettingError("there is no card to plan for")
        size = micro_batch or self.batching.micro
        machine = self._tight.get(bucket, self.machine)
        for outfits in range(min(bucket.worn.outfits, size or BATCHES[-1]), 1, -1):
            try:
                return self._planned_for(machine, bucket, size, outfits)
            except SettingError:  # fewer may fit
                continue
        return self._planned_for(machine, bucket, size, 1)

    def _planned_for(
        self, machine: Machine, bucket: Bucket, micro_batch: int | None, outfits: int
    ) -> Plan:
        assert self.weights is not None
        assert self.sizes is not None
        work = self._work(replace(bucket, worn=replace(bucket.worn, outfits=outfits)))
        return plan(
            machine,
            self.weights,
            work,
            self.sizes,
            text_batch=self.batching.text,
            micro_batch=micro_batch,
            decode_batch=self.batching.decode,
            least=self.batching.micro_batch(work.image_tokens),
            passing=self.passing,
        )

    def _work(self, bucket: Bucket) -> Work:
        return Work(
            height=bucket.height,
            width=bucket.width,
            image_tokens=self._tokens(bucket.height, bucket.width),
            text_tokens=bucket.t5_sequence_length,
            steps=bucket.steps,
            sides=1 + bucket.guided,
            worn=bucket.worn,
        )

    def _picture(self, height: int, width: int, tiling: Tiling | None) -> Work:
        """What the autoencoder has before it at once: a picture, or a tile of it."""
        side = max(height, width) if tiling is None else tiling.size * self.cell // PATCH
        height, width = min(height, side), min(width, side)
        return Work(height=height, width=width, image_tokens=0, text_tokens=0, steps=0)

    def _tokens(self, height: int, width: int) -> int:
        return (height // self.cell) * (width // self.cell)


def held(
    models: Mapping[str, nn.Module],
    batching: Batching,
    card: Card,
    machine: Machine,
    *,
    dtype: torch.dtype,
    images: Images | None = None,
    policies: Mapping[str, Policy] | None = None,
) -> tuple[Residency, Planning]:
    """An engine's models held for a card: what fits on it, and a ring for the rest."""
    policies = policies or {}
    dit, vae = models["dit"], models["vae"]
    assert isinstance(dit, FluxTransformer)
    assert isinstance(vae, AutoEncoder)
    residency = Residency(
        models,
        card,
        images=images,
        limit=machine.memory,
        on_disk=frozenset(name for name, policy in policies.items() if policy.on_disk),
    )
    planning = Planning(
        batching,
        cell=vae.spec.factor * PATCH,
        machine=machine,
        weights=residency.sizes(),
        sizes=sizes_of(dit, vae, models["t5"], dtype.itemsize),
        stays={name: policy.stays for name, policy in policies.items()},
        heads=heads_of(dit),
    )
    return residency, planning


def heads_of(dit: FluxTransformer) -> tuple[int, int]:
    """How many, and how wide."""
    return dit.spec.heads, dit.spec.width // dit.spec.heads


def sizes_of(dit: FluxTransformer, vae: AutoEncoder, t5: Any, itemsize: int) -> Sizes:
    """Widths that estimates are made of, for computing in numbers of so many bytes."""
    stored = (*dit.single_blocks, *dit.double_blocks)[0]
    return Sizes(
        width=dit.spec.width,
        inner=dit.spec.inner,
        rows=sum(part.MODULATIONS for part in dit.modulated_parts()),
        channels=dit.spec.channels_in,
        itemsize=itemsize,
        stored=min(weight.itemsize for weight in stored.parameters()),
        text_width=t5.config.d_model,
        text_inner=t5.config.d_ff,
        text_heads=t5.config.num_heads,
        pixel_width=vae.spec.widths[0],
    )


def _named(bucket: Bucket) -> str:
    """All of a bucket that a batch shape may depend on."""
    sides = " guided" if bucket.guided else ""
    worn = f" {bucket.loras}" if bucket.worn.factors else ""
    return f"{bucket.height}x{bucket.width} text {bucket.t5_sequence_length}{sides}{worn}"
