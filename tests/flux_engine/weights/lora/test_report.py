from pathlib import Path

import pytest
import torch

from flux_engine.weights.lora.file import full_delta
from flux_engine.weights.lora.names import Sizes, module_shapes
from flux_engine.weights.lora.read import read_lora
from flux_engine.weights.lora.report import report, summary
from tests.flux_engine.weights.lora.written import LAYOUTS, TINY, dora


@pytest.mark.parametrize("layout", ["1 diffusers", "9 LyCORIS LoKr", "9 LyCORIS LoHa"])
def test_sizes_of_changes_are_told_against_the_weights(layout: str, tmp_path: Path) -> None:
    lora = read_lora(LAYOUTS[layout](TINY).save(tmp_path), Sizes(TINY))
    base = {t: torch.ones(module_shapes(TINY)[t[1]]) for t in lora.targets}
    for line in report(lora, base):
        target = (line.role, line.module, line.parameter)
        wanted = float(full_delta(lora.targets[target], base[target]).norm())
        assert line.norm == pytest.approx(wanted, rel=1e-5)
        assert line.relative == pytest.approx(wanted / base[target].numel() ** 0.5, rel=1e-5)
        assert line.module in str(line)


def test_without_the_model_there_is_no_relative_size(tmp_path: Path) -> None:
    lora = read_lora(dora(TINY).save(tmp_path), Sizes(TINY))
    lines = report(lora)
    assert all(line.norm is line.relative is None for line in lines)
    assert lines[0].kind == "LowRank with magnitudes"


def test_a_line_says_how_much_was_matched(tmp_path: Path) -> None:
    lora = read_lora(LAYOUTS["1 diffusers"](TINY).save(tmp_path), Sizes(TINY))
    assert summary(report(lora)) == {
        "matched": {"dit": len(lora.targets)}, "rank": 4, "largest_change": None,
    }  # fmt: skip
