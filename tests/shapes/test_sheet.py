"""Sheets show every picture above its prompt."""

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from shapes.sheet import GAP, TILE, draw_sheet, main, wrapped
from tests.shapes.test_score import TEXTS, picture, write

FONT = ImageFont.load_default(12)


def test_pictures_stand_line_by_line_and_words_below_them() -> None:
    tiles = [(f"the word {name}", Image.new("RGB", (64, 64), name)) for name in ("red", "lime")]
    sheet = draw_sheet([*tiles, *tiles[:1]], columns=2)
    middle, pitch = GAP + TILE // 2, TILE + GAP
    assert sheet.width == GAP + 2 * pitch
    assert sheet.getpixel((middle, middle)) == (255, 0, 0)
    assert sheet.getpixel((middle + pitch, middle)) == (0, 255, 0)
    below = sheet.crop((GAP, GAP + TILE, GAP + TILE, GAP + TILE + 24)).convert("L")
    darkest, _ = below.getextrema()
    assert isinstance(darkest, int)
    assert darkest < 120
    assert sheet.getpixel((middle + pitch, sheet.height - middle)) == (255, 255, 255)


def test_every_prompt_of_the_world_fits() -> None:
    for text in TEXTS:
        lines = wrapped(text, FONT, TILE, 4)
        assert " ".join(lines) == text
        assert max(FONT.getlength(line) for line in lines) <= TILE


def test_what_does_not_fit_ends_in_an_ellipsis() -> None:
    lines = wrapped("word " * 50, FONT, TILE, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    (line,) = wrapped("x" * 300, FONT, TILE, 3)
    assert line.endswith("…")
    assert FONT.getlength(line) <= TILE


def test_a_dataset_becomes_a_sheet_of_the_asked_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, TEXTS, [picture(text) for text in TEXTS[1:]] + [None])
    told = [str(tmp_path), str(tmp_path / "docs" / "a.png"), "--rows", "2", "--columns", "3"]
    monkeypatch.setattr(sys, "argv", ["sheet", *told])
    main()
    with Image.open(tmp_path / "docs" / "a.png") as sheet:
        assert sheet.width == GAP + 3 * (TILE + GAP)


def test_a_folder_without_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sheet", str(tmp_path), str(tmp_path / "a.png")])
    with pytest.raises(SystemExit):
        main()
    assert "holds no picture" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
