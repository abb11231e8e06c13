"""The two tokenizer folders: every word of the world is one token, anything else is spelled.

Both load through `AutoTokenizer` as the classes that FLUX.1 uses, `CLIPTokenizer` and
`T5Tokenizer`, without a network.
"""

import json
import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
SPACE, WORD_END = "▁", "</w>"
CLIP_LENGTH, T5_LENGTH = 77, 512


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses, in the published order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(hidden))]


def merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, commonest first, until every word is one piece."""
    pieces = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    found: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for p in pieces.values() for pair in pairwise(p))
        if not pairs:
            return found
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        pieces = {word: merged(p, best) for word, p in pieces.items()}


def merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces with each occurrence of the pair made one."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def clip_pieces(words: Sequence[str]) -> list[str]:
    """CLIP's vocabulary by index; the end of text is the last and so the largest."""
    symbols = byte_symbols()
    joined = dict.fromkeys(a + b for a, b in merges(words))
    return [*symbols, *(s + WORD_END for s in symbols), *joined, START, END]


def t5_pieces(words: Sequence[str]) -> list[tuple[str, str]]:
    """T5's pieces by index, each with the piece whose meaning it shares.

    T5 tokenizers know upper case from lower, so a word has three spellings with one meaning.
    """
    special = [(name, name) for name in (PAD, EOS, UNKNOWN, SPACE)]
    spelled: dict[str, str] = {}
    for word in words:
        for spelling in (word, word.capitalize(), word.upper()):
            spelled.setdefault(SPACE + spelling, SPACE + word)
    letters = sorted(set(string.printable) - set(string.whitespace))
    return [*special, *spelled.items(), *((c, c.lower()) for c in letters)]


def write_clip_tokenizer(folder: Path, words: Sequence[str]) -> None:
    from transformers import CLIPTokenizer

    vocabulary = {piece: i for i, piece in enumerate(clip_pieces(words))}
    pairs = merges(words)
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=pairs, model_max_length=CLIP_LENGTH, unk_token=END,
        bos_token=START, eos_token=END, pad_token=END,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    # older releases read these two in place of tokenizer.json
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def write_t5_tokenizer(folder: Path, words: Sequence[str]) -> None:
    from transformers import T5Tokenizer

    scores = {PAD: 0.0, EOS: 0.0, UNKNOWN: 0.0, SPACE: -2.0}
    vocabulary = [
        (piece, scores.get(piece, -12.0 if len(piece) == 1 else -4.0))
        for piece, _ in t5_pieces(words)
    ]
    tokenizer = T5Tokenizer(
        vocab=vocabulary, extra_ids=0, model_max_length=T5_LENGTH,
        pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
