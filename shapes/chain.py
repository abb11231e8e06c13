"""From prompts to pictures, targets, a student and a LoRA, and to pictures that are measured again:

    python -m shapes.chain [--folder .] [--until STEP]

Everything goes through the jobs and the recipes of `jobs/recipes/chain/`; what is finished is not
made again. Ends with a table and `out/chain/measured.json`: how many pictures show what they were
asked for, and how far the student's latents are from the teacher's.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from batch.training.results import FINAL_LORA, FINAL_MODEL
from flux_engine import FluxEngine, GenerationRequest, load_engine
from shapes.dataset import rows_of, to_tensor
from shapes.manifest import prompts, reserved_prompts, write_manifest
from shapes.pictures import write_pictures
from shapes.recipe import ONE
from shapes.ruler import score

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "jobs" / "recipes" / "chain"
PLACE = Path("out") / "chain"
WORLD, WORD = ONE.world, "flim"
KNOWN, CONCEPT, UNSEEN, WORDS = 768, 64, 256, 128  # rows of each manifest
AT_ONCE = 64


@dataclass(frozen=True)
class Line:
    """Some rows of the table: old prompts or new ones, and what rows say besides; `lora` is the
    step that made what they wear."""

    title: str
    new: bool = False
    steps: int | None = None
    lora: str | None = None


AGAIN = (
    Line("teacher, 16 steps"),
    Line("teacher, 1 step", steps=1),
    Line("teacher, new word", new=True),
    Line("LoRA, new word", new=True, lora="lora"),
    Line("LoRA, old prompts", lora="lora"),
    Line("no prior, new word", new=True, lora="alone"),
    Line("no prior, old prompts", lora="alone"),
)
ONCE = (Line("student, 1 step"),)


@dataclass(frozen=True)
class Measured:
    """`right`: shares of pictures with every attribute right, by line. `latent_error`: the relative
    distance of one step's latents from those of the teacher's 16, of teacher and student."""

    right: dict[str, float]
    latent_error: dict[str, float]


def asked(line: Line) -> list[str]:
    if line.new:
        return reserved_prompts(WORLD, WORDS, WORD, seed=1)
    return prompts(WORLD, UNSEEN, UNSEEN, seed=1)


def write_lines(path: Path, lines: tuple[Line, ...], place: Path) -> None:
    """Rows of all lines; a key begins with its line's title, a row's noise is its number's."""
    rows = [
        {
            "key": f"{line.title}/{i:04}",
            "prompt": prompt,
            "seed": i,
            "num_inference_steps": line.steps,
            "loras": [{"path": str(place / line.lora / FINAL_LORA)}] if line.lora else [],
        }
        for line in lines
        for i, prompt in enumerate(asked(line))
    ]
    worn = pa.list_(pa.struct([("path", pa.string())]))
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("prompt", pa.string()),
            ("seed", pa.int64()),
            ("num_inference_steps", pa.int32()),
            ("loras", worn),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def shares(output: Path, lines: tuple[Line, ...]) -> dict[str, float]:
    """Of each line's pictures, how many show all that was asked; ValueError if one is missing."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {line.title: [] for line in lines}
    for row in rows_of(output):
        attributes = WORLD.parse(row.prompt)
        if row.picture is None or attributes is None:
            raise ValueError(f"{output}: row {row.key} has no picture, or another world's prompt")
        title = row.key.rpartition("/")[0]
        found[title].append((to_tensor(row.picture, WORLD.side), attributes))
    out = {}
    for line in lines:
        if len(found[line.title]) != len(asked(line)):
            raise ValueError(f"{output}: {line.title} has {len(found[line.title])} pictures")
        pictures, rows = zip(*found[line.title], strict=True)
        out[line.title] = score(WORLD, torch.stack(pictures), torch.stack(rows)).all
    return out


def latents(engine: FluxEngine, steps: int) -> Tensor:
    """The latents that an engine makes of the unseen prompts, each from its own noise."""
    requests = [
        GenerationRequest(
            prompt=prompt, seed=i, height=WORLD.side, width=WORLD.side, num_inference_steps=steps,
            embedded_guidance=ONE.guidance, sigma_shift=ONE.shift,
            t5_sequence_length=ONE.text_length, decode=False,
        )
        for i, prompt in enumerate(asked(AGAIN[0]))
    ]  # fmt: skip
    made = [
        one
        for first in range(0, len(requests), AT_ONCE)
        for one in engine.generate(requests[first : first + AT_ONCE])
    ]
    return torch.stack([one.latents.float() for one in made])


def errors(student: Path) -> dict[str, float]:
    """Of one step, against the teacher's 16."""
    teacher = load_engine("flux-shapes", torch_dtype=torch.float32, device="cpu")
    true = latents(teacher, ONE.steps)
    pupil = load_engine(student, torch_dtype=torch.float32, device="cpu")
    ones = {"teacher, 1 step": teacher, "student, 1 step": pupil}
    return {
        name: ((latents(engine, 1) - true).norm() / true.norm()).item()
        for name, engine in ones.items()
    }


class Chain:
    """All steps, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / PLACE
        self.steps: dict[str, Callable[[], None]] = {
            "prompts": self.prompts,
            **{name: self._job("generate", name) for name in ("images",)},
            **{name: self._job("distill", name) for name in ("pairs", "known", "word")},
            **{name: self._job("train", name) for name in ("student", "lora", "alone")},
            "lines": self.lines,
            **{name: self._job("generate", name) for name in ("again", "once")},
            "measure": self.measure,
        }

    def run(self, until: str) -> None:
        for name, step in self.steps.items():
            print(f"— {name}", flush=True)
            step()
            if name == until:
                return

    def prompts(self) -> None:
        write_manifest(self.place / "prompts.parquet", prompts(WORLD, KNOWN, 0), "known")
        write_pictures(self.place / "word.parquet", WORLD, CONCEPT, word=WORD)

    def lines(self) -> None:
        write_lines(self.place / "again.parquet", AGAIN, self.place)
        write_lines(self.place / "once.parquet", ONCE, self.place)

    def measure(self) -> None:
        right = shares(self.place / "again", AGAIN) | shares(self.place / "once", ONCE)
        told = Measured(right, errors(self.place / "student" / FINAL_MODEL))
        (self.place / "measured.json").write_text(json.dumps(asdict(told), indent=2) + "\n")
        print("\n".join(table(told)))

    def _job(self, job: str, recipe: str) -> Callable[[], None]:
        words = [sys.executable, "-m", f"jobs.{job}", "--config", str(RECIPES / f"{recipe}.yaml")]

        def run() -> None:
            env = os.environ | {"PYTHONPATH": str(ROOT)}  # the jobs beside this file, wherever
            subprocess.run(words, cwd=self.folder, env=env, check=True)

        return run


def table(told: Measured) -> list[str]:
    lines = [f"{'':24}{'all right':>10}{'latent error':>14}"]
    for title, share in told.right.items():
        off = told.latent_error.get(title)
        lines.append(f"{title:24}{share:>10.1%}" + (f"{off:>14.3f}" if off is not None else ""))
    return lines


def read_measured(folder: Path) -> dict[str, Any]:
    """What the last run in this folder measured."""
    found: dict[str, Any] = json.loads((folder / PLACE / "measured.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The whole chain with the demo model.")
    parser.add_argument("--folder", type=Path, default=Path())
    steps = list(Chain(Path()).steps)
    parser.add_argument("--until", choices=steps, default=steps[-1])
    given = parser.parse_args()
    Chain(given.folder.absolute()).run(given.until)


if __name__ == "__main__":
    main()
