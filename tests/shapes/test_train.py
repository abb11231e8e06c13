"""The whole chain at toy size: folders appear, and a second run does nothing."""

import json

import pytest
import torch

from shapes.folder import SAMPLING, TRANSFORMER, load_autoencoder, load_transformer
from shapes.train import Plan, run


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    toy = Plan(
        out=tmp_path_factory.mktemp("shapes"), device=torch.device("cpu"),
        small_steps=1, small_batch=2, vae_steps=2, vae_batch=2, pictures=8,
        teacher_steps=2, guidance_steps=2, batch=2, questions=2,
    )  # fmt: skip
    run(toy)
    return toy


def test_the_result_is_laid_out_as_the_published_repository(plan: Plan) -> None:
    names = {str(path.relative_to(plan.result)) for path in plan.result.rglob("*.*")}
    assert {
        "flux1-shapes.safetensors", "ae.safetensors", "sampling.json",
        "text_encoder/config.json", "text_encoder/model.safetensors",
        "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer.json",
    } <= names  # fmt: skip
    assert json.loads((plan.result / SAMPLING).read_text())["height"] == 64


def test_only_the_result_has_embedded_guidance(plan: Plan) -> None:
    assert load_transformer(plan.result).guidance_in is not None
    assert load_transformer(plan.parts).guidance_in is None


def test_the_autoencoder_is_read_back(plan: Plan) -> None:
    assert load_autoencoder(plan.result).encode(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 8, 8)


def test_a_second_run_trains_nothing(plan: Plan) -> None:
    before = (plan.result / TRANSFORMER).stat().st_mtime_ns
    run(plan)
    assert (plan.result / TRANSFORMER).stat().st_mtime_ns == before


def test_scores_and_curves_are_left_behind(plan: Plan) -> None:
    left = {path.name for path in plan.out.iterdir()}
    assert {"curves.png", "vae.png", "guidance.png", "guidance.score.jsonl"} <= left
