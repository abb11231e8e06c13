"""What DiffSynth-Studio's own dataset reads from an exported table, from a process of its own.

    python -m tests.parity.diffsynth_dataset LIBRARY FOLDER TABLE ANSWER

`ANSWER` receives a JSON list: each row as that dataset gives it, of a picture its size and digest,
and the digest of the noise that its pipeline draws.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.parity.diffsynth_oracle import LIBRARY, ROOT, declare_torchvision_operators


def read(folder: Path, table: str, answer: Path, library: Path = LIBRARY) -> list[dict[str, Any]]:
    """This module as a process; CalledProcessError if it fails."""
    words = [sys.executable, "-m", "tests.parity.diffsynth_dataset", library, folder, table, answer]
    subprocess.run([str(word) for word in words], cwd=ROOT, check=True)
    rows: list[dict[str, Any]] = json.loads(answer.read_text())
    return rows


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(library: Path, folder: Path, table: str, answer: Path) -> None:
    sys.path.append(str(library))
    operators = declare_torchvision_operators()
    import torch
    from diffsynth.core.data.unified_dataset import UnifiedDataset
    from diffsynth.diffusion.base_pipeline import BasePipeline

    dataset = UnifiedDataset(
        base_path=str(folder),
        metadata_path=str(folder / table),
        data_file_keys=("image",),
        main_data_operator=UnifiedDataset.default_image_operator(base_path=str(folder)),
    )
    rows = []
    for i in range(len(dataset)):
        row = dataset[i]
        width, height = row["image"].size
        noise = BasePipeline.generate_noise(
            None,
            (1, 16, height // 8, width // 8),
            seed=row["seed"],
            rand_device=row["rand_device"],
            device="cpu",
            torch_dtype=torch.float32,
        )
        picture = digest(row.pop("image").tobytes())
        told = {"size": [width, height], "picture": picture, "noise": digest(noise.numpy())}
        rows.append({k: v.item() if hasattr(v, "item") else v for k, v in row.items()} | told)
    answer.write_text(json.dumps(rows))
    del operators


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
