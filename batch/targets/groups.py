"""Row groups of Parquet files, read when they are needed and kept while there is room for them."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import TargetsError

OPEN = 64  # files


class RowGroups:
    """Some columns of some files. Each process has handles and a cache of its own, so that it may
    be sent to another one, or live on in a fork."""

    def __init__(self, paths: Sequence[Path], columns: Sequence[str], room: int) -> None:
        """`room`: bytes of row groups that are kept; the latest one is, whatever its size."""
        self.paths, self.columns, self.room = tuple(paths), list(columns), room
        self.read = 0  # row groups that came from a disk
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._kept: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._held = 0
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "columns": self.columns, "room": self.room}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, file: int, group: int) -> pa.Table:
        """TargetsError for what cannot be read, naming file and group."""
        if self._process != os.getpid():
            self._forget()
        key = (file, group)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:  # in one thread: Arrow's pool is not there in a fork
            table = self._file(file).read_row_group(group, columns=self.columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise TargetsError(f"{self.paths[file]}: row group {group}: {error}") from None
        self.read += 1
        self._kept[key] = table
        self._held += table.nbytes
        while self._held > self.room and len(self._kept) > 1:
            self._held -= self._kept.popitem(last=False)[1].nbytes
        return table

    def _file(self, number: int) -> pq.ParquetFile:
        if number not in self._open:
            self._open[number] = pq.ParquetFile(self.paths[number], memory_map=True)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]
