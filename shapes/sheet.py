"""A dataset's first pictures with their prompts, as one labelled picture.

python -m shapes.sheet OUTPUT_DIR PICTURE.png --rows 4 --columns 8
"""

import argparse
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from shapes.dataset import rows_of

TILE, GAP, LINES, SIZE = 128, 14, 4, 12  # pixels; lines of text under a picture; of the font
PAPER, INK = "#ffffff", "#3c4043"
FEWER = [min(255, 3 * round(value / 3)) for value in range(256)]  # as white, in a smaller file
CORNER, FINE = 10, 4  # radius of a picture's corners, and how much finer their mask is drawn


def draw_sheet(labelled: list[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Line by line from the top left."""
    font = ImageFont.load_default(SIZE)
    pitch = TILE + GAP, TILE + 6 + LINES * (SIZE + 3) + GAP
    rows = -(-len(labelled) // columns)
    sheet = Image.new("RGB", (columns * pitch[0] + GAP, rows * pitch[1] + GAP), PAPER)
    pen, mask = ImageDraw.Draw(sheet), rounded()
    for i, (prompt, picture) in enumerate(labelled):
        left, top = GAP + (i % columns) * pitch[0], GAP + (i // columns) * pitch[1]
        sheet.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top), mask)
        text = "\n".join(wrapped(prompt, font, TILE, LINES))
        pen.multiline_text((left, top + TILE + 6), text, fill=INK, font=font, spacing=3)
    return sheet


def rounded() -> Image.Image:
    """A tile's mask."""
    side = TILE * FINE
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), CORNER * FINE, fill=255)
    return mask.resize((TILE, TILE), Image.Resampling.BOX)


def wrapped(
    text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, lines: int
) -> list[str]:
    """The text in lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    out: list[str] = []
    for word in text.split():
        if out and font.getlength(f"{out[-1]} {word}") <= width:
            out[-1] += f" {word}"
        else:
            out.append(word)
    if len(out) > lines:
        out = [*out[: lines - 1], f"{out[lines - 1]} …"]
    return [cut(line, font, width) for line in out]


def cut(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    while line and font.getlength(line) > width:
        line = f"{line.removesuffix('…').rstrip()[:-1]}…" if len(line) > 1 else ""
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a dataset's first pictures, labelled.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=8)
    given = parser.parse_args()
    rows = rows_of(given.folder)
    there = ((row.prompt, row.picture) for row in rows if row.picture is not None)
    labelled = list(islice(there, given.rows * given.columns))
    if not labelled:
        parser.exit(2, f"{given.folder / 'data'} holds no picture\n")
    sheet = draw_sheet(labelled, given.columns)
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.point(FEWER * 3).save(given.picture, optimize=True)


if __name__ == "__main__":
    main()
