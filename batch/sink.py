"""Records into files that appear whole or not at all, with the same bytes on every run."""

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import image_schema, leaves, rejected_schema, training_schema
from schemas.records import ImageRecord, RejectedRecord, TrainingRecord

LONGEST_KEY = 80  # characters of it in a file's name; tar has 100 for all
ROW_GROUP_BYTES = 32 * 2**20
FILE_SUFFIX = {"png": "png", "webp": "webp", "jpeg": "jpg"}

Carried = dict[str, Any]  # a row's passthrough values


def file_name(record: ImageRecord, kind: str) -> str:
    """A name for one picture: its key, safe in any archive, and its sample number. Of a long key
    the beginning and a digest, for an archive has no room for more."""
    key = quote(record.key, safe="").replace(".", "%2E")
    if len(key) > LONGEST_KEY:
        whole = hashlib.sha256(record.key.encode()).hexdigest()
        key = f"{key[: LONGEST_KEY - 17]}~{whole[:16]}"
    return f"{key}-{record.sample}.{FILE_SUFFIX[kind]}"


def plain(value: Any) -> str:
    """What JSON has no word for: bytes as base64, times and decimals as they are written."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def write_training(
    file: BinaryIO,
    records: Iterable[tuple[TrainingRecord, Carried]],
    files: Mapping[str, bool],
    carried: list[pa.Field],
) -> int:
    """Training records as one Parquet file, in the order given; how many there were. `files` are
    the columns of further files, and whether a row has several."""

    def rows() -> Iterator[dict[str, Any]]:
        for record, more in records:
            told = record.model_dump()
            yield told | told.pop("files") | more

    return write_rows(file, training_schema(files, carried), rows(), ("image", *files))


def write_rows(
    file: BinaryIO, schema: pa.Schema, rows: Iterable[dict[str, Any]], files: Sequence[str]
) -> int:
    """Rows as one Parquet file. What is in the columns `files` is not compressed again."""
    every = [leaf for field in schema for leaf in leaves(field)]
    raw = {x for name in files for x in leaves(schema.field(name)) if x.endswith(".bytes")}
    plain = [leaf for leaf in every if leaf.partition(".")[0] not in files]
    count = 0
    with pq.ParquetWriter(
        file,
        schema,
        compression={leaf: "none" if leaf in raw else "zstd" for leaf in every},
        use_dictionary=plain,
        write_statistics=plain,  # of pictures the least and the greatest mean nothing
        write_page_index=True,
    ) as writer:
        for group in row_groups(rows, files):
            writer.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
    return count


def write_parquet(
    file: BinaryIO,
    records: Iterable[tuple[ImageRecord, Carried]],
    passthrough: list[pa.Field],
    kind: str,
) -> int:
    """Image records as one Parquet file, in the order given; how many there were. Pictures are not
    compressed again."""
    schema = image_schema(passthrough)
    rows = (
        record.model_dump()
        | carried
        | {"image": {"bytes": record.image, "path": file_name(record, kind)}}
        for record, carried in records
    )
    return write_rows(file, schema, rows, ("image",))


def row_groups(
    rows: Iterable[dict[str, Any]], files: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """Rows cut where their files reach the size of a row group; no rows are no row group, for
    `datasets` stumbles over an empty one."""
    group: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        group.append(row)
        held += sum(bytes_in(row[name]) for name in files)
        if held >= ROW_GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def bytes_in(cell: Any) -> int:
    """Of the files of a cell."""
    if cell is None:
        return 0
    return len(cell["bytes"]) if isinstance(cell, dict) else sum(map(bytes_in, cell))


def to_rejected(records: Sequence[RejectedRecord]) -> pa.Buffer:
    out = pa.BufferOutputStream()
    rows = [record.model_dump() for record in records]
    pq.write_table(pa.Table.from_pylist(rows, rejected_schema()), out, compression="zstd")
    return out.getvalue()


def write_tar(file: BinaryIO, records: Iterable[tuple[ImageRecord, Carried]], kind: str) -> int:
    """Image records as a WebDataset tar, `<key>.png` and `<key>.json`, times and owners fixed; how
    many there were."""
    count = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for record, carried in records:
            name = file_name(record, kind)
            told = record.model_dump(exclude={"image"}) | carried
            text = json.dumps(told, sort_keys=True, default=plain, ensure_ascii=False)
            for member, data in (
                (name, record.image),
                (f"{name.rpartition('.')[0]}.json", text.encode()),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            count += 1
    return count
