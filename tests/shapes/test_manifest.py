"""The demo manifest is even, mixed and repeatable."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from shapes.manifest import prompts, reserved_prompts, write_manifest
from shapes.recipe import ONE, TWO

WORLD = ONE.world


def asked(texts: list[str]) -> torch.Tensor:
    rows = [WORLD.parse(text) for text in texts]
    return torch.stack([row for row in rows if row is not None])


def test_a_third_can_be_held_out_and_all_values_are_equally_common() -> None:
    rows = asked(prompts(WORLD, 96, 32))
    assert len(rows) == 96
    assert int(WORLD.held_out(rows).sum()) == 32
    for column, count in zip(rows.T, WORLD.counts, strict=True):
        taken = torch.bincount(column, minlength=count)
        assert taken.max() - taken.min() <= 3


def test_no_combination_comes_twice() -> None:
    rows = asked(prompts(WORLD, 256, 85))
    assert len({tuple(row.tolist()) for row in rows}) == 256


def test_all_prompts_may_name_one_reserved_shape() -> None:
    texts = reserved_prompts(WORLD, 128, "zorb")
    assert len(set(texts)) == 128
    assert all(" zorb" in text for text in texts)
    rows = asked(texts)
    assert not WORLD.known(rows).any()


def test_the_same_arguments_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_manifest(tmp_path / f"{name}.parquet", prompts(WORLD, 12, 4))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["key", "prompt"]
    assert table["key"][7].as_py() == "demo-0007"


def test_more_rows_than_the_world_has_are_refused() -> None:
    with pytest.raises(ValueError, match="318"):
        prompts(WORLD, 400, 400)


def test_the_other_worlds_prompts_are_its_own() -> None:
    texts = prompts(TWO.world, 8, 3)
    rows = [row for text in texts if (row := TWO.world.parse(text)) is not None]
    assert int(TWO.world.held_out(torch.stack(rows)).sum()) == 3
    assert all(" of " in text or "above" in text or "below" in text for text in texts)
