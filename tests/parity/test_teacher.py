"""Answers at given states, each at a noise level and a guidance of its own, against diffusers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flux_engine import load_engine
from flux_engine.latents import pack, position_ids
from flux_engine.teacher import Answer, Query, Teacher
from tests.flux_engine.asking import noise
from tests.parity.agreement import assert_latents_agree
from tests.parity.cases import DEV
from tests.parity.diffusers_oracle import build_transformer
from tests.parity.tiny import T5_TOKENS, TinySpec

pytestmark = pytest.mark.oracle
SIGMAS, GUIDANCES = (0.97, 0.5, 0.31, 0.02), (3.5, 1.0, 7.0, 2.2)
PROMPTS = ("the red fox", "", "a café at night", "the red fox")


def test_velocities_are_diffusers(folders: dict[TinySpec, Path]) -> None:
    folder = folders[DEV]
    engine = load_engine(folder, torch_dtype=torch.float32, device="cpu", micro_batch=4)
    states = torch.stack([noise(n, 16, 8, 12) for n in range(4)])
    queries = [
        Query(
            state=states[n],
            sigma=SIGMAS[n],
            prompt=PROMPTS[n],
            embedded_guidance=GUIDANCES[n],
            t5_sequence_length=T5_TOKENS,
        )
        for n in range(4)
    ]
    found = dict(Teacher(engine).each(queries))
    texts = engine.text([(prompt, T5_TOKENS) for prompt in PROMPTS])
    told = [texts[prompt, T5_TOKENS] for prompt in PROMPTS]
    ids = position_ids(T5_TOKENS, 8, 12).float()
    model = build_transformer(DEV, load_file(folder / "flux1-tiny.safetensors"))
    with torch.inference_mode():
        theirs = model(
            hidden_states=pack(states),
            encoder_hidden_states=torch.stack([t.states_TW for t in told]),
            pooled_projections=torch.stack([t.pooled_P for t in told]),
            timestep=torch.tensor(SIGMAS),
            guidance=torch.tensor(GUIDANCES),
            txt_ids=ids[:T5_TOKENS],
            img_ids=ids[T5_TOKENS:],
        ).sample
    made = []
    for n in range(4):
        answer = found[n]
        assert isinstance(answer, Answer)
        made.append(answer.velocity)
    assert_latents_agree(pack(torch.stack(made)), theirs)
