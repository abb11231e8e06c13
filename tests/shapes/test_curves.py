"""Curves are drawn from whatever the stages have written so far."""

import json
from pathlib import Path

from PIL import Image

from shapes.curves import draw_curves


def test_a_stage_without_a_journal_leaves_an_empty_panel(tmp_path: Path) -> None:
    draw_curves(tmp_path, tmp_path / "empty.png")
    lines = [json.dumps({"step": 25 * i, "loss": 0.5**i}) for i in range(5)]
    (tmp_path / "teacher.jsonl").write_text("\n".join(lines))
    draw_curves(tmp_path, tmp_path / "one.png")
    with Image.open(tmp_path / "empty.png") as empty, Image.open(tmp_path / "one.png") as one:
        assert empty.size == one.size
        assert empty.tobytes() != one.tobytes()


def test_a_loss_of_zero_can_be_drawn(tmp_path: Path) -> None:
    lines = [json.dumps({"step": 25 * i, "loss": 0.0}) for i in range(3)]
    (tmp_path / "vae.jsonl").write_text("\n".join(lines))
    draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
