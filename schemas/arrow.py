"""Arrow schemas of what is written, derived from the models in `records`.

The image column is what Hugging Face's `datasets` calls an Image: a struct of bytes and path,
and a `huggingface` entry in the schema's metadata that says so. One without the other is not
decoded.
"""

import json
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel

from schemas.records import TRAINING_COLUMNS, ImageRecord, RejectedRecord, TrainingRecord

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def fields_of(model: type[BaseModel]) -> list[pa.Field]:
    """One Arrow field for each field of a model; bytes are a picture, tuples lists of structs."""
    return [
        pa.field(name, type_of(info.annotation), nullable=True)
        for name, info in model.model_fields.items()
    ]


def type_of(kind: Any) -> pa.DataType:
    if get_origin(kind) is UnionType:
        kind = next(arg for arg in get_args(kind) if arg is not type(None))
    if get_origin(kind) is tuple:
        return pa.list_(pa.struct(fields_of(get_args(kind)[0])))
    return IMAGE if kind is bytes else PLAIN[kind]


def image_schema(passthrough: list[pa.Field]) -> pa.Schema:
    """Columns of `data/`: the record's own, then those carried over from the manifest."""
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
    return pa.schema([*fields_of(ImageRecord), *passthrough], metadata=metadata)


FILES = "fluxmill.files"  # the entry of a training shard's footer that names its columns of files


def training_schema(files: Mapping[str, bool], carried: list[pa.Field]) -> pa.Schema:
    """Columns of a training shard; `files` are those that hold files, and whether several."""
    kinds = {"image": IMAGE}
    plain = [name for name in TRAINING_COLUMNS if name != "image"]
    kinds |= {name: type_of(TrainingRecord.model_fields[name].annotation) for name in plain}
    kinds |= {name: pa.list_(IMAGE) if several else IMAGE for name, several in files.items()}
    features: dict[str, Any] = {
        name: [{"_type": "Image"}] if several else {"_type": "Image"}
        for name, several in ({"image": False} | dict(files)).items()
    }
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        FILES: json.dumps(["image", *files]),
    }
    return pa.schema([*(pa.field(n, k) for n, k in kinds.items()), *carried], metadata=metadata)


def files_in(schema: pa.Schema) -> tuple[str, ...]:
    """Columns that hold files, where a training shard says so."""
    told = (schema.metadata or {}).get(FILES.encode())
    return tuple(json.loads(told)) if told else ()


def rejected_schema() -> pa.Schema:
    """Columns of `rejected/`."""
    return pa.schema(fields_of(RejectedRecord))


def leaves(field: pa.Field, above: str = "") -> Iterator[str]:
    """A column's parts as Parquet names them."""
    name, kind = f"{above}{field.name}", field.type
    if pa.types.is_struct(kind):
        for inner in kind:
            yield from leaves(inner, f"{name}.")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from leaves(kind.value_field.with_name("element"), f"{name}.list.")
    elif pa.types.is_map(kind):
        yield from leaves(kind.key_field.with_name("key"), f"{name}.key_value.")
        yield from leaves(kind.item_field.with_name("value"), f"{name}.key_value.")
    else:
        yield name
