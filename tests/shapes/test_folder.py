"""Weights written to a folder are the weights read from it."""

from pathlib import Path

import pytest
import torch

from flux_engine.models.dit import FluxSpec, FluxTransformer
from shapes.flow import SPEC, UNGUIDED
from shapes.folder import TRANSFORMER, load_transformer, write_weights


@pytest.mark.parametrize("spec", [SPEC, UNGUIDED])
def test_a_transformer_comes_back_rounded_to_bfloat16(tmp_path: Path, spec: FluxSpec) -> None:
    net = FluxTransformer(spec)
    write_weights(net, tmp_path / TRANSFORMER)
    again = load_transformer(tmp_path)
    assert again.spec == spec
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b)


def test_nothing_but_the_whole_file_is_left(tmp_path: Path) -> None:
    write_weights(FluxTransformer(UNGUIDED), tmp_path / TRANSFORMER)
    assert [path.name for path in tmp_path.iterdir()] == [TRANSFORMER]
    assert (tmp_path / TRANSFORMER).stat().st_mode & 0o044
