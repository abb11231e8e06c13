"""The engine as a teacher: what its transformer answers at a given state and noise level.

Queries of unlike noise levels, guidance and prompts share micro-batches of one fixed shape, so an
answer's bits do not depend on its neighbours. Shape letters: B batch, S image tokens, D hidden
width, P width of a projection, Z latent channels.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flux_engine.engine import FluxEngine
from flux_engine.errors import NumbersBroke, RequestError, SettingError
from flux_engine.latents import pack, position_ids, unpack
from flux_engine.request import ONLOOKER, GenerationRequest, LoraUse, Watch
from flux_engine.rows import Prepared
from flux_engine.sampling.denoise import rows_at, velocities_at
from flux_engine.shortage import attempt

TAP = re.compile(r"(double_blocks)\.(\d+)\.(img|txt)|(single_blocks)\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question: the velocity at `state` (Z, H/8, W/8), which has noise level `sigma` (0…1)."""

    state: Tensor = field(compare=False)
    sigma: float
    prompt: str
    embedded_guidance: float = 3.5
    t5_sequence_length: int = 512
    loras: tuple[LoraUse, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A velocity (Z, H/8, W/8) in float32 on the host, and of each tap (tokens, P).

    `micro_batch` is the number of queries it was among; `text_halved` how many prompts its text
    was encoded among if memory was short, else 0.
    """

    velocity: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    micro_batch: int
    text_halved: int = 0


@dataclass(frozen=True, kw_only=True)
class Taps:
    """Outputs of blocks, projected to `width` by a matrix that `seed` determines.

    Names: `double_blocks.3.img`, `double_blocks.3.txt`, `single_blocks.7` (text tokens first).
    """

    names: tuple[str, ...]
    width: int
    seed: int = 0

    def projection(self, columns: int) -> Tensor:
        """(D, P) in float32: normal numbers by √D, drawn on the CPU."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        drawn: Tensor = torch.randn(columns, self.width, generator=generator)
        return drawn.div(float(columns) ** 0.5)


class Teacher:
    """Asks an engine. SettingError for taps that its transformer has not."""

    def __init__(self, engine: FluxEngine, taps: Taps | None = None) -> None:
        self.engine, self.taps = engine, taps
        self._sites = {name: site(engine, name) for name in (taps.names if taps else ())}
        self._matrix = (
            taps.projection(engine.dit.spec.width).to(engine.device) if taps is not None else None
        )

    def each(
        self, queries: Sequence[Query], watch: Watch = ONLOOKER
    ) -> Iterator[tuple[int, Answer | RequestError]]:
        """Pairs (index, answer or why not) as they are finished; one query's fault is its own."""
        requests: dict[int, GenerationRequest] = {}
        for i, query in enumerate(queries):
            try:
                requests[i] = self._request(query)
            except RequestError as error:
                yield i, error
        if not requests:
            return
        for n, group in enumerate(self.engine.loras.apart(requests)):
            if n and watch.leaving():
                return
            yield from self._group(queries, {i: requests[i] for i in group}, watch)

    def _request(self, query: Query) -> GenerationRequest:
        factor = self.engine.vae.spec.factor
        height, width = (side * factor for side in query.state.shape[-2:])
        channels = self.engine.vae.spec.latent_channels
        if query.state.dim() != 3 or len(query.state) != channels:
            raise RequestError(
                f"a state is {tuple(query.state.shape)} and should be ({channels}, H/8, W/8)"
            )
        if not 0.0 <= query.sigma <= 1.0:
            raise RequestError(f"sigma is {query.sigma}; allowed are 0 to 1")
        request = GenerationRequest(
            prompt=query.prompt,
            seed=0,
            embedded_guidance=query.embedded_guidance,
            height=height,
            width=width,
            num_inference_steps=1,
            t5_sequence_length=query.t5_sequence_length,
            loras=query.loras,
            decode=False,
        )
        self.engine.check(request)
        return request

    def _group(
        self, queries: Sequence[Query], requests: dict[int, GenerationRequest], watch: Watch
    ) -> Iterator[tuple[int, Answer | RequestError]]:
        engine, outfits = self.engine, {}
        for i, request in requests.items():
            try:
                outfits[i] = engine.loras.outfit(request)
            except RequestError as error:
                yield i, error
        good = {i: requests[i] for i in outfits}
        if not good:
            return
        buckets = engine.buckets(good, outfits)
        watch.at("text", list(good))
        texts = engine.encode_texts(good, outfits, next(iter(buckets)))
        rows = Prepared(good, outfits, texts, {})
        for bucket, members in buckets.items():
            with engine.residency.phase(engine.planning.denoise(bucket)), engine.loras.bucket():
                engine.loras.merge(outfits[members[0]], engine.residency)
                size = engine.planning.micro_batch(bucket)
                most = engine.planning.outfits(bucket)
                while members:
                    if watch.leaving():
                        return
                    real, filled = next(rows.micro_batches(bucket, members, size, most))
                    watch.at("denoise", real)
                    work = partial(self._answers, queries, filled, rows)
                    made = attempt("denoise", len(filled), work)
                    if made is None:
                        size //= 2
                        continue
                    yield from zip(real, made, strict=False)
                    members = members[len(real) :]

    def _answers(
        self, queries: Sequence[Query], members: Sequence[int], rows: Prepared
    ) -> list[Answer | RequestError]:
        engine = self.engine
        states = torch.stack([queries[i].state.float() for i in members])
        height, width = states.shape[-2:]
        length = queries[members[0]].t5_sequence_length
        rotation = engine.dit.rotation(position_ids(length, height, width)).to(engine.device)
        sigma_B = torch.tensor([queries[i].sigma for i in members], dtype=torch.float32)
        told = engine.conditions(members, rows)
        with engine.residency.loop("dit", 1, "table"):
            rows_BMD = rows_at(engine.dit, sigma_B.to(engine.device), told)
        with engine.residency.loop("dit", 1), Tapping(self._sites, self._matrix) as tapped:
            velocity_BSC = velocities_at(
                engine.dit,
                pack(states.to(engine.device)),
                told,
                rows_BMD=rows_BMD,
                rotation_2LR=rotation,
            )
        taps = {name: values.cpu() for name, values in tapped.items()}
        answers = unpack(velocity_BSC, height, width).cpu()
        return [
            Answer(
                velocity=velocity,
                taps={name: values[n] for name, values in taps.items()},
                micro_batch=len(members),
                text_halved=rows.texts_of(i)[0].halved,
            )
            if torch.isfinite(velocity).all()
            else NumbersBroke("the velocity came out as NaN or infinity")
            for n, (i, velocity) in enumerate(zip(members, answers, strict=True))
        ]


class Tapping:
    """Inside, outputs of blocks are kept as they pass, projected: (B, tokens, P) by name."""

    def __init__(
        self, sites: Mapping[str, tuple[nn.Module, int | None]], matrix: Tensor | None
    ) -> None:
        self.sites, self.matrix = sites, matrix
        self.kept: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> dict[str, Tensor]:
        for name, (block, stream) in self.sites.items():
            self._hooks.append(block.register_forward_hook(self._keep(name, stream)))
        return self.kept

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str, stream: int | None) -> Callable[..., None]:
        def keep(_: nn.Module, __: tuple[Any, ...], out: Any) -> None:
            assert self.matrix is not None
            values = out if stream is None else out[stream]
            self.kept[name] = values.float() @ self.matrix

        return keep


def site(engine: FluxEngine, name: str) -> tuple[nn.Module, int | None]:
    """A tap's block, and which of its outputs it is."""
    spec, found = engine.dit.spec, TAP.fullmatch(name)
    if found and found[1] and int(found[2]) < spec.double_blocks:
        return engine.dit.double_blocks[int(found[2])], ("img", "txt").index(found[3])
    if found and found[4] and int(found[5]) < spec.single_blocks:
        return engine.dit.single_blocks[int(found[5])], None
    raise SettingError(
        f"tap {name!r}: there is no such output; there are double_blocks.0…{spec.double_blocks - 1}"
        f".img and .txt and single_blocks.0…{spec.single_blocks - 1}"
    )
