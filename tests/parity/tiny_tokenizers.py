"""Small real tokenizers of the two kinds that FLUX.1 uses, in the published file layouts.

CLIP's is byte-level BPE (`vocab.json`, `merges.txt`), T5's a unigram model (`tokenizer.json`).
Their vocabularies are a few hundred entries; class names, special tokens and lengths are those
published, so `AutoTokenizer` builds the same classes from them.
"""

import json
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

START, END = "<|startoftext|>", "<|endoftext|>"
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
CLIP_MERGES = ("t h", "th e</w>", "a n", "an d</w>", "o f</w>", "r e", "re d</w>", "i n")
T5_PIECES = ("▁", "▁the", "▁a", "▁of", "▁and", "ing", "er", "th", "in", "re", "▁red", "▁in")


def clip_vocabulary() -> list[str]:
    """Bytes, bytes that end a word, merges; the end token has the largest id, as published."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in CLIP_MERGES]
    return [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]


def t5_vocabulary() -> list[tuple[str, float]]:
    """Pieces and their log probabilities; anything else is the unknown token."""
    letters = [c for c in string.printable if not c.isspace()]
    pieces = [(piece, -2.0 - 0.1 * i) for i, piece in enumerate(T5_PIECES)]
    special = [(token, 0.0) for token in (PAD, EOS, UNKNOWN)]
    return [*special, *pieces, *((letter, -6.0) for letter in letters)]


CLIP_VOCAB, T5_VOCAB = len(clip_vocabulary()), len(t5_vocabulary())


def write_clip(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(clip_vocabulary())}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *CLIP_MERGES, "")))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "errors": "replace",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_t5(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.Unigram(t5_vocabulary(), unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5TokenizerFast",
        "model_max_length": 512,
        "extra_ids": 0,
        "clean_up_tokenization_spaces": True,
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
