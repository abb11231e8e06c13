"""Loss curves of the stages as one PNG, read from their JSON lines."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

STAGES = ("vae", "teacher", "guidance")
WIDTH, HEIGHT, LEFT, TOP = 320, 200, 48, 26
FLOOR = 1e-5  # what the journal rounds to


def draw_curves(folder: Path, picture: Path) -> None:
    """One panel a stage, loss on a logarithmic scale."""
    sheet = Image.new("RGB", (WIDTH * len(STAGES), HEIGHT), "white")
    for column, stage in enumerate(STAGES):
        panel(ImageDraw.Draw(sheet), column * WIDTH, stage, losses(folder / f"{stage}.jsonl"))
    sheet.save(picture)


def losses(path: Path) -> list[tuple[int, float]]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["step"], math.log10(max(row["loss"], FLOOR))) for row in rows]


def panel(pen: ImageDraw.ImageDraw, x0: int, title: str, points: list[tuple[int, float]]) -> None:
    left, right, top, bottom = x0 + LEFT, x0 + WIDTH - 14, TOP, HEIGHT - 28
    pen.text((left, top - 16), f"{title} loss", fill="black")
    pen.rectangle((left, top, right, bottom), outline="gray")
    if len(points) < 2:
        return
    last, heights = points[-1][0], [y for _, y in points]
    low, high = min(heights), max(heights)
    scale = (bottom - top) / max(high - low, 1e-9)
    line = [(left + (right - left) * x / last, bottom - (y - low) * scale) for x, y in points]
    pen.line(line, fill=(190, 60, 30), width=2)
    pen.text((x0 + 4, top - 4), f"{10**high:.3g}", fill="black")
    pen.text((x0 + 4, bottom - 8), f"{10**low:.3g}", fill="black")
    pen.text((right - 28, bottom + 6), str(last), fill="black")
