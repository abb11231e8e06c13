from pathlib import Path

import pytest

from flux_engine.defaults import bundled_names, folder_defaults, model_folder
from flux_engine.errors import SourceError


def test_the_demo_model_is_bundled_with_values_of_its_own() -> None:
    assert "flux-shapes" in bundled_names()
    values = folder_defaults(model_folder("flux-shapes"))
    assert (values["height"], values["width"]) == (64, 64)


def test_a_path_is_a_model_too(tmp_path: Path) -> None:
    assert model_folder(str(tmp_path)) == tmp_path


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flux").mkdir()
    assert model_folder("~/flux") == tmp_path / "flux"


def test_an_unknown_name_is_told_what_is_bundled() -> None:
    with pytest.raises(SourceError, match=r"'flux-shape'.*\(flux-shapes\)"):
        model_folder("flux-shape")


def test_a_folder_without_values_asks_for_nothing(tmp_path: Path) -> None:
    assert folder_defaults(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "told"), [("[64]", "is not a JSON object"), ("{height: 64}", "is not JSON")]
)
def test_values_that_are_no_object_are_refused_with_their_file(
    text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "sampling.json").write_text(text)
    with pytest.raises(SourceError, match=told) as refused:
        folder_defaults(tmp_path)
    assert str(tmp_path / "sampling.json") in str(refused.value)
