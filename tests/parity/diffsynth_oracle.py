"""DiffSynth-Studio's answers to the `diffsynth` cases, from a process of its own.

    python -m tests.parity.diffsynth_oracle LIBRARY FOLDER [LORA]

`LIBRARY` is a folder made by `pip install --no-deps --target LIBRARY diffsynth==2.1.12
torchvision==0.28.0 imageio ftfy wcwidth`; it comes last on the path, so all else is the
environment's own. `FOLDER` receives a golden file per case; with a `LORA` file, of the first
case alone, made with it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.parity import goldens, tiny
from tests.parity.cases import SPECS, cases_of

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / ".oracle"


def run(folder: Path, library: Path = LIBRARY, lora: Path | None = None) -> None:
    """This module as a process; CalledProcessError if it fails."""
    module = "tests.parity.diffsynth_oracle"
    words = [sys.executable, "-m", module, library, folder, *([lora] if lora else [])]
    subprocess.run([str(word) for word in words], cwd=ROOT, check=True)


def declare_torchvision_operators() -> torch.library.Library | None:
    """Lets that torchvision, which is built for CUDA, be imported beside a torch for the CPU.

    Its operators' library cannot be loaded then, and its import registers fake kernels for two
    of them. They are never called; that they are declared is enough while the answer is held.
    """
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def main(library: Path, folder: Path, lora: Path | None = None) -> None:
    torch.set_num_threads(1)
    sys.path.append(str(library))
    operators = declare_torchvision_operators()
    from tests.parity.diffsynth_models import DiffSynthOracle

    for spec in SPECS[:1] if lora else SPECS:
        with tempfile.TemporaryDirectory() as weights:
            oracle = DiffSynthOracle(tiny.write_folder(Path(weights), spec), spec)
        if lora is not None:
            oracle.pipe.load_lora(oracle.pipe.dit, str(lora))
        for case in list(cases_of("diffsynth", spec))[: 1 if lora else None]:
            golden = goldens.answer(case, oracle.generate, "diffsynth")
            goldens.write(golden, case.name, folder)
    del operators


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
