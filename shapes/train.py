"""Train the shapes model from nothing: `python -m shapes.train --out DIR`.

Four stages, vae, cache, teacher and guidance. A stage that was cut short goes on from its last
checkpoint and ends with the same weights. DIR/teacher and DIR/flux-shapes are model folders.
One CPU core needs about half an hour; `--device cuda` is faster. On a CPU, set
MALLOC_MMAP_THRESHOLD_=1073741824 and MALLOC_TRIM_THRESHOLD_=4294967296, or glibc hands every
large temporary back to the kernel.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shapes.autoencoder import train_autoencoder
from shapes.cache import Cache, write_cache
from shapes.curves import draw_curves
from shapes.denoiser import train_guidance, train_teacher
from shapes.examination import Questions, answers, contact_sheet, examine
from shapes.flow import ClassifierFree, Velocity
from shapes.folder import (
    AUTOENCODER,
    GUIDANCE,
    SHIFT,
    STEPS,
    TRANSFORMER,
    begin,
    finish,
    load_autoencoder,
    load_transformer,
)
from shapes.loop import Journal, Schedule
from shapes.ruler import score
from shapes.text import TextEncoders
from shapes.world import blocks, combinations, draw, keyed

STAGES = ("vae", "cache", "teacher", "guidance")


@dataclass(frozen=True)
class Plan:
    """Where to, with which seed, and how long each stage is."""

    out: Path
    device: torch.device
    seed: int = 0
    small_steps: int = 900  # of the autoencoder's, at half size
    small_batch: int = 32
    vae_steps: int = 1600
    vae_batch: int = 12
    pictures: int = 12288
    teacher_steps: int = 1800
    guidance_steps: int = 500
    batch: int = 64
    questions: int = 256  # pictures in each line of a score

    @property
    def parts(self) -> Path:
        """The teacher's folder, which has every part from the first stage on."""
        return self.out / "teacher"

    @property
    def result(self) -> Path:
        return self.out / "flux-shapes"

    @property
    def cache(self) -> Path:
        return self.out / "cache.safetensors"

    def load_cache(self) -> Cache:
        return Cache.load(self.cache, self.device)


def stage_vae(plan: Plan) -> None:
    if (plan.parts / AUTOENCODER).exists():
        return
    vae = train_autoencoder(
        plan.out,
        Schedule(steps=plan.vae_steps, rate=2e-3, keep_every=100),
        seed=plan.seed,
        small_steps=plan.small_steps,
        small_batch=plan.small_batch,
        batch=plan.vae_batch,
        device=plan.device,
    )
    begin(plan.parts, vae, plan.seed)
    vae = load_autoencoder(plan.parts)
    rows = combinations()[torch.randperm(len(combinations()), generator=keyed("vae"))]
    rows = rows[: 2 * plan.questions]
    true = draw(rows, keyed("vae", "jitter"))
    with torch.no_grad():
        z = torch.cat([vae.encode(part * 2 - 1) for part in blocks(true, 64)])
        again = torch.cat([(vae.decode(part) + 1) / 2 for part in blocks(z, 64)]).clamp(0, 1)
    psnr = -10 * (again - true).square().mean().log10().item()
    journal = Journal(plan.out / "vae.score.jsonl")
    journal.write(
        psnr=round(psnr, 2), spread=round(z.std().item(), 3), **score(again, rows).as_dict()
    )
    contact_sheet(plan.out / "vae.png", true[:14], again[:14])


def stage_cache(plan: Plan) -> None:
    if not plan.cache.exists():
        vae, encoders = load_autoencoder(plan.parts), TextEncoders.load(plan.parts)
        write_cache(plan.cache, vae, encoders, seed=plan.seed, pictures=plan.pictures)


def stage_teacher(plan: Plan) -> None:
    if (plan.parts / TRANSFORMER).exists():
        return
    cache = plan.load_cache()
    schedule = Schedule(steps=plan.teacher_steps, rate=1.5e-3, averaging=0.998)
    net = train_teacher(plan.out, cache, schedule, seed=plan.seed, batch=plan.batch)
    finish(plan.parts, net)
    judge(
        plan, "teacher", ClassifierFree(load_transformer(plan.parts).to(plan.device), cache.empty)
    )


def stage_guidance(plan: Plan) -> None:
    if (plan.result / TRANSFORMER).exists():
        return
    teacher = load_transformer(plan.parts)
    schedule = Schedule(steps=plan.guidance_steps, rate=5e-4, averaging=0.99)
    net = train_guidance(
        plan.out, plan.load_cache(), schedule, teacher, seed=plan.seed, batch=plan.batch
    )
    finish(plan.result, net, source=plan.parts)
    judge(plan, "guidance", Velocity(load_transformer(plan.result).to(plan.device)))


def judge(plan: Plan, stage: str, velocity: Velocity) -> None:
    """Scores by number of steps, strength of guidance and novelty; one sheet of pictures."""
    vae = load_autoencoder(plan.parts).to(plan.device)
    encoders = TextEncoders.load(plan.parts)
    journal = Journal(plan.out / f"{stage}.score.jsonl")
    for unseen, steps, guidance in (
        (True, STEPS, GUIDANCE), (True, STEPS, 1.0), (True, STEPS, 5.0), (True, 4, GUIDANCE),
        (True, 1, GUIDANCE), (False, STEPS, GUIDANCE),
    ):  # fmt: skip
        result = examine(
            velocity, vae, encoders,
            count=plan.questions, unseen=unseen, steps=steps, shift=SHIFT, guidance=guidance,
        )  # fmt: skip
        journal.write(unseen=unseen, steps=steps, guidance=guidance, **result.as_dict())
    questions = Questions.pick(14, unseen=True)
    sheet = [
        answers(velocity, vae, encoders, questions, steps=STEPS, shift=SHIFT, guidance=guidance)
        for guidance in (1.0, GUIDANCE, 5.0)
    ]
    contact_sheet(plan.out / f"{stage}.png", draw(questions.rows), *sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1])
    sizes = [name for name, kind in Plan.__annotations__.items() if kind is int]
    for name in sizes:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Plan, name))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = Plan(
        out=given.out,
        device=torch.device(given.device),
        **{name: getattr(given, name) for name in sizes},
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
