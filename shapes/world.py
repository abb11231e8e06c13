"""What a world is: pictures drawn from rows of attributes, captions that name all of a row, and
how both are read back.

Shape letters: N pictures, A attributes, H and W pixels. A row is A indices, in the order of the
world's `attributes`.
"""

import hashlib
import string
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

HELD_OUT = 10  # one combination in so many


def keyed(*key: object) -> torch.Generator:
    """Random numbers that depend on the key and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def blocks(x: Tensor, size: int) -> list[Tensor]:
    """Pieces of at most `size` along the first axis."""
    return [x[start : start + size] for start in range(0, len(x), size)]


@dataclass(frozen=True)
class Reading:
    """Attributes (N, A), and how well the worst outline overlaps what is there, (N,)."""

    rows: Tensor
    overlap: Tensor


class World(ABC):
    """Draws, describes and measures; knows nothing of models."""

    name: ClassVar[str]  # of the model that is trained on it
    side: ClassVar[int]  # of a picture
    values: ClassVar[dict[str, tuple[str, ...]]]  # by attribute; reserved words come last
    counts: ClassVar[tuple[int, ...]]  # values of each attribute that are trained on
    templates: ClassVar[tuple[str, ...]]

    @abstractmethod
    def combinations(self) -> Tensor:
        """Every row of attributes that can be trained on, (N, A)."""

    @abstractmethod
    def any_rows(self, count: int, random: torch.Generator) -> Tensor:
        """Rows, (count, A), in which reserved shapes are as common as the others."""

    @abstractmethod
    def draw_masked(
        self, rows_NA: Tensor, random: torch.Generator | None, side: int
    ) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, H, W) in 0…1, and masks (N, H, W) of what is not ground; `random`
        moves and sizes figures a little."""

    @abstractmethod
    def read(self, pictures_N3HW: Tensor, asked_NA: Tensor) -> Reading:
        """What pictures in 0…1 show, with no learned model. What was asked decides nothing but
        what there is to choose from, and how to tell what can be told in two ways."""

    @abstractmethod
    def parse(self, caption: str) -> Tensor | None:
        """The row that a caption asks for; None if it does not name every attribute."""

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(self.values)

    def describe(self, row_A: Tensor) -> dict[str, str]:
        """The words of one row."""
        pairs = zip(self.values.items(), row_A.tolist(), strict=True)
        return {name: words[index] for (name, words), index in pairs}

    def identities(self, rows_NA: Tensor) -> Iterator[str]:
        """A name for each row; the same for two that tell one picture in two ways."""
        tables = list(self.values.values())
        for row in rows_NA.tolist():
            yield "/".join(words[index] for words, index in zip(tables, row, strict=True))

    def held_out(self, rows_NA: Tensor) -> Tensor:
        """Which rows, about one in ten, are never trained on; decided by a hash of their names."""
        names = (name.encode() for name in self.identities(rows_NA))
        marks = [hashlib.blake2b(name, digest_size=4).digest() for name in names]
        return torch.tensor([int.from_bytes(mark, "big") % HELD_OUT == 0 for mark in marks])

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """All combinations, and which of them are held out."""
        rows = self.combinations()
        return rows, self.held_out(rows)

    def part(self, *, unseen: bool) -> Tensor:
        """The combinations that are never trained on, or those that are."""
        rows, held = self.split
        return rows[held == unseen]

    def known(self, rows_NA: Tensor) -> Tensor:
        """Which rows have none of the reserved shapes."""
        return (rows_NA < torch.tensor(self.counts)).all(dim=1)

    def reshaped(self, rows_NA: Tensor, word: str) -> Tensor:
        """The rows with figures of a reserved shape; ValueError if the word is none of them."""
        shape = self.attributes.index("shape")
        words, known = self.values["shape"], self.counts[shape]
        if word not in words[known:]:
            raise ValueError(f"{word!r}: reserved words are {', '.join(words[known:])}")
        out = rows_NA.clone()
        out[:, shape] = words.index(word)
        return out

    def some(self, count: int, random: torch.Generator) -> Tensor:
        """So many different combinations."""
        rows = self.combinations()
        return rows[torch.randperm(len(rows), generator=random)[:count]]

    def caption(self, row_A: Tensor, template: int) -> str:
        return self.templates[template % len(self.templates)].format(**self.describe(row_A))

    def draw(self, rows_NA: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Pictures (N, 3, H, W) in 0…1 of these rows."""
        return self.draw_masked(rows_NA, random, self.side)[0]

    def words(self) -> list[str]:
        """Every word that a caption can hold, sorted."""
        names = (name for words in self.values.values() for name in words)
        blank = dict.fromkeys(self.values, "")
        text = " ".join((*names, *(template.format(**blank) for template in self.templates)))
        return sorted({word.strip(string.punctuation) for word in text.split()} - {""})
