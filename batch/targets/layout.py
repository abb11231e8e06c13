"""The columns of a target file, records into rows, and rows into files with the same bytes each
time."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import fields_of, leaves
from schemas.lora import LoraRecord
from schemas.records import TARGET_COLUMNS, TargetRecord
from schemas.targets import METADATA

ROW_GROUP_BYTES = 16 * 2**20  # of tensors; a reader fetches a row group at a time
ID = pa.binary(16)
HASH = pa.binary(8)
INTEGERS, FLOATS = pa.int64(), pa.float32()
HEX = ("sample_id", "caption_id", "negative_id", "noise_hash", "digest")  # hex here, bytes there
COLUMNS: Mapping[str, pa.DataType] = {
    "sample_id": ID,
    "key": pa.string(),
    "sample": pa.int32(),
    "source_file": pa.string(),
    "source_row": INTEGERS,
    "caption": pa.string(),
    "caption_id": ID,
    "negative_caption": pa.string(),
    "negative_id": ID,
    "height": pa.int32(),
    "width": pa.int32(),
    "seed": INTEGERS,
    "noise_algo": pa.string(),
    "noise_hash": HASH,
    "sigmas": pa.list_(FLOATS),
    "solver": pa.string(),
    "num_inference_steps": pa.int32(),
    "schedule": pa.string(),
    "sigma_shift": pa.float64(),
    "embedded_guidance": pa.float64(),
    "cfg_scale": pa.float64(),
    "t5_sequence_length": pa.int32(),
    "t": pa.list_(FLOATS),
    "t_noise_seed": pa.list_(INTEGERS),
    "t_noise_hash": pa.list_(HASH),
    "guidances": pa.list_(pa.float64()),
    "micro_batch": pa.int32(),
    "halved": pa.string(),
    "loras": pa.list_(pa.struct(fields_of(LoraRecord))),
    "input_image_path": pa.string(),
    "input_image_sha256": pa.string(),
    "image_width": pa.int32(),
    "image_height": pa.int32(),
    "crop_box": pa.list_(pa.int32()),
    "check_rel": FLOATS,
    "digest": ID,
}
TENSORS: Mapping[str, tuple[str, ...]] = {  # of each kind, beside what depends on its settings
    "cache": ("latent",),
    "pair": ("latent",),
    "path": ("u",),
    "velocity": ("latent", "v_cond", "v_uncond"),
    "feature": ("latent",),
}
assert tuple(COLUMNS) == TARGET_COLUMNS


def triple(name: str) -> tuple[str, str, str]:
    """The columns of a tensor."""
    return f"{name}_bytes", f"{name}_shape", f"{name}_dtype"


def tensor_names(target: Mapping[str, Any]) -> tuple[str, ...]:
    """The tensors of a kind of target, from its settings."""
    names = TENSORS[target["kind"]]
    if target["kind"] == "cache":
        mask = ("mask",) if target.get("mask") else ()
        return ("moments" if target.get("moments") else "latent", *mask)
    if target["kind"] == "velocity" and not target.get("unconditional"):
        return names[:-1]
    if target["kind"] == "feature":
        return (*names, *(tap_column(name) for name in target["taps"]))
    return names


def tap_column(tap: str) -> str:
    return f"tap_{tap.replace('.', '_')}"


def schema_of(identity: Mapping[str, Any], passthrough: list[pa.Field]) -> pa.Schema:
    """Columns, in order, and the identity in the metadata."""
    fields = [pa.field(name, kind) for name, kind in COLUMNS.items()]
    for name in tensor_names(identity["target"]):
        data, shape, dtype = triple(name)
        fields += [
            pa.field(data, pa.large_binary()),
            pa.field(shape, pa.list_(pa.int32())),
            pa.field(dtype, pa.string()),
        ]
    words = {METADATA: json.dumps(identity, sort_keys=True)}
    return pa.schema([*fields, *passthrough], metadata=words)


def digest_of(record: Mapping[str, Any], tensors: Mapping[str, bytes]) -> str:
    """Hex that depends on every value of a row and every byte of its tensors, in any order."""
    told = {k: v for k, v in record.items() if k not in ("tensors", "digest", "check_rel")}
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"\n{name} {len(tensors[name])}\n".encode())
        digest.update(tensors[name])
    return digest.hexdigest()


def to_row(record: TargetRecord) -> dict[str, Any]:
    """A record as its columns have it."""
    row = record.model_dump(exclude={"tensors"})
    for name in HEX:
        row[name] = None if row[name] is None else bytes.fromhex(row[name])
    row["t_noise_hash"] = [bytes.fromhex(one) for one in row["t_noise_hash"]]
    for name, tensor in record.tensors.items():
        row |= dict(zip(triple(name), (tensor.bytes, tensor.shape, tensor.dtype), strict=True))
    return row


def from_row(row: Mapping[str, Any], names: Iterable[str]) -> TargetRecord:
    """The record of a row; `names` are its tensors."""
    told = {name: row[name] for name in COLUMNS}
    for name in HEX:
        told[name] = None if told[name] is None else told[name].hex()
    told["t_noise_hash"] = [one.hex() for one in told["t_noise_hash"]]
    tensors = {
        name: dict(zip(("bytes", "shape", "dtype"), (row[c] for c in triple(name)), strict=True))
        for name in names
    }
    return TargetRecord.model_validate(told | {"tensors": tensors})


def write_targets(
    file: BinaryIO,
    records: Iterable[tuple[TargetRecord, dict[str, Any]]],
    passthrough: list[pa.Field],
    identity: Mapping[str, Any],
) -> int:
    """Records as one Parquet file, in the order given; how many there were."""
    schema = schema_of(identity, passthrough)
    data = [f"{name}_bytes" for name in tensor_names(identity["target"])]
    packed = {
        leaf: "none" if field.name in data else "zstd" for field in schema for leaf in leaves(field)
    }
    count = 0
    with pq.ParquetWriter(
        file,
        schema,
        compression=packed,
        use_dictionary=[leaf for leaf, how in packed.items() if how == "zstd"],
        write_statistics=[leaf for leaf, how in packed.items() if how == "zstd"],
    ) as writer:
        for group in groups(records):
            writer.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
    return count


def groups(
    records: Iterable[tuple[TargetRecord, dict[str, Any]]],
) -> Iterator[list[dict[str, Any]]]:
    """Rows cut where their tensors reach the size of a row group."""
    group: list[dict[str, Any]] = []
    held = 0
    for record, carried in records:
        size = sum(len(tensor.bytes) for tensor in record.tensors.values())
        if group and held + size > ROW_GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(to_row(record) | carried)
        held += size
    if group:
        yield group
