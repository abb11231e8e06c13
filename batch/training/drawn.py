"""How often a run has learned from each row: counted along its stream, and written as one table.

The stream is a function of the job and its datasets, so that nothing has to be noted on the way
but which steps were left out and which rows could not be read.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch.storage import Storage
from batch.training.curriculum import Curriculum

FILE = "lineage.parquet"
SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),  # in the file
        ("key", pa.string()),
        ("drawn", pa.int64()),
    ]
)
GROUP = 2**16  # rows to a row group, at least


def write_drawn(
    storage: Storage, curriculum: Curriculum, left_out: Iterable[int]
) -> dict[str, Any]:
    """Write the table of all rows that were learned from; what `lineage.json` says of it.
    `left_out` are steps by number that changed no weight."""
    times = times_drawn(curriculum, left_out)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        rows = 0
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            for table in grouped(tables(curriculum, times)):
                writer.write_table(table)
                rows += len(table)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        storage.replace_file(FILE, file)
    samples = sum(int(drawn.sum()) for drawn in times)
    return {"file": FILE, "rows": rows, "samples": samples, "digest": digest}


def times_drawn(curriculum: Curriculum, left_out: Iterable[int]) -> list[np.ndarray]:
    """By dataset and row. Where another row stood in for one that cannot be read, it counts."""
    stream = curriculum.stream
    out = [np.zeros(len(course.source), np.int64) for course in curriculum.courses]
    for course, times, count in zip(curriculum.courses, out, stream.counts(), strict=True):
        for turn in range(count):
            times[list(course.share.batches.at(turn).rows)] += 1  # no batch has a row twice
    for step in left_out:
        for draft in stream.step(step):
            out[draft.dataset][[slot.row for slot in draft.slots]] -= 1
    for course, times in zip(curriculum.courses, out, strict=True):
        for row in course.source.passed_over():
            if times[row]:
                times[course.source.stand_in(row)] += times[row]
                times[row] = 0
    return out


def tables(curriculum: Curriculum, times: Iterable[np.ndarray]) -> Iterator[pa.Table]:
    """Of each file the rows that were drawn."""
    for name, course, drawn in zip(curriculum.names, curriculum.courses, times, strict=True):
        first = 0
        for file, keys in course.source.row_keys():
            here = drawn[first : first + len(keys)]
            first += len(keys)
            (rows,) = np.nonzero(here)
            said = {"dataset": [name] * len(rows), "file": [file] * len(rows)}
            told = {"row": rows, "key": keys.take(rows), "drawn": here[rows]}
            yield pa.table(said | told, SCHEMA)


def grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Small tables put together."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
