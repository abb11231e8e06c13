"""Train a world's model from nothing: `python -m shapes.train [--world one|two] --out DIR`.

Four stages, vae, cache, teacher and guidance. A stage that was cut short goes on from its last
checkpoint and ends with the same weights. DIR/teacher and DIR/flux-shapes (or flux-shapes-2) are
model folders. World one needs about half an hour of one CPU core; world two is meant for a GPU,
`--device cuda`, and has not been trained yet. On a CPU, set
MALLOC_MMAP_THRESHOLD_=1073741824 and MALLOC_TRIM_THRESHOLD_=4294967296, or glibc hands every
large temporary back to the kernel.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from shapes.autoencoder import train_autoencoder
from shapes.cache import Cache, write_cache
from shapes.curves import draw_curves
from shapes.denoiser import train_guidance, train_teacher
from shapes.examination import Questions, answers, contact_sheet
from shapes.flow import ClassifierFree, Velocity
from shapes.folder import (
    AUTOENCODER,
    TRANSFORMER,
    begin,
    finish,
    load_autoencoder,
    load_transformer,
)
from shapes.loop import Journal, Schedule
from shapes.recipe import Recipe, recipe
from shapes.ruler import score
from shapes.text import TextEncoders
from shapes.world import blocks, keyed

STAGES = ("vae", "cache", "teacher", "guidance")
SHOWN = 14  # pictures in each row of a sheet


@dataclass(frozen=True)
class Plan:
    """What to make, where, on which device, and with which seed."""

    recipe: Recipe
    out: Path
    device: torch.device
    seed: int = 0

    @property
    def parts(self) -> Path:
        """The teacher's folder, which has every part from the first stage on."""
        return self.out / "teacher"

    @property
    def result(self) -> Path:
        return self.out / self.recipe.world.name

    @property
    def cache(self) -> Path:
        return self.out / "cache.safetensors"

    def load_cache(self) -> Cache:
        return Cache.load(self.cache, self.device)

    def load_encoders(self) -> TextEncoders:
        return TextEncoders.load(self.parts, self.recipe.text_length)


def stage_vae(plan: Plan) -> None:
    if (plan.parts / AUTOENCODER).exists():
        return
    schedule = Schedule(steps=plan.recipe.vae_steps, rate=2e-3, keep_every=100)
    vae = train_autoencoder(plan.out, plan.recipe, schedule, seed=plan.seed, device=plan.device)
    begin(plan.parts, plan.recipe, vae, plan.seed)
    judge_vae(plan)


@torch.no_grad()
def judge_vae(plan: Plan) -> None:
    """How well pictures survive; one sheet of them."""
    world, vae = plan.recipe.world, load_autoencoder(plan.parts, plan.recipe)
    rows = world.some(2 * plan.recipe.questions, keyed("vae"))
    true = world.draw(rows, keyed("vae", "jitter"))
    z = torch.cat([vae.encode(part * 2 - 1) for part in blocks(true, 64)])
    again = torch.cat([(vae.decode(part) + 1) / 2 for part in blocks(z, 64)]).clamp(0, 1)
    psnr = -10 * (again - true).square().mean().log10().item()
    journal = Journal(plan.out / "vae.score.jsonl")
    shares = score(world, again, rows).as_dict()
    journal.write(psnr=round(psnr, 2), spread=round(z.std().item(), 3), **shares)
    contact_sheet(plan.out / "vae.png", true[:SHOWN], again[:SHOWN])


def stage_cache(plan: Plan) -> None:
    if plan.cache.exists():
        return
    vae = load_autoencoder(plan.parts, plan.recipe).to(plan.device)
    write_cache(
        plan.cache, plan.recipe.world, vae, plan.load_encoders(),
        seed=plan.seed, pictures=plan.recipe.pictures,
    )  # fmt: skip


def stage_teacher(plan: Plan) -> None:
    if (plan.parts / TRANSFORMER).exists():
        return
    recipe, cache = plan.recipe, plan.load_cache()
    schedule = Schedule(steps=recipe.teacher_steps, rate=recipe.teacher_rate, averaging=0.998)
    net = train_teacher(plan.out, recipe, cache, schedule, seed=plan.seed)
    finish(plan.parts, recipe, net)
    kept = load_transformer(plan.parts, recipe).to(plan.device)
    judge(plan, "teacher", ClassifierFree(kept, cache.empty))


def stage_guidance(plan: Plan) -> None:
    if (plan.result / TRANSFORMER).exists():
        return
    recipe, teacher = plan.recipe, load_transformer(plan.parts, plan.recipe)
    schedule = Schedule(steps=recipe.guidance_steps, rate=recipe.guidance_rate, averaging=0.99)
    net = train_guidance(plan.out, recipe, plan.load_cache(), schedule, teacher, seed=plan.seed)
    finish(plan.result, recipe, net, source=plan.parts)
    judge(plan, "guidance", Velocity(load_transformer(plan.result, recipe).to(plan.device)))


def judge(plan: Plan, stage: str, velocity: Velocity) -> None:
    """Scores by number of steps, strength of guidance and novelty; one sheet of pictures."""
    recipe = plan.recipe
    vae, encoders = load_autoencoder(plan.parts, recipe).to(plan.device), plan.load_encoders()
    journal = Journal(plan.out / f"{stage}.score.jsonl")

    def answered(questions: Questions, steps: int, guidance: float) -> torch.Tensor:
        return answers(
            velocity, vae, encoders, questions, steps=steps, shift=recipe.shift, guidance=guidance
        )

    steps, strength = recipe.steps, recipe.guidance
    for unseen, n, guidance in (
        (True, steps, strength), (True, steps, 1.0), (True, steps, 5.0), (True, 4, strength),
        (True, 1, strength), (False, steps, strength),
    ):  # fmt: skip
        questions = Questions.pick(recipe, recipe.questions, unseen=unseen)
        result = score(recipe.world, answered(questions, n, guidance), questions.rows)
        journal.write(unseen=unseen, steps=n, guidance=guidance, **result.as_dict())
    questions = Questions.pick(recipe, min(SHOWN, recipe.questions), unseen=True)
    sheet = [answered(questions, steps, guidance) for guidance in (1.0, strength, 5.0)]
    contact_sheet(plan.out / f"{stage}.png", recipe.world.draw(questions.rows), *sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--world", choices=("one", "two"), default="one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1])
    parser.add_argument("--seed", type=int, default=0)
    sizes = [field.name for field in fields(Recipe) if field.type is int]
    for name in sizes:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: the world's")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    told = {name: value for name in sizes if (value := getattr(given, name)) is not None}
    plan = Plan(
        replace(recipe(given.world), **told), given.out, torch.device(given.device), given.seed
    )
    plan.out.mkdir(parents=True, exist_ok=True)
    run(plan, given.until)


def run(plan: Plan, until: str = STAGES[-1]) -> None:
    """All stages up to `until`; those that are complete cost nothing."""
    stages: dict[str, Callable[[Plan], None]] = {
        "vae": stage_vae,
        "cache": stage_cache,
        "teacher": stage_teacher,
        "guidance": stage_guidance,
    }
    for name in STAGES[: STAGES.index(until) + 1]:
        stages[name](plan)
    draw_curves(plan.out, plan.out / "curves.png")


if __name__ == "__main__":
    main()
