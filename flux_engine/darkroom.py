"""Pictures into latents and back: on the card in their phase, in batches of one shape."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from flux_engine.encode import PictureCoder
from flux_engine.planning import Planning
from flux_engine.request import ONLOOKER, GenerationRequest, Watch
from flux_engine.rows import Denoised, Latents, by_picture
from flux_engine.sampling.tiling import Tiling
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
    ) -> Iterator[tuple[int, Tensor]]:
        """Latents of pictures (3, H, W) in −1…1, as `PictureCoder.encode` answers, by number."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, picture in enumerate(pictures):
            sizes.setdefault((picture.shape[1], picture.shape[2]), []).append(i)
        for (height, width), members in sizes.items():
            size = self.planning.decode_batch(height, width, tiling)
            with self.residency.phase(self.planning.decode(height, width, tiling)):
                for first in range(0, len(members), size):
                    if watch.leaving():
                        return
                    batch = members[first : first + size]
                    watch.at("encode", batch)
                    given = [pictures[i] for i in batch]
                    made = self.coder.encode(given, size, tiling, moments=moments)
                    yield from zip(batch, made, strict=True)

    def encode_inputs(self, requests: Mapping[int, GenerationRequest]) -> dict[int, Tensor]:
        """Latents of the pictures that these requests start from."""
        given = {i: r.input_image for i, r in requests.items() if r.input_image is not None}
        out: dict[int, Tensor] = {}
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
    ) -> Iterator[tuple[int, Tensor, Denoised]]:
        """Pictures of these latents, which are used up; or of those that fill a batch, in the
        phase that there is."""
        for (height, width, tiling), members in by_picture(latents, requests).items():
            size = self.planning.decode_batch(height, width, tiling)
            last = len(members) - len(members) % size if only_full else len(members)
            for first in range(0, last, size):
                batch = members[first : min(first + size, last)]
                watch.at("decode", batch)
                taken = [latents.pop(i) for i in batch]
                stage = None if only_full else self.planning.decode(height, width, tiling)
                with self.residency.phase(stage):
                    pictures = self.coder.decode([one.latents for one in taken], size, tiling)
                yield from zip(batch, pictures, taken, strict=True)
