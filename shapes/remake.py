"""Make a world's model from nothing: `python -m shapes.remake [--world one|two] --out DIR`.

The autoencoder is trained here; all else goes through the jobs: pictures into latents
(`jobs.distill`), a teacher (`jobs.train`), its answers with and without the prompt
(`jobs.distill`), and the model that gives both in one pass (`jobs.train`). Their job files are in
DIR/jobs. What is finished is not made again, and what was cut short goes on.

DIR/flux-shapes (or flux-shapes-2) is the model's folder. World one takes about half an hour of one
CPU core; world two is meant for a GPU and has not been trained yet.
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from shapes.autoencoder import train_autoencoder
from shapes.folder import TRANSFORMER, begin, finish, load_autoencoder, load_transformer
from shapes.initial import untaught, with_guidance
from shapes.manifest import prompts, write_manifest
from shapes.pictures import write_pictures
from shapes.recipe import Recipe, recipe
from shapes.ruler import score
from shapes.score import score_dataset, table
from shapes.world import blocks, keyed

DROPPED = 0.1  # share of captions left out, for classifier-free guidance
WEIGHTS = (1.0, 5.0)  # of guidance, drawn evenly
QUERIES = 3  # noise levels of each picture that the teacher is asked about

Values = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What to make, where, on which device, and with which seed."""

    recipe: Recipe
    out: Path
    device: str = "cpu"
    seed: int = 0

    @property
    def result(self) -> Path:
        return self.out / self.recipe.world.name

    @property
    def engine(self) -> Values:
        return {"torch_dtype": "float32", "device": self.device}

    def training(self, model: Path, steps: int, rate: float, average: float) -> Values:
        """What both trainings have in common."""
        return {
            "model": str(model),
            "torch_dtype": "float32",
            "device": self.device,
            "trainable_models": "dit",
            "batch_size": self.recipe.batch,
            "max_steps": steps,
            "learning_rate": rate,
            "lr_schedule": {"kind": "cosine", "warmup_steps": 50, "floor": 0.02},
            "optimizer": {"betas": [0.9, 0.99]},
            "weight_decay": 0,
            "ema": average,
            "seed": self.seed,
        }


def stage_autoencoder(plan: Plan) -> None:
    """DIR/start: every part, the transformer untaught."""
    start = plan.out / "start"
    if (start / TRANSFORMER).exists():
        return
    device = torch.device(plan.device)
    vae = train_autoencoder(plan.out / "autoencoder", plan.recipe, seed=plan.seed, device=device)
    begin(start, plan.recipe, vae, plan.seed)
    finish(start, plan.recipe, untaught(plan.recipe, plan.seed))
    judge_autoencoder(plan)


@torch.no_grad()
def judge_autoencoder(plan: Plan) -> None:
    """How well pictures survive."""
    world, vae = plan.recipe.world, load_autoencoder(plan.out / "start", plan.recipe)
    rows = world.some(2 * plan.recipe.questions, keyed("vae"))
    true = world.draw(rows, keyed("vae", "jitter"))
    again = torch.cat([vae.decode(vae.encode(part * 2 - 1)) for part in blocks(true, 64)])
    again = ((again + 1) / 2).clamp(0, 1)
    psnr = -10 * (again - true).square().mean().log10().item()
    logger.info("autoencoder: %.1f dB, %s", psnr, score(world, again, rows).as_dict())


def stage_latents(plan: Plan) -> None:
    pictures = plan.out / "pictures.parquet"
    if not pictures.exists():
        write_pictures(pictures, plan.recipe.world, plan.recipe.pictures, seed=plan.seed)
    job = {
        "manifest": str(pictures),
        "rows_per_shard": 512,
        "target": {"kind": "cache"},
        "engine": {"model": str(plan.out / "start"), **plan.engine},
    }
    work(plan, "distill", "latents", job)


def stage_teacher(plan: Plan) -> None:
    """A transformer without embedded guidance, which two passes can guide."""
    sizes = plan.recipe
    job = {
        **plan.training(plan.out / "start", sizes.teacher_steps, sizes.teacher_rate, 0.998),
        "dataset": str(plan.out / "latents"),
        "task": "sft",
        "caption_dropout": DROPPED,
    }
    work(plan, "train", "teacher", job)


def stage_answers(plan: Plan) -> None:
    job = {
        "manifest": str(plan.out / "pictures.parquet"),
        "rows_per_shard": 512,
        "target": {"kind": "velocity", "queries": QUERIES, "unconditional": True},
        "engine": {"model": str(plan.out / "teacher" / "model"), **plan.engine},
    }
    work(plan, "distill", "answers", job)


def stage_guidance(plan: Plan) -> None:
    """The teacher's two passes, u + w·(c − u), as one that is told w."""
    sizes, start = plan.recipe, plan.out / "guided"
    if not (start / TRANSFORMER).exists():
        teacher = load_transformer(plan.out / "teacher" / "model", sizes)
        guided = with_guidance(teacher, sizes, plan.seed)
        finish(start, sizes, guided, source=plan.out / "start")
    job = {
        **plan.training(start, sizes.guidance_steps, sizes.guidance_rate, 0.99),
        "dataset": str(plan.out / "answers"),
        "task": "kd_w",
        "embedded_guidance": list(WEIGHTS),
    }
    work(plan, "train", "one-pass", job)
    if not plan.result.exists():
        net = load_transformer(plan.out / "one-pass" / "model", sizes)
        finish(plan.result, sizes, net, source=plan.out / "start")


def stage_score(plan: Plan) -> None:
    """Combinations that training never had, and as many that it had, at the model's defaults."""
    world, count = plan.recipe.world, plan.recipe.questions
    manifest = plan.out / "questions.parquet"
    unseen = min(count, len(world.part(unseen=True)))
    write_manifest(manifest, prompts(world, unseen + count, unseen), "question")
    job = {
        "manifest": str(manifest),
        "rows_per_shard": 256,
        "engine": {"model": str(plan.result), **plan.engine},
    }
    work(plan, "generate", "answered", job)
    print(table(score_dataset(plan.out / "answered", world)))


def work(plan: Plan, job: str, name: str, values: Values) -> None:
    """Run a job whose output is DIR/name; its file is kept."""
    output = "output_path" if job == "train" else "output"
    file = plan.out / "jobs" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({output: str(plan.out / name), **values}, indent=2) + "\n")
    subprocess.run([sys.executable, "-m", f"jobs.{job}", "--config", str(file)], check=True)


STAGES: dict[str, Callable[[Plan], None]] = {
    "autoencoder": stage_autoencoder,
    "latents": stage_latents,
    "teacher": stage_teacher,
    "answers": stage_answers,
    "guidance": stage_guidance,
    "score": stage_score,
}
LAST = "score"


def run(plan: Plan, until: str = LAST) -> None:
    """All stages up to `until`; those that are complete cost little."""
    plan.out.mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        stage(plan)
        if name == until:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--world", choices=("one", "two"), default="one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--until", choices=list(STAGES), default=LAST)
    parser.add_argument("--seed", type=int, default=0)
    sizes = [field.name for field in fields(Recipe) if field.type is int]
    for name in sizes:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: the world's")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    told = {name: value for name in sizes if (value := getattr(given, name)) is not None}
    run(
        Plan(replace(recipe(given.world), **told), given.out.absolute(), given.device, given.seed),
        given.until,
    )


if __name__ == "__main__":
    main()
