"""The stage `cache`: latents and text of the training combinations, computed once.

Shape letters: N pictures, M distinct captions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flux_engine.models.vae import AutoEncoder
from shapes.flow import Text, pack
from shapes.text import TextEncoders
from shapes.world import World, blocks, keyed

AT_ONCE = 64


@dataclass(frozen=True)
class Cache:
    """Packed latents (N, S, C), the index of each one's caption, (N,), and all captions' text."""

    latents: Tensor
    captions: Tensor
    text: Text
    empty: Text

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Self:
        kept = load_file(path, device=str(device))
        return cls(
            kept["latents"].float(),
            kept["caption"],
            Text(kept["sequence"], kept["pooled"]).to(device),
            Text(kept["empty_sequence"], kept["empty_pooled"]).to(device),
        )


def training_rows(world: World, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Attributes (N, A) and templates (N,) to train on; held-out combinations never are."""
    rows = world.part(unseen=False)
    random = keyed(seed, "cache")
    row_N = torch.randint(len(rows), (count,), generator=random)
    return rows[row_N], torch.randint(len(world.templates), (count,), generator=random)


@torch.no_grad()
def write_cache(
    path: Path,
    world: World,
    vae: AutoEncoder,
    encoders: TextEncoders,
    *,
    seed: int,
    pictures: int,
) -> None:
    device = vae.encoder.conv_in.weight.device
    rows_NA, template_N = training_rows(world, seed, pictures)
    latents = [
        pack(vae.encode((world.draw(part, keyed(seed, "cache", i)) * 2 - 1).to(device)))
        .half()
        .cpu()
        for i, part in enumerate(blocks(rows_NA, AT_ONCE))
    ]
    captions = [world.caption(row, t) for row, t in zip(rows_NA, template_N.tolist(), strict=True)]
    index = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    distinct = list(index)
    text = [encoders(distinct[i : i + 512]) for i in range(0, len(distinct), 512)]
    empty_sequence, empty_pooled = encoders([""])
    kept = {
        "latents": torch.cat(latents),
        "caption": torch.tensor([index[text] for text in captions]),
        "sequence": torch.cat([sequence for sequence, _ in text]).half(),
        "pooled": torch.cat([pooled for _, pooled in text]),
        "empty_sequence": empty_sequence,
        "empty_pooled": empty_pooled,
    }
    partial = path.with_suffix(".partial")
    save_file(kept, partial)
    partial.rename(path)
