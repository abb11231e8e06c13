import hashlib
import json
from pathlib import Path

from tests.batch.targets.made import CAPTIONS, make


def test_the_manifest_names_every_file_with_its_sum(tmp_path: Path) -> None:
    output = make(tmp_path / "x", "pair")
    told = json.loads((output / "manifest.json").read_text())
    assert (told["rows"], told["rejected"]) == (len(CAPTIONS), 0)
    assert told["identity"] == json.loads((output / "_run" / "identity.json").read_text())
    assert sum(entry["rows"] for entry in told["files"]) == len(CAPTIONS)
    assert {entry["file"] for entry in told["files"]} == {
        f"data/{file.name}" for file in (output / "data").iterdir()
    }
    for entry in told["files"]:
        sums = {entry["file"]: entry["sha256"], **entry["beside"]}
        for name, wanted in sums.items():
            assert hashlib.sha256((output / name).read_bytes()).hexdigest() == wanted


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    text = (make(tmp_path / "x", "pair") / "README.md").read_text()
    assert f"{len(CAPTIONS)} rows of `pair` targets" in text
    assert '"target.kind": "pair"' in text
