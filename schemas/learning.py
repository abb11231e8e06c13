"""How a training run learns: noise levels, losses, the optimizer and its rates."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from schemas.base import Schema

Positive = Annotated[FiniteFloat, Field(gt=0.0)]
Beta = Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)]
Guidance = Annotated[FiniteFloat, Field(ge=0.0, le=1000.0)]


class Timesteps(Schema):
    """Where noise levels are drawn.

    `uniform`; `logit_normal`: the sigmoid of a normal draw; both bent by `shift`. `flux_shift`:
    logit-normal, bent as the published schedule is for the picture's size. `diffsynth`:
    DiffSynth-Studio's table with its rounding; `diffsynth_exact`: without that.
    """

    kind: Literal["uniform", "logit_normal", "flux_shift", "diffsynth", "diffsynth_exact"] = (
        "logit_normal"
    )
    mean: FiniteFloat = 0.0
    spread: Positive = 1.0
    shift: Positive = 1.0

    @model_validator(mode="after")
    def _used(self) -> Self:
        refuse_unused(self, set(LEVELS.get(self.kind, ())), f"timesteps {self.kind}")
        return self

    @property
    def options(self) -> dict[str, float]:
        """What this kind takes."""
        return {name: getattr(self, name) for name in LEVELS.get(self.kind, ())}


class Loss(Schema):
    """How far off an answer is, and how much a noise level counts."""

    kind: Literal["mse", "huber", "mae"] = "mse"
    delta: Positive = 1.0
    weight: Literal["none", "diffsynth", "cosmap", "sigma_sqrt"] = "none"

    @model_validator(mode="after")
    def _used(self) -> Self:
        refuse_unused(
            self, {"weight"} | ({"delta"} if self.kind == "huber" else set()), f"loss {self.kind}"
        )
        return self


class OptimizerConfig(Schema):
    """`adamw`, `adamw8bit`, `prodigy`, or the dotted path of a class that takes parameters, `lr`
    and `weight_decay`; `options` are further arguments of it."""

    kind: str = "adamw"
    betas: tuple[Beta, Beta] | None = None
    eps: Positive | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        parts = kind.split(".")
        dotted = len(parts) > 1 and all(part.isidentifier() for part in parts)
        if kind not in OPTIMIZERS and not dotted:
            raise ValueError(
                f"{kind!r} is no optimizer; known are {', '.join(OPTIMIZERS)}, and dotted paths "
                "such as torch.optim.SGD"
            )
        return kind

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if twice := sorted({"lr", "weight_decay", "betas", "eps", "params"} & self.options.keys()):
            raise ValueError(f"options has {', '.join(twice)}: that is said elsewhere")
        return self


class RateSchedule(Schema):
    """The learning rate over the steps: up to it in `warmup_steps`, then constant, or down to
    `floor` times it."""

    kind: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    floor: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] = 0.0

    @model_validator(mode="after")
    def _used(self) -> Self:
        falls = {"floor"} if self.kind != "constant" else set()
        refuse_unused(self, {"warmup_steps"} | falls, f"lr_schedule {self.kind}")
        return self


class Broken(Schema):
    """How many steps may be left out because a loss or a gradient was not finite; the next one
    ends the run, and names the samples."""

    skip: Annotated[int, Field(ge=0)] = 3


LEVELS = {
    "uniform": ("shift",),
    "logit_normal": ("mean", "spread", "shift"),
    "flux_shift": ("mean", "spread"),
}
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")


def changed(config: Schema) -> set[str]:
    """Names of what is not as it is without being said. Only that can be said in vain: a job that
    was written down says everything."""
    fields = type(config).model_fields
    return {
        name
        for name in config.model_fields_set
        if getattr(config, name) != fields[name].get_default(call_default_factory=True)
    }


def refuse_unused(config: Schema, used: set[str], what: str) -> None:
    """ValueError that names each value which is given and would have no effect."""
    if idle := sorted(changed(config) - used - {"kind"}):
        told = f"it uses {', '.join(sorted(used))}" if used else "it has no settings"
        raise ValueError(f"{', '.join(idle)}: of no effect with {what}; {told}")
