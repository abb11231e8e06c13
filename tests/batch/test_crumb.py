import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batch.crumb import Crumb, crumb_path, read_crumb

DIES = """
import os, signal, sys
from pathlib import Path
from batch.crumb import Crumb
crumb = Crumb(Path(sys.argv[1]))
crumb.write("a-very-long-name-of-a-shard", list(range(100)))
crumb.write("shard", [4, 5])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crumb_outlives_its_worker_and_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "crumbs" / "worker"
    ended = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert read_crumb(path) == ("shard", [4, 5])
    assert read_crumb(path) is None


def test_a_worker_that_was_at_nothing_leaves_no_word(tmp_path: Path) -> None:
    Crumb(tmp_path / "worker")
    assert read_crumb(tmp_path / "worker") is None


def test_crumbs_of_users_are_apart() -> None:
    assert f"fluxmill-{os.getuid()}" in str(crumb_path("worker"))


def test_old_crumbs_are_swept_when_a_worker_begins_unless_theirs_lives(tmp_path: Path) -> None:
    dead = [sys.executable, "-c", DIES, str(tmp_path / "dead")]
    subprocess.run(dead, check=False)
    lives = Crumb(tmp_path / "lives")
    lives.write("shard", [1])
    for name in ("dead", "lives"):
        os.utime(tmp_path / name, (0, 0))
    subprocess.run([*dead[:-1], str(tmp_path / "died lately")], check=False)
    Crumb(tmp_path / "next")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["died lately", "lives", "next"]


def test_a_crumb_is_nobody_else_s_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "worker").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        Crumb(tmp_path / "worker")
    assert (tmp_path / "precious").read_text() == "x"
