"""Row groups of Parquet files, read when they are needed and kept while there is room for them."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from batch.errors import TargetsError
from batch.storage import open_uri

OPEN = 64  # files


class RowGroups:
    """Some columns of some files. Each process has handles and a cache of its own, so that it may
    be sent to another one, or live on in a fork; threads of one may ask at once."""

    def __init__(
        self, paths: Sequence[Path], columns: Sequence[str], room: int, uri: str = ""
    ) -> None:
        """`room`: bytes of row groups that are kept; the latest one is, whatever its size. `uri`:
        of the store that has the files, if this machine has not."""
        self.paths, self.columns, self.room = tuple(paths), list(columns), room
        self.uri = uri
        self.read = 0  # row groups that came from a disk
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._kept: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._held = 0
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._fs: fs.FileSystem | None = None
        self._lock = threading.Lock()  # a fork's own: that of its parent may be taken

    def __getstate__(self) -> dict[str, Any]:
        names = ("paths", "columns", "room", "uri")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, file: int, group: int) -> pa.Table:
        """TargetsError for what cannot be read, naming file and group."""
        if self._process != os.getpid():
            self._forget()
        key = (file, group)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            table = self._fetched(file, group, self.columns)
            self._kept[key] = table
            self._held += table.nbytes
            while self._held > self.room and len(self._kept) > 1:
                self._held -= self._kept.popitem(last=False)[1].nbytes
        return table

    def fetched(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a row group, which is not kept."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            return self._fetched(file, group, columns)

    def _fetched(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        """An open file is not to be read by two threads at once."""
        try:  # in one thread: Arrow's pool is not there in a fork
            table = self._file(file).read_row_group(group, columns=list(columns), use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise TargetsError(f"{self.paths[file]}: row group {group}: {error}") from None
        self.read += 1
        return table

    def _file(self, number: int) -> pq.ParquetFile:
        if number not in self._open:
            self._open[number] = self._opened(self.paths[number])
            if len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def _opened(self, path: Path) -> pq.ParquetFile:
        if not self.uri:
            return pq.ParquetFile(path, memory_map=True)
        if self._fs is None:
            self._fs = open_uri(self.uri)[0]
        return pq.ParquetFile(self._fs.open_input_file(str(path)), pre_buffer=False)
