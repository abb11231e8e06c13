"""What a teacher is asked about a picture: at which noise levels, with which guidance, and the
answers put together again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from batch.targets.layout import tap_column
from batch.targets.noise import derived, hash_of, noise_of
from flux_engine.request import GenerationRequest
from flux_engine.teacher import Answer, Query
from flux_engine.training.loss import noised
from schemas.targets import FeatureTarget, Levels, VelocityTarget

Asking = VelocityTarget | FeatureTarget


@dataclass(frozen=True)
class Question:
    """One query about a row: which of its noise levels, and which guidance (−1: the negative
    prompt)."""

    row: int
    level: int
    guidance: int


@dataclass(frozen=True)
class Levelled:
    """A picture's latents as they will be stored, its noise levels, and the keys of their noise."""

    latent: Tensor
    t: tuple[float, ...]
    seeds: tuple[int, ...]
    guidances: tuple[float, ...]
    hashes: list[str] = field(default_factory=list)


def levelled(target: Asking, name: str, latent: Tensor, usual: float, dtype: str) -> Levelled:
    """The questions' common part for a row; `name` (with its seed) decides what is drawn, `usual`
    is its own guidance, `dtype` the type in which its latents will be stored."""
    given = target.guidance if isinstance(target, VelocityTarget) else ()
    t = levels_of(target, name)
    return Levelled(
        latent=latent.to(getattr(torch, dtype)).float(),  # what a reader will have
        t=t,
        seeds=tuple(derived(name, m) for m in range(len(t))),
        guidances=given or (usual,),
    )


def queries_of(
    target: Asking, i: int, request: GenerationRequest, row: Levelled
) -> Iterator[tuple[Question, Query]]:
    """All queries about row `i`; the hashes of its noise are noted on the way."""
    unconditional = isinstance(target, VelocityTarget) and target.unconditional
    for m, (t, seed) in enumerate(zip(row.t, row.seeds, strict=True)):
        noise = noise_of(seed, row.latent.shape)
        row.hashes.append(hash_of(noise))
        query = Query(
            state=noised(row.latent[None], noise[None], torch.tensor([t]))[0],
            sigma=t,
            prompt=request.prompt,
            t5_sequence_length=request.t5_sequence_length,
            loras=request.loras,
        )
        for g, guidance in enumerate(row.guidances):
            yield Question(i, m, g), replace(query, embedded_guidance=guidance)
        if unconditional:
            negative = replace(query, prompt=request.negative_prompt)
            yield Question(i, m, -1), replace(negative, embedded_guidance=row.guidances[0])


def tensors_of(
    target: Asking, row: Levelled, answers: Mapping[tuple[int, int], Answer]
) -> dict[str, Tensor]:
    """One row's answers as tensors: levels first, then guidances."""
    levels, guidances = range(len(row.t)), range(len(row.guidances))
    out: dict[str, Tensor] = {"latent": row.latent}
    if isinstance(target, FeatureTarget):
        for tap in target.taps:
            out[tap_column(tap)] = torch.stack([answers[m, 0].taps[tap] for m in levels])
        return out
    out["v_cond"] = torch.stack(
        [torch.stack([answers[m, g].velocity for g in guidances]) for m in levels]
    )
    if (0, -1) in answers:
        out["v_uncond"] = torch.stack([answers[m, -1].velocity for m in levels])
    return out


def levels_of(target: Levels, name: str) -> tuple[float, ...]:
    """A row's noise levels, as float32 has them."""
    if target.timesteps:
        return tuple(torch.tensor(target.timesteps, dtype=torch.float32).tolist())
    random = torch.Generator("cpu").manual_seed(derived(name, -3))
    if target.distribution == "uniform":
        return tuple(torch.rand(target.queries, generator=random).tolist())
    draws = torch.randn(target.queries, generator=random)
    return tuple(torch.sigmoid(target.mean + target.spread * draws).tolist())
