import hashlib
import json
from pathlib import Path

from batch.output import Output
from batch.report import RunReport
from batch.targets.card import manifest_of
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


def test_of_two_makers_receipts_the_one_of_the_file_counts(tmp_path: Path) -> None:
    output = make(tmp_path / "x", "pair")
    before = json.loads((output / "manifest.json").read_text())
    for receipt in (output / "_run" / "receipts").glob("*.json"):
        told = json.loads(receipt.read_text()) | {"data_sum": "0" * 64}
        shard, done, rejected, _ = receipt.name.removesuffix(".json").split(".")
        other = receipt.with_name(f"{shard}.{done}.{rejected}.{'0' * 16}.json")
        other.write_text(json.dumps(told))
    report = RunReport(rows=len(CAPTIONS))
    report.done = len(CAPTIONS)
    assert manifest_of(Output(str(output), "parquet"), report) == before
