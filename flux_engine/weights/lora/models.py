"""The models that a LoRA changes, and which of their parameters a part of it means."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from flux_engine.errors import CheckpointError
from flux_engine.models.dit import FluxTransformer
from flux_engine.weights.keymaps.text import CLIP_PREFIX
from flux_engine.weights.lora.file import Lora, Parameter
from flux_engine.weights.lora.names import Role, Sizes

Target = tuple[Role, str, Parameter]


@dataclass(frozen=True)
class Models:
    """The transformer and, where they are at hand, the text encoders."""

    dit: FluxTransformer
    clip: nn.Module | None = None
    t5: nn.Module | None = None

    @property
    def sizes(self) -> Sizes:
        clip = 12 if self.clip is None else int(self.clip.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        t5 = 24 if self.t5 is None else int(self.t5.config.num_layers)  # type: ignore[union-attr, arg-type]
        return Sizes(self.dit.spec, clip, t5)

    def parameters(self, role: Role) -> Mapping[str, Tensor]:
        model: nn.Module | None = getattr(self, role)
        return {} if model is None else dict(model.named_parameters())

    @cached_property
    def shapes(self) -> Mapping[Role, Mapping[str, tuple[int, ...]]]:
        """Of every parameter by its name, as the models were when this was first asked."""
        roles: tuple[Role, ...] = ("dit", "clip", "t5")
        return {
            role: {name: tuple(p.shape) for name, p in self.parameters(role).items()}
            for role in roles
        }

    def names(self, lora: Lora) -> dict[Target, str]:
        """The name of each parameter that the LoRA changes, in its own model.

        CheckpointError lists what is not there, or has another shape.
        """
        missing, misshapen, out = [], [], {}
        there = self.shapes
        for target, parts in lora.targets.items():
            role, module, parameter = target
            name = f"{module}.{parameter}"
            if role == "clip" and name not in there[role]:  # transformers 5 drops the prefix
                name = name.removeprefix(CLIP_PREFIX)
            if name not in there[role]:
                missing.append(f"{name} (of {role}; the file calls it {parts[0].name})")
                continue
            shape = there[role][name]
            misshapen += [
                f"{part.name} (changes {part.change.shape}, the model has {shape})"
                for part in parts
                if part.place.rows is None and part.change.shape != shape
            ]
            out[target] = name
        if missing or misshapen:
            raise CheckpointError(lora.where, missing=missing, misshapen=misshapen)
        return out
