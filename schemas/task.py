"""One dataset of a training job: what is learned from it, and how it takes part."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from schemas.address import check_address
from schemas.base import Schema
from schemas.learning import Guidance, changed
from schemas.sampling import Schedule, Shift, Steps

Task = Literal[
    "sft", "direct_distill", "reflow", "jump", "x0", "kd", "kd_w", "prior",
    "sft:train", "direct_distill:train",
]  # fmt: skip
Share = Annotated[FiniteFloat, Field(ge=0.0, le=1.0)]
Told = Guidance | tuple[Guidance, Guidance] | Literal["row"]

EXTRA_INPUTS = (
    "seed", "rand_device", "num_inference_steps", "cfg_scale", "embedded_guidance",
    "min_timestep_boundary", "max_timestep_boundary", "noise_scale",
)  # fmt: skip
DRAWN = {"sft", "sft:train", "prior", "reflow"}  # tasks that draw noise levels
DIRECT = {"direct_distill", "direct_distill:train"}
GUIDED = DRAWN | DIRECT | {"jump", "x0", "kd_w"}
TAKERS = {  # of each extra input
    "seed": DIRECT,
    "rand_device": DIRECT,
    "num_inference_steps": DIRECT,
    "cfg_scale": DIRECT,
    "embedded_guidance": GUIDED - {"kd_w"},
    "min_timestep_boundary": DRAWN,
    "max_timestep_boundary": DRAWN,
    "noise_scale": DRAWN - {"reflow"},
}
OPTIONS = {  # what a task knows beside all that every dataset has
    "sft": {"posterior_mean"},
    "jump": {"student_steps"},
    "x0": {"student_steps"},
    "kd": {"teacher_guidance"},
    "kd_w": {"teacher_guidance"},
    "direct_distill": {"student_steps", "schedule", "sigma_shift"},
}


class TrainDataset(Schema):
    """Distillation targets, or a table of pictures. What is None is as the job or the task says.

    `weight` is its share of the micro-batches; where no dataset has one, sizes are the shares.
    `student_steps` is how many steps a student is to take, `teacher_guidance` which of a teacher's
    stored answers is meant.
    """

    path: str
    weight: Annotated[FiniteFloat, Field(gt=0.0)] | None = None
    task: Task | None = None
    dataset_repeat: Annotated[int, Field(ge=1)] | None = None
    trigger_word: str | None = None
    caption_dropout: Share | None = None
    embedded_guidance: Told | None = None
    mask: bool = False
    prompt_column: str = "prompt"
    leave_out: tuple[str, ...] = ()
    drop_small_buckets: bool = False
    posterior_mean: bool = False
    student_steps: Steps | None = None
    teacher_guidance: Guidance | None = None
    schedule: Schedule = "diffsynth"
    sigma_shift: Shift | None = None

    @field_validator("path")
    @classmethod
    def _no_secrets(cls, path: str) -> str:
        check_address(path)
        return path

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        check_range(self.embedded_guidance)
        return self

    def refuse_idle(self, task: Task) -> Task:
        """The task; ValueError for an option that it does not know."""
        options = {name for names in OPTIONS.values() for name in names}
        known = OPTIONS.get(task.partition(":")[0], set())
        if idle := sorted(options & changed(self) - known):
            users = sorted(t for t, names in OPTIONS.items() if names & set(idle))
            raise ValueError(
                f"{self.path}: {', '.join(idle)}: of no effect with task {task}; for "
                f"{', '.join(users)}"
            )
        if self.embedded_guidance is not None and task not in GUIDED:
            raise ValueError(
                f"{self.path}: embedded_guidance: of no effect with task {task}, which tells the "
                "student what its teacher was told"
            )
        return task


def check_range(told: Told | None) -> None:
    if isinstance(told, tuple) and told[0] > told[1]:
        raise ValueError(f"embedded_guidance {list(told)}: the first is the smaller one")
