import json

import pyarrow as pa

from schemas.arrow import files_in, image_schema, rejected_schema, training_schema


def test_the_image_column_is_what_datasets_calls_an_image() -> None:
    schema = image_schema([pa.field("licence", pa.string())])
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    told = json.loads(schema.metadata[b"huggingface"])
    assert told["info"]["features"]["image"] == {"_type": "Image"}
    assert schema.names[-1] == "licence"


def test_a_rejected_row_says_which_and_why() -> None:
    assert {"key", "manifest_file", "row", "error", "reason"} <= set(rejected_schema().names)


def test_a_training_shard_says_which_columns_hold_files() -> None:
    schema = training_schema({"mask": False, "more": True}, [pa.field("n", pa.int64())])
    assert files_in(schema) == ("image", "mask", "more")
    told = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert (told["mask"], told["more"]) == ({"_type": "Image"}, [{"_type": "Image"}])
    assert schema.names[:3] == ["image", "key", "prompt"]
    assert schema.names[-3:] == ["mask", "more", "n"]
    assert files_in(pa.schema([])) == ()
