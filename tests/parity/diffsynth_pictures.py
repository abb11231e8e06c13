"""What DiffSynth-Studio makes of pictures before it trains on them, in a process of its own.

    python -m tests.parity.diffsynth_pictures LIBRARY FOLDER MOST ANSWER

`ANSWER` receives a JSON list: of each picture in the folder, in the order of their names, the size
and a digest of what its dynamic operator answers for `MOST` pixels.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.parity.diffsynth_oracle import LIBRARY, ROOT, declare_torchvision_operators


def resized(folder: Path, most: int, answer: Path, library: Path = LIBRARY) -> list[dict[str, Any]]:
    """This module as a process; CalledProcessError if it fails."""
    words = [sys.executable, "-m", "tests.parity.diffsynth_pictures", library, folder, most, answer]
    subprocess.run([str(word) for word in words], cwd=ROOT, check=True)
    told: list[dict[str, Any]] = json.loads(answer.read_text())
    return told


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(library: Path, folder: Path, most: int, answer: Path) -> None:
    sys.path.append(str(library))
    operators = declare_torchvision_operators()
    from diffsynth.core.data.operators import ImageCropAndResize
    from PIL import Image

    operator = ImageCropAndResize(None, None, most, 16, 16)
    told = []
    for path in sorted(folder.iterdir()):
        picture = operator(Image.open(path).convert("RGB"))
        told.append({"size": list(picture.size), "digest": digest(picture.tobytes())})
    answer.write_text(json.dumps(told))
    del operators


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
