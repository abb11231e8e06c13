"""The whole chain at toy size: folders appear, and a second run does nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shapes import train
from shapes.dataset import rows_of
from shapes.folder import SAMPLING, TRANSFORMER, load_autoencoder, load_transformer
from shapes.manifest import prompts, write_manifest
from shapes.recipe import ONE, TWO, Recipe
from shapes.score import score_dataset
from shapes.train import Plan, run
from tests.shapes.test_bundled import work


def toy(recipe: Recipe, out: Path) -> Plan:
    shallow = replace(recipe.transformer, double_blocks=1, single_blocks=1)
    small = replace(
        recipe, transformer=shallow, small_steps=1, small_batch=2, vae_steps=2, vae_batch=2,
        gain_pictures=4, pictures=4,
        teacher_steps=2, guidance_steps=2, batch=2, questions=2, steps=2,
    )  # fmt: skip
    return Plan(small, out, torch.device("cpu"))


@pytest.fixture(scope="module", params=[ONE, TWO], ids=["one", "two"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    made = toy(request.param, tmp_path_factory.mktemp("shapes"))
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


def test_only_the_result_has_embedded_guidance(plan: Plan) -> None:
    assert load_transformer(plan.result, plan.recipe).guidance_in is not None
    assert load_transformer(plan.parts, plan.recipe).guidance_in is None


def test_the_autoencoder_is_read_back(plan: Plan) -> None:
    vae, side = load_autoencoder(plan.result, plan.recipe), plan.recipe.world.side
    assert vae.encode(torch.zeros(1, 3, side, side)).shape == (1, 16, side // 8, side // 8)


def test_the_main_job_draws_with_the_result(plan: Plan, tmp_path: Path) -> None:
    world = plan.recipe.world
    write_manifest(tmp_path / "m.parquet", prompts(world, 2, 1))
    output = work(tmp_path / "m.parquet", tmp_path / "out", model=str(plan.result))
    result = score_dataset(output, world)
    assert (result.every.count, result.pictureless, result.unreadable) == (2, 0, 0)
    assert [row.picture.size for row in rows_of(output) if row.picture] == [(world.side,) * 2] * 2


def test_a_second_run_trains_nothing(plan: Plan) -> None:
    before = (plan.result / TRANSFORMER).stat().st_mtime_ns
    run(plan)
    assert (plan.result / TRANSFORMER).stat().st_mtime_ns == before


def test_scores_and_curves_are_left_behind(plan: Plan) -> None:
    left = {path.name for path in plan.out.iterdir()}
    assert {"curves.png", "vae.png", "guidance.png", "guidance.score.jsonl"} <= left
    assert not {name for name in left if name.endswith((".ckpt", ".pt", ".partial"))}


@pytest.mark.parametrize(("words", "recipe"), [([], ONE), (["--world", "two"], TWO)])
def test_the_command_line_names_a_world_and_changes_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], recipe: Recipe
) -> None:
    told = ["train", "--out", str(tmp_path), "--teacher-steps", "7", "--until", "cache", *words]
    asked: list[tuple[Plan, str]] = []
    monkeypatch.setattr(sys, "argv", told)
    monkeypatch.setattr(train, "run", lambda plan, until: asked.append((plan, until)))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    train.main()
    ((plan, until),) = asked
    assert until == "cache"
    assert plan.recipe == replace(recipe, teacher_steps=7)
