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
from shapes.world import TEMPLATES, blocks, caption, combinations, draw, held_out, keyed

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


def training_rows(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Attributes (N, 5) and templates (N,) to train on; held-out combinations never are."""
    rows = combinations()
    rows = rows[~held_out(rows)]
    random = keyed(seed, "cache")
    row_N = torch.randint(len(rows), (count,), generator=random)
    return rows[row_N], torch.randint(len(TEMPLATES), (count,), generator=random)


@torch.no_grad()
def write_cache(
    path: Path, vae: AutoEncoder, encoders: TextEncoders, *, seed: int, pictures: int
) -> None:
    rows_N5, template_N = training_rows(seed, pictures)
    latents = [
        pack(vae.encode(draw(part, keyed(seed, "cache", i)) * 2 - 1))
        for i, part in enumerate(blocks(rows_N5, AT_ONCE))
    ]
    captions = [caption(row, t) for row, t in zip(rows_N5, template_N.tolist(), strict=True)]
    index = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    distinct = list(index)
    text = [encoders(distinct[i : i + 512]) for i in range(0, len(distinct), 512)]
    empty_sequence, empty_pooled = encoders([""])
    kept = {
        "latents": torch.cat(latents).half(),
        "caption": torch.tensor([index[text] for text in captions]),
        "sequence": torch.cat([sequence for sequence, _ in text]).half(),
        "pooled": torch.cat([pooled for _, pooled in text]),
        "empty_sequence": empty_sequence,
        "empty_pooled": empty_pooled,
    }
    partial = path.with_suffix(".partial")
    save_file(kept, partial)
    partial.rename(path)
