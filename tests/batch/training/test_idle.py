"""What would have no effect is refused by name before anything begins."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from batch.errors import JobError
from batch.training.look import checked
from flux_engine.defaults import model_folder
from flux_engine.errors import SettingError
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson
from tests.batch.training.tables import write_table


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"height": 512, "width": 512}, "height, width: of no effect, for they are about pictures"),
        ({"max_pixels": 4096, "bucket_step": 32}, "max_pixels, bucket_step: of no effect"),
        ({"picture_roots": ["/tmp"]}, "picture_roots: of no effect"),
        ({"data_file_keys": "photo"}, "data_file_keys photo: of no effect"),
    ],
)
def test_what_is_about_pictures_is_refused_where_there_are_none(
    values: dict[str, Any], told: str, tmp_path: Path, targets: Targets
) -> None:
    with pytest.raises(JobError, match=told):
        checked(lesson(tmp_path / "out", targets("cache"), **values))


def test_one_dataset_of_pictures_is_enough_to_have_sizes(tmp_path: Path, targets: Targets) -> None:
    datasets = [str(targets("cache")), str(write_table(tmp_path / "rows"))]
    checked(lesson(tmp_path / "out", targets("cache"), datasets=datasets, max_pixels=4096))


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("cache", {"prompt_column": "caption"}, "prompt_column: of no effect, for it holds cache"),
        ("pair", {"leave_out": ["nothing"]}, "leave_out: of no effect, for it holds pair targets"),
        ("cache", {"posterior_mean": True}, "posterior_mean: .* cache without moments; it is for"),
        ("pictures", {"posterior_mean": True}, "posterior_mean: .* holds pictures without moments"),
    ],
)
def test_an_option_that_a_datasets_kind_does_not_know_is_refused(
    kind: str, options: dict[str, Any], told: str, tmp_path: Path, targets: Targets
) -> None:
    place = write_table(tmp_path / "rows") if kind == "pictures" else targets(kind)
    datasets = [{"path": str(place), **options}]
    with pytest.raises(JobError, match=f"{place}: {told}"):
        checked(lesson(tmp_path / "out", place, datasets=datasets))
    datasets = [{"path": str(targets("moments")), "posterior_mean": True}]
    checked(lesson(tmp_path / "out", place, datasets=datasets))


@pytest.fixture(scope="module")
def unguided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled transformer without its guidance embedder."""
    (file,) = model_folder("flux-shapes").glob("flux1-*.safetensors")
    tensors = {n: t for n, t in load_file(file).items() if not n.startswith("guidance_in.")}
    path = tmp_path_factory.mktemp("unguided") / "flux1.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        ("cache", {"embedded_guidance": 1.0}, "embedded_guidance: of no effect, for the trans"),
        ("pair", {"task": "reflow", "embedded_guidance": "row"}, "embedded_guidance: of no effect"),
        ("pair", {"extra_inputs": "embedded_guidance"}, "embedded_guidance: of no effect"),
        ("velocity", {"task": "kd_w"}, "task kd_w tells the student its w, and the transformer"),
        ("velocity", {"task": "kd"}, r"answers at \[1.0, 3.0\] .* name one as teacher_guidance"),
    ],
)
def test_a_transformer_without_a_guidance_embedder_is_told_none(
    kind: str,
    values: dict[str, Any],
    told: str,
    tmp_path: Path,
    targets: Targets,
    unguided: Path,
) -> None:
    model = {"model": None, "model_paths": [str(unguided)]}
    with pytest.raises(SettingError, match=told):
        checked(lesson(tmp_path / "out", targets(kind), **model, **values))


def test_what_tells_no_guidance_goes_on_without_an_embedder(
    tmp_path: Path, targets: Targets, unguided: Path
) -> None:
    model = {"model": None, "model_paths": [str(unguided)]}
    checked(lesson(tmp_path / "out", targets("cache"), **model))
    datasets = [{"path": str(targets("velocity")), "task": "kd", "teacher_guidance": 3.0}]
    checked(lesson(tmp_path / "out", targets("cache"), datasets=datasets, **model))
