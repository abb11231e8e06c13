import os
from pathlib import Path

import pytest
import torch

from batch.targets.text import TextError, TextTable, Told, caption_id, write_texts

IDENTITY = {"version": 1}


def told(caption: str, seed: int) -> Told:
    generator = torch.Generator().manual_seed(seed)
    return Told(
        caption_id(caption, 20, {}),
        caption,
        torch.randn(20, 8, generator=generator).bfloat16(),
        torch.randn(4, generator=generator),
    )


def test_texts_are_found_by_their_caption_in_all_files(tmp_path: Path) -> None:
    texts = [told(name, n) for n, name in enumerate(("owl", "bee", "ant"))]
    for n, some in enumerate((texts[:2], texts[1:])):
        with (tmp_path / f"{n}.arrow").open("wb") as file:
            write_texts(file, some, IDENTITY)
    table = TextTable(tmp_path)
    assert len(table) == 3
    assert table.ids() == [text.caption_id for text in texts]
    for text in texts:
        found = table[text.caption_id]
        assert found.caption == text.caption
        assert torch.equal(found.t5, text.t5)
        assert torch.equal(found.clip, text.clip)
        assert found.t5.dtype == torch.bfloat16
    assert [identity for _, identity in table.identities] == [IDENTITY] * 2


def test_a_caption_without_a_text_is_an_error(tmp_path: Path) -> None:
    table = TextTable(tmp_path)
    name = caption_id("owl", 20, {})
    assert name not in table
    with pytest.raises(TextError, match=name):
        table[name]


def test_an_id_is_of_all_that_decides_a_text() -> None:
    ids = {
        caption_id("owl", 20, {"t5": "a"}),
        caption_id("bee", 20, {"t5": "a"}),
        caption_id("owl", 21, {"t5": "a"}),
        caption_id("owl", 20, {"t5": "b"}),
        caption_id("owl", 20, {"t5": "a"}, "lora"),
    }
    assert len(ids) == 5


def test_no_more_files_are_open_than_a_process_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.targets.text.OPEN", 4)
    for n in range(20):
        with (tmp_path / f"{n:02}.arrow").open("wb") as file:
            write_texts(file, [told(str(n), n)], IDENTITY)
    before = len(os.listdir("/proc/self/fd"))
    table = TextTable(tmp_path)
    assert [table[name].caption for name in table.ids()] == [str(n) for n in range(20)]
    assert len(os.listdir("/proc/self/fd")) - before <= 4
