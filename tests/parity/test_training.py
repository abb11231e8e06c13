"""One step's loss and gradients, against DiffSynth-Studio's losses and diffusers' transformer."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flux_engine.latents import pack, position_ids
from flux_engine.models.dit import FluxTransformer
from flux_engine.training.direct import DirectDistill
from flux_engine.training.lora import LoraShape, TrainedLora
from flux_engine.training.material import Material
from flux_engine.training.net import Net
from flux_engine.training.objective import Batch, Objective
from flux_engine.training.sft import Sft
from flux_engine.training.terms import Terms
from flux_engine.training.timesteps import Table
from flux_engine.weights.lora.names import spellings
from flux_engine.weights.lora.write import write_lora
from tests.flux_engine.asking import noise
from tests.parity import diffsynth_oracle, diffsynth_training
from tests.parity.cases import DEV
from tests.parity.diffusers_oracle import build_transformer
from tests.parity.tiny import T5_TOKENS, transformer_weights

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        not diffsynth_oracle.LIBRARY.is_dir(), reason="DiffSynth-Studio is not installed in .oracle"
    ),
]
RELATIVE = 1e-5  # ‖difference‖ ÷ ‖theirs‖
SPEC, RANK = DEV.flux, 4
LATENT = (16, 8, 12)
INPUTS = {
    "x0": noise(1, *LATENT),
    "t5": noise(2, T5_TOKENS, SPEC.text_width),
    "pooled": noise(3, SPEC.pooled_width),
}
NORMS = {"query_norm.scale": "q", "key_norm.scale": "k"}


@dataclass(frozen=True)
class Step:
    """One step, as both are asked for it."""

    name: str
    loss: str = "sft"
    seed: int = 0
    guidance: float = 1.0
    time_dtype: str = "float32"
    lora: int = 0
    checkpointing: bool = False
    boundaries: Mapping[str, float] = field(default_factory=dict)
    num_inference_steps: int = 4

    @property
    def objective(self) -> Objective:
        if self.loss == "direct_distill":
            return DirectDistill(guidance=self.guidance)
        return Sft(
            timesteps=Table(exact=self.time_dtype == "float32"),
            terms=Terms(weighting="diffsynth"),
            guidance=self.guidance,
        )

    @property
    def batch(self) -> Batch:
        row = Material(
            name=self.name,
            caption="",
            t5_TW=INPUTS["t5"],
            pooled_P=INPUTS["pooled"],
            latent_ZHW=INPUTS["x0"],
            seed=self.seed,
            num_inference_steps=self.num_inference_steps,
            **self.boundaries,
        )
        return Batch.of([self.objective.draw(row, torch.Generator().manual_seed(self.seed))])


STEPS = (
    Step("sft", seed=1),
    Step("sft_guided", seed=2, guidance=3.5, checkpointing=True),
    Step("sft_rounded_time", seed=3, time_dtype="bfloat16"),
    Step(
        "sft_share",
        seed=4,
        boundaries={"min_timestep_boundary": 0.2, "max_timestep_boundary": 0.4},
    ),
    Step("sft_lora", seed=5, lora=RANK),
    Step("direct_distill", "direct_distill", seed=6),
    Step("direct_distill_lora", "direct_distill", seed=7, lora=RANK, num_inference_steps=3),
)


class Everything:
    """All weights are trained, and a LoRA's factors if there is one."""

    def __init__(self, dit: FluxTransformer, lora: TrainedLora | None) -> None:
        dit.requires_grad_(requires_grad=True)
        self.trainable: Mapping[str, nn.Parameter] = {
            **dict(dit.named_parameters()),
            **(lora.trainable if lora is not None else {}),
        }

    @contextmanager
    def off(self) -> Iterator[None]:
        yield


def trained(dit: FluxTransformer) -> TrainedLora:
    lora = TrainedLora(dit, LoraShape(rank=RANK))
    with torch.no_grad():
        for n, (name, factor) in enumerate(lora.trainable.items()):
            if name.endswith("lora_B"):
                factor.copy_(0.05 * noise(100 + n, *factor.shape))
    return lora


def transformer() -> FluxTransformer:
    dit = FluxTransformer(SPEC)
    dit.load_state_dict(transformer_weights(DEV))
    return dit


def ours(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and gradients under our names."""
    dit = transformer()
    everything = Everything(dit, trained(dit) if step.lora else None)
    net = Net(dit, everything, checkpointing="blocks" if step.checkpointing else "none")
    loss = step.objective.loss(net, step.batch)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {
        name: p.grad for name, p in everything.trainable.items() if p.grad is not None
    }


def theirs_of(name: str, lora: bool) -> str:
    """DiffSynth's name for a parameter of ours."""
    module, _, leaf = name.rpartition(".")
    if leaf == "scale":  # of a norm, which no LoRA is for
        stack, number, *_ = module.split(".")
        which = NORMS[".".join(name.split(".")[-2:])]
        stream = "b" if "txt_attn" in name else "a"
        inside = "attn." if stack == "double_blocks" else ""
        stack = {"double_blocks": "blocks"}.get(stack, stack)
        return f"{stack}.{number}.{inside}norm_{which}_{stream}.weight"
    ((theirs, _),) = spellings(module, SPEC, "diffsynth")
    if leaf.startswith("lora_"):
        return f"{theirs}.{leaf}.default.weight"
    based = lora and theirs.startswith(("blocks", "single_blocks"))
    return f"{theirs}.{'base_layer.' if based else ''}{leaf}"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("training")
    write_lora(trained(transformer()).lora(), folder / "lora.safetensors", "diffsynth")
    asked: list[dict[str, Any]] = [dict(vars(step)) for step in STEPS]
    diffsynth_training.run(folder, asked, INPUTS)
    return {step.name: load_file(folder / f"{step.name}.safetensors") for step in STEPS}


def deviation(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("step", STEPS, ids=[step.name for step in STEPS])
def test_a_step_is_diffsynths(step: Step, answers: dict[str, dict[str, Tensor]]) -> None:
    theirs = dict(answers[step.name])
    loss, grads = ours(step)
    assert deviation(loss, theirs.pop("loss")) <= RELATIVE
    named = {theirs_of(name, step.lora > 0): grad for name, grad in grads.items()}
    assert set(named) == set(theirs)
    assert any("lora_A" in name for name in named) == (step.lora > 0)
    off = {name: deviation(named[name], theirs[name]) for name in theirs}
    assert max(off.values()) <= RELATIVE, sorted(off.items(), key=lambda pair: -pair[1])[:5]


def test_a_micro_batch_is_the_mean_of_its_samples() -> None:
    steps = [Step("one", seed=1), Step("other", seed=2)]
    apart = [ours(step) for step in steps]
    rows = [step.batch for step in steps]
    together = Batch(
        ("one", "other"), {name: torch.cat([row[name] for row in rows]) for name in rows[0].tensors}
    )
    dit = transformer()
    everything = Everything(dit, None)
    loss = steps[0].objective.loss(Net(dit, everything), together)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.detach(), torch.cat([one for one, _ in apart]))
    for name, parameter in everything.trainable.items():
        mean = 0.5 * (apart[0][1][name] + apart[1][1][name])
        assert parameter.grad is not None
        assert deviation(parameter.grad, mean) <= 1e-4


def test_a_loras_gradients_are_those_of_peft_on_diffusers_transformer() -> None:
    named = {
        "double_blocks.1.img_attn.proj": "transformer_blocks.1.attn.to_out.0",
        "double_blocks.0.txt_mod.lin": "transformer_blocks.0.norm1_context.linear",
        "single_blocks.2.linear2": "single_transformer_blocks.2.proj_out",
    }
    dit = transformer()
    lora = TrainedLora(dit, LoraShape(rank=RANK, alpha=2.0, targets=list(named)))
    theirs = build_transformer(DEV, transformer_weights(DEV))
    theirs.add_adapter(
        peft.LoraConfig(
            r=RANK, lora_alpha=2, target_modules="|".join(map(re.escape, named.values()))
        )
    )
    factors = {}
    for n, (name, factor) in enumerate(lora.trainable.items()):
        layer, _, leaf = name.rpartition(".")
        factors[name] = theirs.get_parameter(f"{named[layer]}.{leaf}.default.weight")
        for one in (factor, factors[name]):
            one.data.copy_(0.05 * noise(200 + n, *factor.shape))
    step = Step("sft", seed=8, guidance=3.5)
    step.objective.loss(Net(dit, lora), step.batch).sum().backward()  # type: ignore[no-untyped-call]
    told = step.batch
    ids = position_ids(T5_TOKENS, *LATENT[1:]).float()
    velocity = theirs(
        hidden_states=pack(told["x"]),
        encoder_hidden_states=told["t5"],
        pooled_projections=told["pooled"],
        timestep=told["told"],
        guidance=told["guidance"],
        txt_ids=ids[:T5_TOKENS],
        img_ids=ids[T5_TOKENS:],
    ).sample
    ((velocity - pack(told["target"])).square().mean() * told["weight"]).sum().backward()
    for name, factor in lora.trainable.items():
        assert factor.grad is not None
        assert deviation(factor.grad, factors[name].grad) <= RELATIVE
