"""What the chain asks its models, and how their pictures are counted; the whole of it is run in
`tests/e2e/test_chain.py`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shapes.chain import AGAIN, ONCE, RECIPES, WORD, WORLD, Chain, Line, asked, shares, write_lines
from shapes.pictures import png


def test_each_line_asks_its_prompts_at_its_steps_with_its_lora(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.parquet", AGAIN, Path("/somewhere"))
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(rows) == sum(len(asked(line)) for line in AGAIN)
    worn = {row["key"].rpartition("/")[0]: row["loras"] for row in rows}
    for line in AGAIN:
        made = [{"path": f"/somewhere/{line.lora}/lora.safetensors"}] if line.lora else []
        assert worn[line.title] == made
    assert {row["num_inference_steps"] for row in rows} == {None, 1}


def test_old_prompts_were_never_trained_on_and_new_ones_name_the_word() -> None:
    old = torch.stack([WORLD.parse(prompt) for prompt in asked(Line("old"))])  # type: ignore[misc]
    assert WORLD.held_out(old).all()
    assert all(f" {WORD}" in prompt for prompt in asked(Line("new", new=True)))


def dataset(folder: Path, rows: list[tuple[str, str, bytes]]) -> Path:
    (folder / "data").mkdir(parents=True)
    lines = [
        {"key": key, "prompt": prompt, "image": {"bytes": data, "path": None}}
        for key, prompt, data in rows
    ]
    pq.write_table(pa.Table.from_pylist(lines), folder / "data" / "a.parquet")
    return folder


def drawn(prompt: str) -> bytes:
    row = WORLD.parse(prompt)
    assert row is not None
    return png(WORLD.draw(row[None])[0])


def test_pictures_count_that_show_all_that_was_asked(tmp_path: Path) -> None:
    line = ONCE[0]
    prompts = asked(line)
    wrong = len(prompts) // 4
    rows = [
        (f"{line.title}/{i}", prompt, drawn(prompts[i - 1] if i < wrong else prompt))
        for i, prompt in enumerate(prompts)
    ]
    found = shares(dataset(tmp_path, rows), ONCE)
    assert found[line.title] == pytest.approx(1 - wrong / len(prompts), abs=0.02)


def test_a_picture_that_is_missing_is_no_smaller_count(tmp_path: Path) -> None:
    rows = [(f"{ONCE[0].title}/0", asked(ONCE[0])[0], drawn(asked(ONCE[0])[0]))]
    with pytest.raises(ValueError, match="has 1 pictures"):
        shares(dataset(tmp_path, rows), ONCE)


def test_every_recipe_of_the_chain_is_a_step_of_it(tmp_path: Path) -> None:
    steps = set(Chain(tmp_path).steps)
    assert {path.stem for path in RECIPES.glob("*.yaml")} <= steps
