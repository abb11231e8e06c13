"""The engine: requests into pictures, stage by stage, each stage in batches of fixed shape.

text → table → denoise → decode. A stage serves all requests of a call before the next one starts,
so that a change of weights is paid once; but where transformer and autoencoder are on the card
together, pictures are decoded as soon as a batch of them is denoised, and leave early.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from flux_engine.adapters.lora import BARE, Loras, Outfit
from flux_engine.approximation import EXACT, Approximation
from flux_engine.batching import Batching, Bucket
from flux_engine.checks import faults_of
from flux_engine.darkroom import Darkroom
from flux_engine.deviation import Deviation
from flux_engine.encode import PictureCoder, Text, TextEncoder, TextKey, TextModels
from flux_engine.errors import NumbersBroke, RequestError, SettingError
from flux_engine.latents import PATCH, pack, position_ids, unpack
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from flux_engine.planning import Planning, heads_of
from flux_engine.request import ONLOOKER, Generation, GenerationRequest, Outcome, Trace, Watch
from flux_engine.rows import Coded, Denoised, Latents, Prepared, prompts_of, stacked, tiling_of
from flux_engine.sampling.denoise import Conditions, Progress, denoise, plain
from flux_engine.sampling.kernels import Attention, attention
from flux_engine.sampling.schedule import shift_of, sigmas
from flux_engine.sampling.stepcache import reused
from flux_engine.sampling.tiling import Tiling
from flux_engine.sampling.trace import Recorder, bounds, nothing
from flux_engine.tables import Tables
from flux_engine.vram.planner import PASSING, Stage
from flux_engine.vram.residency import Residency
from flux_engine.weights.lora.models import Models
from flux_engine.weights.lora.shelf import SHELF_BYTES

logger = logging.getLogger(__name__)


class FluxEngine:
    """One FLUX.1 model on one device. `timestep_shift` is false for FLUX.1-schnell's schedule."""

    def __init__(
        self,
        *,
        dit: FluxTransformer,
        vae: AutoEncoder,
        text: TextModels,
        device: torch.device,
        dtype: torch.dtype,
        batching: Batching,
        timestep_shift: bool,
        lora_bytes: int = SHELF_BYTES,
        approximation: Approximation = EXACT,
        attention: Attention = "default",
    ) -> None:
        self.dit, self.vae = dit, vae
        self.device, self.dtype = device, dtype
        self.batching = batching
        self.approximation, self.attention = approximation, attention
        self.fingerprint: dict[str, str] = {}  # of the weights, by file
        self.fingerprints: dict[str, dict[str, str]] = {}  # the same, by model and tokenizer
        self.deviation = Deviation()
        self.timestep_shift = timestep_shift
        self.pictures = PictureCoder(vae, device, dtype)
        self.loras = Loras(Models(dit, text.clip, text.t5), device, dtype, lora_bytes)
        self.models = {"dit": dit, "vae": vae, "clip": text.clip, "t5": text.t5}
        self.residency = Residency(self.models)
        self.planning = Planning(batching, cell=self.cell, heads=heads_of(dit))
        self.text = TextEncoder(text, device, self.planning.text_batch)
        self.darkroom = Darkroom(self.pictures, self.residency, self.planning)

    def hold(self, residency: Residency, planning: Planning) -> None:
        """Hold the weights so from now on."""
        self.residency.leave()
        self.residency, self.planning = residency, planning
        self.text.loop, self.text.batch = residency.loop, planning.text_batch
        self.darkroom = Darkroom(self.pictures, residency, planning)

    @property
    def cell(self) -> int:
        """Pixels to a token's side: sizes are multiples of it."""
        return self.vae.spec.factor * PATCH

    def check(self, request: GenerationRequest) -> None:
        """RequestError if this engine cannot make the picture, whatever its neighbours."""
        for fault in faults_of(request, self.cell):
            raise RequestError(fault)

    def bucket(self, request: GenerationRequest) -> Bucket:
        tokens = (request.height // self.cell) * (request.width // self.cell)
        shift = shift_of(request.schedule, tokens, request.sigma_shift, self.timestep_shift)
        return Bucket.of(request, shift)

    def generate(
        self, requests: Sequence[GenerationRequest], progress: Progress = plain
    ) -> list[Generation]:
        """One picture for each request, in order; the first that cannot be made raises."""
        made: dict[int, Generation] = {}
        for i, outcome in self.each(requests, progress):
            if isinstance(outcome, RequestError):
                raise outcome
            made[i] = outcome
        return [made[i] for i in range(len(requests))]

    def each(
        self,
        requests: Sequence[GenerationRequest],
        progress: Progress = plain,
        watch: Watch = ONLOOKER,
    ) -> Iterator[tuple[int, Outcome]]:
        """Pairs (index, picture or why not) as they are finished; one row's fault is its own.

        If `watch` says so between two micro-batches, pairs are left out.
        """
        good: dict[int, GenerationRequest] = {}
        for i, request in enumerate(requests):
            try:
                self.check(request)
                good[i] = request
            except RequestError as error:
                yield i, error
        for i, refusal in self._settle(good):
            del good[i]
            yield i, refusal
        if not good:
            return
        for n, group in enumerate(self.loras.apart(good)):
            if n and watch.leaving():
                return
            yield from self._group({i: good[i] for i in group}, progress, watch)

    def _group(
        self, requests: dict[int, GenerationRequest], progress: Progress, watch: Watch
    ) -> Iterator[tuple[int, Outcome]]:
        """The same for rows whose LoRAs are at hand together."""
        outfits: dict[int, Outfit] = {}
        for i, request in requests.items():
            try:
                outfits[i] = self.loras.outfit(request)
            except RequestError as error:
                yield i, error
        good = {i: requests[i] for i in outfits}
        buckets = self.buckets(good, outfits)
        for bucket in list(buckets):
            try:
                self.planning.denoise(bucket)  # with what LoRAs take, which nobody knew before
            except SettingError as error:
                for i in buckets.pop(bucket):
                    del good[i]
                    yield i, RequestError(str(error))
        if not good:
            return
        watch.at("text", list(good))
        texts = self.encode_texts(good, outfits, next(iter(buckets)))
        rows = Prepared(good, outfits, texts, self.darkroom.encode_inputs(good))
        latents: Latents = {}
        for bucket, members in buckets.items():
            stage, then = self.planning.denoise(bucket), self._decoding([good[i] for i in members])
            with self.residency.phase(stage, then), self.loras.bucket():
                for i, made in self._denoise(bucket, members, rows, progress, watch):
                    if not torch.isfinite(made.latents).all():
                        yield i, NumbersBroke("the latents came out as NaN or infinity")
                    elif rows.requests[i].decode:
                        latents[i] = made
                    else:
                        yield i, self._outcome(rows, i, None, made)
                    if self.planning.together(bucket):
                        yield from self._decode(rows, latents, watch, only_full=True)
        if latents:
            yield from self._decode(rows, latents, watch)

    def _settle(self, requests: dict[int, GenerationRequest]) -> list[tuple[int, RequestError]]:
        """Plan all that will be asked of the card before any of it is begun; who cannot fit is
        answered with the numbers."""
        refused: list[tuple[int, RequestError]] = []
        for i, request in requests.items():
            try:
                self.room_for(request)
            except SettingError as error:
                refused.append((i, RequestError(str(error))))
        return refused

    def room_for(self, request: GenerationRequest, outfit: Outfit = BARE) -> None:
        """SettingError with the numbers if the card has not the memory for such a picture."""
        for bucket in self.buckets({0: request}, {0: outfit}):
            self.planning.denoise(bucket)
        self.planning.text(request.t5_sequence_length)
        self.planning.decode(request.height, request.width, tiling_of(request))

    def buckets(
        self, requests: dict[int, GenerationRequest], outfits: dict[int, Outfit]
    ) -> dict[Bucket, list[int]]:
        """Rows that may share micro-batches; within them, those that wear the same together."""
        out: dict[Bucket, list[int]] = {}
        for i, request in requests.items():
            bucket = replace(self.bucket(request), loras=outfits[i].kind)
            out.setdefault(bucket, []).append(i)
        return {
            replace(bucket, worn=self.loras.worn(outfits[i] for i in members)): sorted(
                members, key=lambda i: outfits[i].key
            )
            for bucket, members in out.items()
        }

    def encode(
        self,
        pictures: Sequence[Tensor],
        tiling: Tiling | None = None,
        *,
        moments: bool = False,
        watch: Watch = ONLOOKER,
    ) -> Iterator[tuple[int, Coded]]:
        """Latents of pictures (3, H, W) in −1…1, as `PictureCoder.encode` answers, by number."""
        return self.darkroom.encode(pictures, tiling, moments=moments, watch=watch)

    def encode_texts(
        self,
        requests: dict[int, GenerationRequest],
        outfits: dict[int, Outfit],
        first: Bucket,
    ) -> dict[str, dict[TextKey, Text]]:
        """Texts by what is merged into the encoders, the plain ones first; `first` is what will
        be denoised next."""
        wanted: dict[str, list[TextKey]] = {}
        worn: dict[str, Outfit] = {}
        for i, request in requests.items():
            worn[outfits[i].text_key] = outfits[i]
            wanted.setdefault(outfits[i].text_key, []).extend(prompts_of(request))
        if all(self.text.knows(keys, changed) for changed, keys in wanted.items()):
            return {changed: self.text(keys, changed) for changed, keys in wanted.items()}
        # attention over the longest text is what asks for the most memory
        stage = self.planning.text(max(n for keys in wanted.values() for _, n in keys))
        out = {}
        with self.residency.phase(stage, self.planning.denoise(first)):
            for changed in sorted(wanted):
                self.loras.merge_text(worn[changed], self.residency)
                out[changed] = self.text(wanted[changed], changed)
        return out

    def _denoise(
        self, bucket: Bucket, members: list[int], rows: Prepared, progress: Progress, watch: Watch
    ) -> Iterator[tuple[int, Denoised]]:
        factor = self.vae.spec.factor
        height, width = bucket.height // factor, bucket.width // factor
        ids = position_ids(bucket.t5_sequence_length, height, width)
        rotation = self.dit.rotation(ids).to(self.device)
        size, most = self.planning.micro_batch(bucket), self.planning.outfits(bucket)
        waiting, tables = list(members), Tables(self.dit, self.residency)
        self.loras.merge(rows.outfits[members[0]], self.residency)
        while waiting and not watch.leaving():
            (real, filled), *more = rows.micro_batches(bucket, waiting, size, most)
            # LoRAs stand beside the table's makers for one micro-batch at a time
            tables.ahead = [] if bucket.loras else [batch for _, batch in more]
            watch.at("denoise", real)
            made = None
            try:
                made = self._micro_batch(bucket, filled, rows, rotation, progress, tables)
            except torch.OutOfMemoryError:
                if size == 1 and not self.planning.shrink(bucket):
                    raise
            if made is None:  # here, where no error holds what it was raised among
                tables.forget()
                torch.cuda.empty_cache()
                size = self._lesser(bucket, size)
                continue
            if self.approximation and self.deviation.due:
                watch.at("deviation", [])
                again = self._again(bucket, filled, rows, rotation, tables)
                self.deviation.take(stacked(made), stacked(again) if again else None, len(real))
            yield from zip(real, made, strict=False)
            waiting = waiting[len(real) :]

    def _micro_batch(
        self,
        bucket: Bucket,
        members: list[int],
        rows: Prepared,
        rotation: Tensor,
        progress: Progress,
        tables: Tables,
    ) -> list[Denoised]:
        """One for each member."""
        factor = self.vae.spec.factor
        height, width = bucket.height // factor, bucket.width // factor
        shape = (self.vae.spec.latent_channels, height, width)
        levels = sigmas(bucket.schedule, bucket.steps, bucket.sigma_shift, bucket.strength)
        steps = levels.tolist()
        ends = bounds(len(steps) - 1, bucket.segments or None)
        recorder = Recorder(steps, ends)
        told = self.conditions(members, rows)
        table = tables.next(
            levels[:-1].to(self.device), told, lambda batch: self.conditions(batch, rows)
        )
        reuse = reused(len(steps) - 1) if self.approximation.step_cache else frozenset()
        kernels = self.planning.attention(bucket, self.attention, self.dtype, self.device)
        passes = len(steps) - 1 - len(reuse)
        with self.residency.loop("dit", passes), attention(kernels):
            x = denoise(
                self.dit,
                pack(rows.starts(members, shape, levels[0]).to(self.device)),
                told,
                sigmas=levels,
                table_NGMD=table,
                rotation_2LR=rotation,
                reuse=reuse,
                progress=progress,
                record=recorder if bucket.segments >= 0 else nothing,
            )
        traces: list[Trace] | list[None] = [None] * len(members)
        if bucket.segments >= 0:
            meet = tuple(steps[end] for end in ends)
            traces = [
                Trace(velocities=unpack(one, height, width).cpu(), sigmas=meet)
                for one in recorder.velocities()
            ]
        latents = unpack(x, height, width).cpu()
        return [Denoised(z, len(members), t) for z, t in zip(latents, traces, strict=True)]

    def _lesser(self, bucket: Bucket, size: int) -> int:
        """The micro-batch to try after memory ran out: half of it; of one row the same, with as few
        weights on the card as the planning has it since then."""
        if size > 1:
            size //= 2
            logger.warning("micro-batch halved for lack of memory", extra={"micro_batch": size})
            return size
        self.residency.keep_within(self.planning.limit(bucket), self.planning.denoise(bucket))
        logger.warning(
            "fewer weights stay on the card for lack of memory",
            extra={"bytes": self.residency.used, "limit": self.residency.limit},
        )
        return size

    def _again(
        self, bucket: Bucket, members: list[int], rows: Prepared, rotation: Tensor, tables: Tables
    ) -> list[Denoised] | None:
        """The same micro-batch, exactly; None if there is no memory for that."""
        try:
            with self._exactly(bucket):
                return self._micro_batch(bucket, members, rows, rotation, plain, tables.anew())
        except torch.OutOfMemoryError as error:
            logger.warning("deviation not measured", extra={"why": str(error)})
        torch.cuda.empty_cache()
        return None

    @contextmanager
    def _exactly(self, bucket: Bucket) -> Iterator[None]:
        """Inside, nothing is approximate; all blocks pass through, as they are in the files."""
        asked, self.approximation = self.approximation, EXACT
        try:
            wide = self.deviation.wide if asked.narrows("dit") else None
            with self.residency.exactly("dit", wide), self.residency.phase(PASSING):
                yield
        finally:
            self.approximation = asked
            with self.residency.phase(self.planning.denoise(bucket)):
                pass

    def conditions(self, members: Sequence[int], rows: Prepared) -> Conditions:
        return rows.conditions(members, self.loras.beside, self.device, self.dtype)

    def _decoding(self, requests: Sequence[GenerationRequest]) -> Stage | None:
        """The stage that comes after denoising these, for the first that has a picture made."""
        first = next((request for request in requests if request.decode), None)
        if first is None:
            return None
        return self.planning.decode(first.height, first.width, tiling_of(first))

    def _decode(
        self, rows: Prepared, latents: Latents, watch: Watch, *, only_full: bool = False
    ) -> Iterator[tuple[int, Outcome]]:
        """Pictures of these latents, which are used up; or of those that fill a batch."""
        made = self.darkroom.decode(latents, rows.requests, watch, only_full=only_full)
        for i, coded, one in made:
            yield i, self._outcome(rows, i, coded, one)

    def _outcome(self, rows: Prepared, i: int, coded: Coded | None, made: Denoised) -> Outcome:
        pixels = coded.values if coded else None
        if pixels is not None and not torch.isfinite(pixels).all():
            return NumbersBroke("the pixels came out as NaN or infinity")
        request = rows.requests[i]
        return Generation(
            pixels=pixels,
            latents=made.latents,
            sigma_shift=self.bucket(request).sigma_shift,
            micro_batch=made.micro_batch,
            tokens_dropped=rows.texts_of(i)[0].dropped,
            trace=made.trace,
            loras=tuple(self.loras.shelf.take(use).digest for use in request.loras),
            approximate=str(self.approximation),
            halved=rows.halved(i, coded),
        )
