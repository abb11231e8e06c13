from pathlib import Path

import pytest
import ray

from batch.nodes import alive, ask, blind, is_file, resources

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_a_node_is_asked_what_it_sees_on_its_disk(tmp_path: Path) -> None:
    (node,) = alive()
    (tmp_path / "there").write_text("x")
    assert ask(node, is_file, tmp_path / "there") is True
    assert ask(node, is_file, tmp_path / "gone") is False
    assert blind(tmp_path / "there") == []
    assert blind(tmp_path / "gone") == list(alive().values())
    assert resources()["CPU"] == ray.cluster_resources()["CPU"]


def test_a_node_that_is_gone_gives_no_answer(tmp_path: Path) -> None:
    assert ask("a" * 56, is_file, tmp_path) is None
