"""`fetch` with a stand-in hub, of which it is told as a user would: by the environment.

huggingface_hub reads its environment once, when it is imported, so it is asked in a process of its
own. modelscope can be told anew, and takes two seconds to import: it is asked in this process,
unless it has to be killed or is to give up sooner than usual.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

from flux_engine.errors import SourceError
from flux_engine.weights.source import ModelSource, fetch

NOBODY = "http://127.0.0.1:9"
# the face of the package is left out: it brings torch and transformers, seconds that no download
# needs
PROGRAM = """
import json, sys, types, warnings
warnings.simplefilter("error")
package = sys.modules["flux_engine"] = types.ModuleType("flux_engine")
package.__path__ = ["flux_engine"]
from pathlib import Path
from flux_engine.errors import EngineError
from flux_engine.weights.source import ModelSource, fetch
source, store = json.loads(sys.argv[1])
try:
    print(json.dumps([str(path) for path in fetch(ModelSource(**source), Path(store))]))
except EngineError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@dataclass(frozen=True)
class Outcome:
    """What was fetched, as paths in the store, or the error; and all that a process wrote."""

    paths: tuple[str, ...]
    error: str
    written: str


def fetched(source: ModelSource, store: Path, hub_url: str) -> Outcome:
    if source.download_source == "huggingface" or hub_url == NOBODY:
        return finish(start(source, store, hub_url), store)
    from modelscope_hub.config import set_default_config

    with patch.dict(os.environ, environment(store, hub_url)):
        set_default_config(None)  # it remembers the first endpoint that it was told
        try:
            return _outcome([str(path) for path in fetch(source, store)], store, "")
        except SourceError as error:
            return Outcome((), str(error), str(error))
        finally:
            set_default_config(None)


def start(source: ModelSource, store: Path, hub_url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps([asdict(source), str(store)])],
        env=os.environ | environment(store, hub_url),
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", store: Path) -> Outcome:
    out, err = process.communicate(timeout=120)
    if process.returncode:
        lines = [line for line in err.splitlines() if line.startswith("SourceError: ")]
        assert lines, err
        return Outcome((), lines[-1], out + err)
    return _outcome(json.loads(out.splitlines()[-1]), store, out + err)


def _outcome(paths: list[str], store: Path, written: str) -> Outcome:
    return Outcome(tuple(str(Path(path).relative_to(store)) for path in paths), "", written)


def environment(store: Path, hub_url: str) -> Mapping[str, str]:
    home = store.parent / "home"
    return {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": "hf_secretsecretsecret",
        "MODELSCOPE_ENDPOINT": hub_url,
        "MODELSCOPE_CACHE": str(home / "ms-cache"),
        "MODELSCOPE_HOME": str(home / "ms"),
        "MODELSCOPE_API_TOKEN": "ms-secretsecretsecret",
        "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
