"""Both tokenizers load without a network and keep their ids."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from shapes.figures import RESERVED
from shapes.recipe import ONE, TWO
from shapes.vocabulary import (
    clip_pieces,
    t5_pieces,
    write_clip_tokenizer,
    write_t5_tokenizer,
)

WORDS = ONE.world.words()
PROMPT = "a small red circle at the top left on a black background"


@pytest.fixture(scope="module", params=["clip", "t5"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp(request.param)
    (write_clip_tokenizer if request.param == "clip" else write_t5_tokenizer)(folder, WORDS)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def pieces(tokenizer: Any, text: str) -> list[str]:
    names = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    return [name.strip("▁").removesuffix("</w>").lower() for name in names]


def bare(tokenizer: Any, text: str) -> list[str]:
    """Pieces without the start and the end."""
    special = {name.lower() for name in tokenizer.all_special_tokens}
    return [piece for piece in pieces(tokenizer, text) if piece not in special]


def test_the_classes_are_those_of_flux(tokenizer: Any) -> None:
    assert type(tokenizer).__name__.removesuffix("Fast") in {"CLIPTokenizer", "T5Tokenizer"}


def test_every_word_is_one_token(tokenizer: Any) -> None:
    assert bare(tokenizer, " ".join(WORDS)) == WORDS


def test_the_nonsense_words_are_known(tokenizer: Any) -> None:
    assert bare(tokenizer, "zorb flim quax mipo") == list(RESERVED)


@pytest.mark.parametrize(
    "text", ["A small RED Circle at the top left on a Black background", f"  {PROMPT}\n"]
)
def test_case_and_spaces_do_not_matter(tokenizer: Any, text: str) -> None:
    assert bare(tokenizer, text) == PROMPT.split()


def test_punctuation_is_a_token_of_its_own(tokenizer: Any) -> None:
    assert bare(tokenizer, "red circle, top.") == ["red", "circle", ",", "top", "."]


@pytest.mark.parametrize("text", ["", "a zebra", "größer 你好 🦓", "x" * 500])
def test_unknown_words_are_spelled_and_do_not_crash(tokenizer: Any, text: str) -> None:
    padded = tokenizer(text, padding="max_length", truncation=True, max_length=20)
    assert len(padded["input_ids"]) == 20
    assert max(padded["input_ids"]) < len(tokenizer)


def test_the_end_of_clip_is_its_largest_index() -> None:
    assert clip_pieces(WORDS)[-1] == "<|endoftext|>"
    assert len(set(clip_pieces(WORDS))) == len(clip_pieces(WORDS))


def test_the_shipped_models_vocabularies_keep_their_ids() -> None:
    assert (len(clip_pieces(WORDS)), len(t5_pieces(WORDS))) == (623, 202)
    shipped = Path(__file__).parents[2] / "flux_engine" / "bundled" / "flux-shapes"
    known = AutoTokenizer.from_pretrained(shipped / "tokenizer").get_vocab()
    assert known == {piece: i for i, piece in enumerate(clip_pieces(WORDS))}
    known = AutoTokenizer.from_pretrained(shipped / "tokenizer_2").get_vocab()
    assert known == {piece: i for i, (piece, _) in enumerate(t5_pieces(WORDS))}


def test_another_world_has_another_vocabulary() -> None:
    assert {"above", "below", "of"} <= set(TWO.world.words())
    assert "center" not in TWO.world.words()
    assert clip_pieces(TWO.world.words()) != clip_pieces(WORDS)
