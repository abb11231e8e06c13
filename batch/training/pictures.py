"""Pictures with their captions for a trainer: rows by number, out of Parquet as it lies there.

    rows = PictureRows("out/shards/data", height=None, width=None, max_pixels=2**20, step=16)
    row = rows.row(0)  # row.caption, row.pixels

Training shards, our own image datasets, any Parquet of pictures and captions.
"""

import bisect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from batch.errors import JobError, ManifestError, PictureDown, PictureError
from batch.ingest.lines import Ref, refs_of
from batch.manifest import Manifest
from batch.media import Size, size_of, trained, weights
from batch.roots import Roots
from batch.storage import S3
from batch.targets.files import Bucket
from batch.targets.groups import RowGroups
from batch.training.columns import SIZES, Reject, check, size_told
from batch.training.source import refuse_unusable
from flux_engine.sizes import training_size
from schemas.records import TRAINING_SIZES

logger = logging.getLogger(__name__)

MASK, KEY = "mask", "key"
CACHE_BYTES = 256 * 2**20
READ_ROWS = 64  # at a time, while headers are looked at


@dataclass(frozen=True)
class PictureRow:
    """One row. `where` says in which file it is; `pixels` are (3, H, W) in −1…1, `mask` (1, H, W)
    in 0…1, or None; `pictures` those of further columns of files, each at its own training size
    (or the rows' common one); `carried` has all other columns."""

    number: int
    caption: str
    key: str | None
    where: str
    pixels: Tensor
    mask: Tensor | None = None
    pictures: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)


class PictureRows:
    """Rows in the order of the files' names. May be sent to other processes, and lives in forks."""

    def __init__(
        self,
        address: str,
        *,
        height: int | None,
        width: int | None,
        max_pixels: int,
        step: int,
        file_keys: Sequence[str] = ("image",),
        prompt_column: str = "prompt",
        leave_out: Sequence[str] = (),
        picture_roots: Sequence[str] = (),
        masked: bool = False,
        extra_inputs: Sequence[str] = (),
        needed: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`address`: a file, a folder or a glob, local or `s3://`. With `height` and `width` all
        rows have that size, else each the one that follows from its picture. `file_keys` are the
        columns that hold files: the picture's first, `mask` is one that is known by its name.
        Another column of files has to be in `leave_out`. `masked`: no row is without its mask;
        `extra_inputs` are columns whose values are taken, and `needed` those of them that no row
        may lack. ManifestError for what does not fit."""
        if (height is None) != (width is None):
            raise ManifestError(f"height is {height} and width is {width}: give both, or neither")
        if len(set(file_keys)) != len(file_keys) or not file_keys or file_keys[0] == MASK:
            raise ManifestError(
                f"file_keys {list(file_keys)}: name the picture's column, then others"
            )
        for name, value in (("step", step), ("height", height), ("width", width)):
            if value is not None and (value < 16 or value % 16):
                raise ManifestError(f"{name} {value}: is no multiple of 16")
        self.fixed = (height, width) if height is not None and width is not None else None
        self.max_pixels, self.step = max_pixels, step
        self.keys, self.prompt = tuple(file_keys), prompt_column
        manifest = Manifest(address)
        if not manifest.rows:
            raise ManifestError(f"{address}: has no rows")
        self._places = (manifest.root, *picture_roots)
        self._roots: tuple[int, Roots] | None = None
        self.files = manifest.files
        self.columns = check(manifest, self.keys, prompt_column, tuple(leave_out))
        self.masked, self.extra, self.needed = masked, tuple(extra_inputs), tuple(needed)
        self.carried = tuple(
            name
            for name in self.columns
            if name not in {*self.keys, prompt_column, KEY, *TRAINING_SIZES}
        )
        paths = [Path(file.path) for file in self.files]
        uri = address if address.startswith(S3) else ""
        self._groups = RowGroups(paths, self.columns, cache_bytes, uri)
        self._counts = [self._row_counts(manifest, file.path) for file in self.files]
        self._firsts = np.cumsum([0, *(file.rows for file in self.files)]).tolist()
        self._sizes: np.ndarray | None = None  # width and height of each row's picture; 0: rejected
        self._rejects: list[Reject] = []

    @staticmethod
    def _row_counts(manifest: Manifest, path: str) -> tuple[int, ...]:
        with manifest.fs.open_input_file(path) as stream:
            told = pq.ParquetFile(stream).metadata
            return tuple(told.row_group(i).num_rows for i in range(told.num_row_groups))

    @property
    def roots(self) -> Roots:
        """Where paths lead; opened once a process."""
        if self._roots is None or self._roots[0] != os.getpid():
            self._roots = (os.getpid(), Roots(self._places))
        return self._roots[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_roots": None}

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, number: int) -> PictureRow:
        return self.row(number)

    def __getitems__(self, numbers: Sequence[int]) -> list[PictureRow]:
        """Rows in the order asked for; each row group is read once."""
        found = {number: self.row(number) for number in sorted(set(numbers))}
        return [found[number] for number in numbers]

    def buckets(self) -> dict[Bucket, np.ndarray]:
        """The numbers of each size's rows, rising: from the columns of sizes where there are some,
        else from the pictures' headers, which are read once. Rejected rows are in none."""
        out: dict[Bucket, list[int]] = {}
        for number, (width, height) in enumerate(self._surveyed().tolist()):
            if width:
                out.setdefault(self._bucket((width, height)), []).append(number)
        return {bucket: np.array(out[bucket], np.int64) for bucket in sorted(out)}

    def rejects(self) -> list[Reject]:
        """Rows that cannot be trained on, as far as columns and headers tell."""
        self._surveyed()
        return list(self._rejects)

    def row_groups(self) -> np.ndarray:
        """For each row, the number of the row group that it is read with."""
        counts = [count for file in self._counts for count in file]
        return np.repeat(np.arange(len(counts)), counts)

    def row(self, number: int) -> PictureRow:
        """IndexError beyond the end; PictureError for a row that cannot be read, PictureDown for
        one that cannot be had now, naming it."""
        values, where = self._values(number)
        try:
            return self._row(int(number) % len(self), values, where)
        except PictureError as error:
            raise type(error)(f"{where}: {error}") from None

    def _row(self, number: int, values: Mapping[str, Any], where: str) -> PictureRow:
        image, told = self._refs(values, self.keys[0]), size_told(values)
        if len(image) != 1:
            raise PictureError(f"{self.keys[0]}: has {len(image)} pictures, and one is wanted")
        if not isinstance(values[self.prompt], str):
            raise PictureError(f"{self.prompt}: there is no caption")
        data = self._bytes(image[0])
        height, width = self._bucket(told or size_of(data, image[0].name, whole=False))
        pixels, size = trained(data, image[0].name, height, width, told)
        return PictureRow(
            number=number,
            caption=values[self.prompt],
            key=None if values.get(KEY) is None else str(values[KEY]),
            where=where,
            pixels=pixels,
            mask=self._mask(values, (height, width), size) if MASK in self.keys else None,
            pictures={
                name: tuple(self._picture(name, ref) for ref in self._refs(values, name))
                for name in self.keys[1:]
                if name != MASK
            },
            carried={name: values[name] for name in self.carried},
        )

    def _mask(self, values: Mapping[str, Any], bucket: Bucket, of: Size) -> Tensor | None:
        refs = self._refs(values, MASK)
        if not refs:
            return None
        if len(refs) > 1:
            raise PictureError(f"{MASK}: has {len(refs)} files, and one is wanted")
        return weights(self._bytes(refs[0]), f"{MASK} {refs[0].name}", *bucket, of)

    def _picture(self, name: str, ref: Ref) -> Tensor:
        data = self._bytes(ref)
        height, width = self._bucket(size_of(data, f"{name} {ref.name}", whole=False))
        return trained(data, f"{name} {ref.name}", height, width)[0]

    def _bucket(self, size: Size) -> Bucket:
        if self.fixed:
            return self.fixed
        width, height = training_size(*size, self.max_pixels, self.step)
        return height, width

    def _refs(self, values: Mapping[str, Any], column: str) -> tuple[Ref, ...]:
        refs = refs_of(values[column])
        return refs if isinstance(refs, tuple) else () if refs is None else (refs,)

    def _bytes(self, ref: Ref) -> bytes:
        if ref.bytes is not None:
            return ref.bytes
        if not ref.path:
            raise PictureError("a picture has neither bytes nor a path")
        return self.roots.read(ref.path)

    def _values(self, number: int) -> tuple[dict[str, Any], str]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number = int(number) % len(self)
        place = bisect.bisect_right(self._firsts, number) - 1
        row = number - self._firsts[place]
        where, offset = f"{self.files[place].name} row {row}", row
        for group, count in enumerate(self._counts[place]):
            if offset < count:
                table = self._groups(place, group).slice(offset, 1)
                return table.to_pylist()[0], where
            offset -= count
        raise IndexError(number)

    def _surveyed(self) -> np.ndarray:
        if self._sizes is None:
            sizes = np.zeros((len(self), 2), np.int64)
            self._rejects = []
            for number, (values, where) in enumerate(self._looked_at()):
                try:
                    refuse_unusable(self.extra, self.needed, values, where)
                    sizes[number] = self._size(values)
                except PictureDown as error:  # another rank may see the row
                    raise PictureDown(f"{where}: {error}") from None
                except (PictureError, JobError) as error:
                    why = str(error).removeprefix(f"{where}: ")
                    self._rejects.append(Reject(number, where, values.get(KEY), why))
            self._sizes = sizes
            if self._rejects:
                told = self._rejects[0]
                logger.warning(
                    "rows are left out",
                    extra={"rows": len(self._rejects), "first": f"{told.where}: {told.reason}"},
                )
        return self._sizes

    def _looked_at(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Of each row what a survey asks for: pictures only where no column has their sizes."""
        for place, file in enumerate(self.files):
            names = {*file.schema.names}
            asked = dict.fromkeys((KEY, self.prompt, *SIZES, *self.extra))
            wanted = [name for name in asked if name in names]
            if not {*SIZES} <= names:
                wanted += self.keys
            elif self.masked:
                wanted.append(MASK)
            number = 0
            for group in range(len(self._counts[place])):
                table = self._groups.fetched(place, group, wanted)
                for batch in table.to_batches(READ_ROWS):
                    for values in batch.to_pylist():
                        yield values, f"{file.name} row {number}"
                        number += 1

    def _size(self, values: Mapping[str, Any]) -> Size:
        """Width and height of a row's picture; PictureError for one that cannot be used."""
        if not isinstance(values[self.prompt], str):
            raise PictureError(f"{self.prompt}: there is no caption")
        if self.masked and len(masks := self._refs(values, MASK)) != 1:
            why = f"has {len(masks)} files" if masks else "is null"
            raise PictureError(f"{MASK}: {why}, and the job trains with one of each row")
        if self.keys[0] not in values:
            told = size_told(values)
            if told is None:
                raise PictureError(f"{' and '.join(SIZES)}: there is no size")
            return told
        sizes: dict[str, list[Size]] = {}
        for name in self.keys:
            refs = self._refs(values, name)
            sizes[name] = [size_of(self._bytes(ref), ref.name, whole=False) for ref in refs]
        if len(sizes[self.keys[0]]) != 1:
            raise PictureError(f"{self.keys[0]}: there is not one picture")
        return sizes[self.keys[0]][0]
