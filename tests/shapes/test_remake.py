"""The whole making at toy size, through the jobs: folders appear, and a second run does nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shapes import remake
from shapes.folder import SAMPLING, TRANSFORMER, load_autoencoder, load_transformer
from shapes.recipe import ONE, TWO, Recipe
from shapes.remake import Plan, run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    shallow = replace(ONE.transformer, double_blocks=1, single_blocks=1)
    small = replace(
        ONE, transformer=shallow, small_steps=1, small_batch=2, vae_steps=2, vae_batch=2,
        gain_pictures=4, pictures=4,
        teacher_steps=2, guidance_steps=2, batch=2, questions=2, steps=2,
    )  # fmt: skip
    made = Plan(small, tmp_path_factory.mktemp("shapes"))
    run(made)
    return made


def test_the_result_is_laid_out_as_the_published_repository(plan: Plan) -> None:
    assert plan.result.name == plan.recipe.world.name
    names = {str(path.relative_to(plan.result)) for path in plan.result.rglob("*.*")}
    assert {
        "flux1-shapes.safetensors", "ae.safetensors", "sampling.json",
        "text_encoder/config.json", "text_encoder/model.safetensors",
        "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer.json",
    } <= names  # fmt: skip
    told = json.loads((plan.result / SAMPLING).read_text())
    assert told["height"] == plan.recipe.world.side


def test_only_the_result_has_embedded_guidance_and_both_have_learned(plan: Plan) -> None:
    start = load_transformer(plan.out / "start", plan.recipe)
    teacher = load_transformer(plan.out / "teacher" / "model", plan.recipe)
    result = load_transformer(plan.result, plan.recipe)
    assert start.guidance_in is None
    assert teacher.guidance_in is None
    assert result.guidance_in is not None
    assert not torch.equal(start.img_in.weight, teacher.img_in.weight)
    assert result.guidance_in.out_layer.weight.abs().max() > 0


def test_the_autoencoder_is_read_back(plan: Plan) -> None:
    vae, side = load_autoencoder(plan.result, plan.recipe), plan.recipe.world.side
    assert vae.encode(torch.zeros(1, 3, side, side)).shape == (1, 16, side // 8, side // 8)


def test_a_second_run_trains_nothing(plan: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    before = (plan.result / TRANSFORMER).stat().st_mtime_ns
    run(plan, until="guidance")
    assert (plan.result / TRANSFORMER).stat().st_mtime_ns == before
    assert "step step=" not in capfd.readouterr().err


@pytest.mark.parametrize(("words", "recipe"), [([], ONE), (["--world", "two"], TWO)])
def test_the_command_line_names_a_world_and_changes_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], recipe: Recipe
) -> None:
    told = ["remake", "--out", str(tmp_path), "--teacher-steps", "7", "--until", "latents", *words]
    asked: list[tuple[Plan, str]] = []
    monkeypatch.setattr(sys, "argv", told)
    monkeypatch.setattr(remake, "run", lambda plan, until: asked.append((plan, until)))
    remake.main()
    ((plan, until),) = asked
    assert until == "latents"
    assert plan.recipe == replace(recipe, teacher_steps=7)
