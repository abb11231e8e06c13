"""The golden files, made anew by both oracles, each row on its own.

    python -m tests.parity.make_goldens

Needs diffusers, and DiffSynth-Studio in `.oracle` (see `diffsynth_oracle.py`). To be run when the
cases, the toy models or an oracle's release change; takes about a minute.
"""

import tempfile
from pathlib import Path

import torch

from tests.parity import diffsynth_oracle, goldens, tiny
from tests.parity.cases import SPECS, cases_of
from tests.parity.diffusers_oracle import DiffusersOracle


def main(folder: Path = goldens.FOLDER) -> None:
    torch.set_num_threads(1)
    diffsynth_oracle.run(folder)
    for spec in SPECS:
        with tempfile.TemporaryDirectory() as weights:
            oracle = DiffusersOracle(tiny.write_folder(Path(weights), spec), spec)
        for case in cases_of("flux", spec):
            goldens.write(goldens.answer(case, oracle.generate, "diffusers"), case.name, folder)


if __name__ == "__main__":
    main()
