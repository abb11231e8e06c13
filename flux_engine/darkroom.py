"""Pictures into latents and back: on the card in their phase, in batches of one shape.

Where memory runs out, half of a batch is tried, and what is made so says it: its last bits may
be others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from flux_engine.encode import PictureCoder
from flux_engine.planning import Planning
from flux_engine.request import ONLOOKER, GenerationRequest, Watch
from flux_engine.rows import Coded, Denoised, Latents, by_picture
from flux_engine.sampling.tiling import Tiling
from flux_engine.shortage import attempt
from flux_engine.vram.residency import Residency


class Darkroom:
    """Of one engine, as long as its weights are held in one way."""

    def __init__(self, coder: PictureCoder, residency: Residency, planning: Planning) -> None:
        self.coder, self.residency, self.planning = coder, residency, planning

    def encode(
        self,
        pictures: Sequence[Tensor],
        tiling: Tiling | None = None,
        *,
        moments: bool = False,
        watch: Watch = ONLOOKER,
    ) -> Iterator[tuple[int, Coded]]:
        """Latents of pictures (3, H, W) in −1…1, as `PictureCoder.encode` answers, by number."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, picture in enumerate(pictures):
            sizes.setdefault((picture.shape[1], picture.shape[2]), []).append(i)

        def encode(batch: Sequence[int], size: int) -> list[Tensor]:
            watch.at("encode", batch)
            given = [pictures[i] for i in batch]
            return self.coder.encode(given, size, tiling, moments=moments)

        for (height, width), members in sizes.items():
            size = self.planning.decode_batch(height, width, tiling)
            with self.residency.phase(self.planning.decode(height, width, tiling)):
                yield from self._coded("encode", members, size, encode, watch.leaving)

    def encode_inputs(self, requests: Mapping[int, GenerationRequest]) -> dict[int, Coded]:
        """Latents of the pictures that these requests start from."""
        given = {i: r.input_image for i, r in requests.items() if r.input_image is not None}
        out: dict[int, Coded] = {}
        for (*_, tiling), members in by_picture(given, requests).items():
            made = dict(self.encode([given[i] for i in members], tiling))
            out |= {i: made[n] for n, i in enumerate(members)}
        return out

    def decode(
        self,
        latents: Latents,
        requests: Mapping[int, GenerationRequest],
        watch: Watch,
        *,
        only_full: bool = False,
    ) -> Iterator[tuple[int, Coded, Denoised]]:
        """Pictures of these latents, which are used up; or of those that fill a batch, in the
        phase that there is."""
        for (height, width, tiling), members in by_picture(latents, requests).items():
            size = self.planning.decode_batch(height, width, tiling)
            last = len(members) - len(members) % size if only_full else len(members)
            stage = None if only_full else self.planning.decode(height, width, tiling)

            def decode(
                batch: Sequence[int], size: int, tiling: Tiling | None = tiling
            ) -> list[Tensor]:
                watch.at("decode", batch)
                return self.coder.decode([latents[i].latents for i in batch], size, tiling)

            if last:
                with self.residency.phase(stage):
                    for i, coded in self._coded("decode", members[:last], size, decode):
                        yield i, coded, latents.pop(i)

    def _coded(
        self,
        stage: str,
        members: Sequence[int],
        size: int,
        code: Callable[[Sequence[int], int], list[Tensor]],
        leaving: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, Coded]]:
        """In batches of this size; of half of it, from where memory runs out."""
        chosen = size
        while members and not leaving():
            batch = members[:size]
            made = attempt(stage, size, partial(code, batch, size))
            if made is None:
                size //= 2
                continue
            halved = size if size < chosen else 0
            yield from zip(batch, (Coded(one, halved) for one in made), strict=True)
            members = members[size:]
