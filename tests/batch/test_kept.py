import json
from pathlib import Path

from batch.kept import KeptShapes
from batch.storage import Storage


def test_the_first_choice_holds_for_all_later_workers(tmp_path: Path) -> None:
    first, second = (KeptShapes(Storage(str(tmp_path))) for _ in range(2))
    assert first("micro_batch 1024x1024 text 512", 8) == 8
    assert second("micro_batch 1024x1024 text 512", 2) == 8
    assert second("micro_batch 512x512 text 512", 16) == 16
    assert first("micro_batch 512x512 text 512", 4) == 16
    assert first("attention 512x512", "flash") == second("attention 512x512", "cudnn") == "flash"
    kept = tmp_path / "_run/shapes/micro_batch-1024x1024-text-512.json"
    assert json.loads(kept.read_text()) == {"name": "micro_batch 1024x1024 text 512", "chosen": 8}
