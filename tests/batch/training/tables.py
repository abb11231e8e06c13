"""A table of pictures with captions."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CAPTIONS = ("a large red circle", "a small blue square", "a large red circle", "a green star")


def picture(height: int, width: int, seed: int) -> dict[str, Any]:
    levels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).resize((width, height)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def write_table(folder: Path, **columns: Any) -> Path:
    """Four rows of 64 x 64, unless columns say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "key": [f"k{i}" for i in range(len(CAPTIONS))],
        "image": [picture(64, 64, i) for i in range(len(CAPTIONS))],
        "prompt": list(CAPTIONS),
    }
    pq.write_table(pa.table(told | columns), folder / "rows.parquet")
    return folder
