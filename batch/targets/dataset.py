"""Distillation targets for a trainer: rows by number, with what belongs to them.

    dataset = TargetDataset("out/targets", parts=("tensors", "noise", "text"))
    row = dataset[0]  # row.record.caption, row.tensors["latent"], row.noise, row.text.t5

Noise is drawn again from its key and proved by its hash, a caption's text comes from the mapped
table, a path's states follow from its velocities.
"""

import bisect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from batch.errors import TargetsError
from batch.targets.copy import local
from batch.targets.files import Bucket, Inventory, TargetFile, inventory
from batch.targets.groups import RowGroups
from batch.targets.identity import part_of, refuse_other
from batch.targets.layout import COLUMNS, digest_of, from_row, tensor_names, triple
from batch.targets.noise import checked
from batch.targets.tensors import loaded
from batch.targets.text import SUFFIX, TEXT, TextError, TextTable, Told
from flux_engine.sampling.trace import states
from schemas.records import TargetRecord

Part = Literal["tensors", "noise", "states", "text"]
PARTS: Mapping[str, tuple[Part, ...]] = {  # that a kind of target has, besides its text
    "cache": ("tensors",),
    "pair": ("tensors", "noise"),
    "path": ("tensors", "noise", "states"),
    "velocity": ("tensors", "noise"),
    "feature": ("tensors", "noise"),
}
CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TargetRow:
    """One row; what was not asked for, or is not there, is None or empty.

    `record` has every value but the tensors. `noise` is (Z, h, w), of velocity and feature targets
    (M, Z, h, w): one for each noise level. `states` (K + 1, Z, h, w) begin at the noise, in
    float32, at the levels `record.sigmas`. `carried` came from the manifest.
    """

    number: int
    record: TargetRecord
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Tensor | None = None
    states: Tensor | None = None
    text: Told | None = None
    negative: Told | None = None
    carried: Mapping[str, Any] = field(default_factory=dict)


class TargetDataset(Dataset[TargetRow]):
    """Rows in the order of the files' names. May be sent to other processes, and lives in forks."""

    def __init__(
        self,
        address: str | Path,
        *,
        parts: Iterable[Part] | None = None,
        tensors: Iterable[str] | None = None,
        identity: Mapping[str, Any] | None = None,
        verify: bool = False,
        partial: bool = False,
        cache_bytes: int = CACHE_BYTES,
        copies: Path | None = None,
    ) -> None:
        """`address`: a folder, or `s3://…`, of which a copy is kept below `copies`.

        `parts` are what rows bring along (None: all that there is), `tensors` which of the tensors;
        nothing else is read or drawn. `identity` is what the dataset has to say of its teacher,
        encoders and layout, as far as it is given. `verify` reads all tensors and proves each row
        by its digest. TargetsError, IdentityError for what does not fit.
        """
        self.told: Inventory = inventory(local(str(address), copies), partial=partial)
        if identity is not None:
            refuse_other(part_of(self.identity, identity), identity, f"{address}: found and wanted")
        self.verify = verify
        self.names = tensor_names(self.identity["target"])
        self.parts = self._parts(parts)
        self.tensors = self._tensors(tensors)
        self._groups = RowGroups(
            [file.path for file in self.told.files], self._columns(), cache_bytes
        )
        self._firsts = [file.first for file in self.told.files]
        self._texts: tuple[int, TextTable] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.told.identity

    @property
    def kind(self) -> str:
        return str(self.identity["target"]["kind"])

    @property
    def has_text(self) -> bool:
        return any((self.told.root / TEXT).glob(f"*{SUFFIX}"))

    @property
    def texts(self) -> TextTable:
        """What the encoders say to each caption; opened once a process."""
        if self._texts is None or self._texts[0] != os.getpid():
            table = TextTable(self.told.root / TEXT)
            for path, found in table.identities:
                refuse_other(found, self.identity, f"{path} and the dataset's files")
            self._texts = (os.getpid(), table)
        return self._texts[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_texts": None}

    def __len__(self) -> int:
        return self.told.rows

    def __getitem__(self, number: int) -> TargetRow:
        return self.row(number)

    def __getitems__(self, numbers: Sequence[int]) -> list[TargetRow]:
        """Rows in the order asked for; each row group is read once."""
        found = {number: self.row(number) for number in sorted(set(numbers))}
        return [found[number] for number in numbers]

    def bucket(self, number: int) -> Bucket:
        """A row's height and width; nothing is read."""
        return self._file(number)[1].bucket

    def where(self, number: int) -> str:
        """A row's file and its place in there; nothing is read."""
        _, file = self._file(number)
        return f"{file.path} row {number % len(self) - file.first}"

    def buckets(self) -> dict[Bucket, np.ndarray]:
        """The numbers of each size's rows, rising."""
        out: dict[Bucket, list[np.ndarray]] = {}
        for file in self.told.files:
            out.setdefault(file.bucket, []).append(np.arange(file.first, file.first + file.rows))
        return {bucket: np.concatenate(out[bucket]) for bucket in sorted(out)}

    def row_groups(self) -> np.ndarray:
        """For each row, the number of the row group that it is read with."""
        counts = [count for file in self.told.files for count in file.groups]
        return np.repeat(np.arange(len(counts)), counts)

    def row(self, number: int) -> TargetRow:
        """IndexError beyond the end; NoiseError, TextError, TargetsError for a row that is not what
        was written, naming its file."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number = int(number) % len(self)
        place, file = self._file(number)
        group, offset = group_of(file, number - file.first)
        table = self._groups(place, group).slice(offset, 1)
        where = f"{file.path.name} row {number - file.first}"
        values = table.select([*COLUMNS, *self.told.carried]).to_pylist()[0]
        record = from_row(values, ())
        tensors = {name: tensor_of(table, name, where) for name in self._read()}
        if self.verify:
            self._prove(record, table, where)
        noise = self._noise(record, table, where) if {"noise", "states"} & {*self.parts} else None
        return TargetRow(
            number=number,
            record=record,
            tensors={n: t for n, t in tensors.items() if n in self.tensors},
            noise=noise if "noise" in self.parts else None,
            states=states_of(record, noise, tensors, where) if "states" in self.parts else None,
            text=self._text(record.caption_id, record.caption, where),
            negative=self._text(record.negative_id, record.negative_caption, where),
            carried={name: values[name] for name in self.told.carried},
        )

    def _parts(self, wanted: Iterable[Part] | None) -> tuple[Part, ...]:
        there = (*PARTS[self.kind], *(("text",) if self.has_text else ()))
        chosen = tuple(there if wanted is None else wanted)
        if unknown := [part for part in chosen if part not in get_args(Part)]:
            raise TargetsError(f"parts {unknown} are unknown; known are {get_args(Part)}")
        if lost := [part for part in chosen if part not in there]:
            raise TargetsError(
                f"{self.told.root}: {self.kind} targets here are without {', '.join(lost)}; "
                f"they have {', '.join(there)}"
            )
        return chosen

    def _tensors(self, wanted: Iterable[str] | None) -> tuple[str, ...]:
        if wanted is None:
            return self.names if "tensors" in self.parts else ()
        chosen = tuple(wanted)
        if lost := [name for name in chosen if name not in self.names]:
            told = f"{self.kind} targets here are without the tensors {', '.join(lost)}"
            raise TargetsError(f"{self.told.root}: {told}; they have {', '.join(self.names)}")
        if "tensors" not in self.parts:
            raise TargetsError(f"tensors {', '.join(chosen)} are named and not among the parts")
        return chosen

    def _read(self) -> tuple[str, ...]:
        """Tensors that are made of what is read."""
        needed = {*self.tensors, *(("u",) if "states" in self.parts else ())}
        return tuple(name for name in self.names if name in needed)

    def _columns(self) -> list[str]:
        whole = self.names if self.verify else self._read()
        shape = [self._shaped()] if {"noise", "states"} & {*self.parts} else []
        columns = [*COLUMNS, *self.told.carried, *(c for name in whole for c in triple(name))]
        return list(dict.fromkeys([*columns, *(triple(name)[1] for name in shape)]))

    def _shaped(self) -> str:
        """The tensor whose shape is the noise's."""
        return "u" if self.kind == "path" else "latent"

    def _file(self, number: int) -> tuple[int, TargetFile]:
        place = bisect.bisect_right(self._firsts, number % len(self)) - 1
        return place, self.told.files[place]

    def _prove(self, record: TargetRecord, table: pa.Table, where: str) -> None:
        data = {name: bytes(buffer_of(table, name)) for name in self.names}
        if (found := digest_of(record.model_dump(), data)) != record.digest:
            raise TargetsError(f"{where}: has digest {found}, and {record.digest} is written down")

    def _noise(self, record: TargetRecord, table: pa.Table, where: str) -> Tensor:
        shape = table.column(triple(self._shaped())[1])[0].as_py()
        if self.kind in ("pair", "path"):
            assert record.seed is not None
            assert record.noise_hash is not None
            return checked(record.seed, shape[-3:], record.noise_hash, where)
        keys = zip(record.t_noise_seed, record.t_noise_hash, strict=True)
        return torch.stack([checked(seed, shape, wanted, where) for seed, wanted in keys])

    def _text(self, name: str | None, caption: str | None, where: str) -> Told | None:
        if "text" not in self.parts or name is None:
            return None
        if name not in self.texts:
            raise TextError(
                f"{where}: its caption {caption!r} ({name}) has no text in {self.told.root / TEXT}"
            )
        told = self.texts[name]
        if told.caption != caption:
            raise TextError(
                f"{where}: its caption is {caption!r}, and the text of that id is {told.caption!r}"
            )
        return told


def group_of(file: TargetFile, row: int) -> tuple[int, int]:
    """A row's group, and its place in there."""
    for group, count in enumerate(file.groups):
        if row < count:
            return group, row
        row -= count
    raise IndexError(row)


def buffer_of(table: pa.Table, name: str) -> memoryview:
    """The bytes of a tensor of the only row."""
    return memoryview(table.column(triple(name)[0])[0].as_buffer())


def tensor_of(table: pa.Table, name: str, where: str) -> Tensor:
    shape, dtype = (table.column(column)[0].as_py() for column in triple(name)[1:])
    try:
        return loaded(buffer_of(table, name), shape, dtype)
    except (RuntimeError, ValueError, KeyError) as error:
        raise TargetsError(f"{where}: {name} is no {dtype} tensor {shape}: {error}") from None


def states_of(
    record: TargetRecord, noise: Tensor | None, tensors: Mapping[str, Tensor], where: str
) -> Tensor:
    """Where a path's segments meet."""
    assert noise is not None
    if len(record.sigmas) != len(tensors["u"]) + 1:
        raise TargetsError(
            f"{where}: has {len(record.sigmas)} sigmas and {len(tensors['u'])} segments"
        )
    return states(noise, tensors["u"], record.sigmas)
