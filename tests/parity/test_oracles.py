"""The golden files against the oracles themselves, run again."""

from pathlib import Path

import pytest

from tests.parity import diffsynth_oracle, goldens
from tests.parity.agreement import assert_latents_agree, assert_pixels_agree
from tests.parity.cases import CASES, SPECS, Case, cases_of
from tests.parity.diffusers_oracle import DiffusersOracle
from tests.parity.goldens import Golden
from tests.parity.tiny import TinySpec

pytestmark = pytest.mark.oracle


def assert_same(live: Golden, kept: Golden) -> None:
    assert_latents_agree(live.latents, kept.latents)
    assert (live.pixels is None) == (kept.pixels is None)
    if live.pixels is not None and kept.pixels is not None:
        assert_pixels_agree(live.pixels, kept.pixels)


def test_every_golden_file_has_its_case() -> None:
    kept = {path.stem for path in goldens.FOLDER.glob("*.safetensors")}
    assert kept == {case.name for case in CASES}


@pytest.mark.parametrize("spec", SPECS, ids=["dev", "schnell"])
def test_the_goldens_are_what_diffusers_says(spec: TinySpec, folders: dict[TinySpec, Path]) -> None:
    oracle = DiffusersOracle(folders[spec], spec)
    for case in cases_of("flux", spec):
        assert_same(goldens.answer(case, oracle.generate, "diffusers"), goldens.read(case.name))


@pytest.mark.skipif(
    not diffsynth_oracle.LIBRARY.is_dir(), reason="DiffSynth-Studio is not installed in .oracle"
)
def test_the_goldens_are_what_diffsynth_says(tmp_path: Path) -> None:
    diffsynth_oracle.run(tmp_path)
    mine: list[Case] = [case for spec in SPECS for case in cases_of("diffsynth", spec)]
    for case in mine:
        assert_same(goldens.read(case.name, tmp_path), goldens.read(case.name))
