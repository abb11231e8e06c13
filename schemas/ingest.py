"""Training material: where it lies, and the job that brings it into training shards."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.address import below, check_address
from schemas.base import Schema
from schemas.manifest import KeyedRow
from schemas.mapped import MappedJob
from schemas.records import TRAINING_COLUMNS

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LISTS = "_run/manifest"
HIDDEN = (".*",)  # names of files that a tree may have and that are no material


class Place(Schema):
    """A source that is read where it lies."""

    @field_validator("path", "dataset_base_path", "dataset_metadata_path", check_fields=False)
    @classmethod
    def _no_secrets(cls, address: str) -> str:
        check_address(address)
        return address

    @field_validator("data_file_keys", mode="before", check_fields=False)
    @classmethod
    def _with_commas(cls, keys: Any) -> Any:
        return tuple(filter(None, keys.split(","))) if isinstance(keys, str) else keys


class FolderSource(Place):
    """Pictures in a folder and those below it, each with its caption in a .txt of its name beside
    it. `ignore`: patterns of names or paths of other files that lie there; any else is an error."""

    kind: Literal["folder"]
    path: str
    ignore: tuple[str, ...] = HIDDEN


class TableSource(Place):
    """A table (.json: a list of rows; .jsonl: one a line; else CSV) that names files below a
    folder. Columns in `data_file_keys` hold a path, or, in JSON, a list of them."""

    kind: Literal["table"]
    dataset_base_path: str
    dataset_metadata_path: str
    data_file_keys: tuple[str, ...] = ("image",)
    leave_out: tuple[str, ...] = ()


class WebDatasetSource(Place):
    """Tars (one, a folder of them, a glob) with a sample's files side by side: `x.jpg`, `x.txt`,
    `x.json`. The caption is the text's, else that of `caption` in the JSON, which is carried along
    whole. Other members (`x.mask.png`) are named in `data_file_keys` by what stands between the
    dots, or in `ignore` as what follows the first one."""

    kind: Literal["webdataset"]
    path: str
    caption: str = "prompt"
    data_file_keys: tuple[str, ...] = ("image",)
    ignore: tuple[str, ...] = ()


class ParquetSource(Place):
    """Parquet as Hugging Face has it: a picture is struct<bytes, path>, bytes, or a path."""

    kind: Literal["parquet"]
    path: str
    image: str = "image"
    caption: str = "text"
    data_file_keys: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()


Layout = Annotated[
    FolderSource | TableSource | WebDatasetSource | ParquetSource, Field(discriminator="kind")
]


class HubSource(Schema):
    """A data set of a hub: files that match a pattern, brought here once a node, then read as one
    of the others, whose paths start in the repository."""

    kind: Literal["hub"]
    dataset_id: str
    origin_file_pattern: str = "**"
    download_source: Literal["modelscope", "huggingface"] = "modelscope"
    read_as: Layout

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if not REPOSITORY.fullmatch(self.dataset_id):
            raise ValueError(f"dataset_id is {self.dataset_id!r}: it has the form owner/name")
        if ".." in self.origin_file_pattern.split("/"):
            raise ValueError(f"origin_file_pattern {self.origin_file_pattern!r} leads out of it")
        for name in ("path", "dataset_base_path", "dataset_metadata_path"):
            path = getattr(self.read_as, name, "")
            if "://" in path or path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"read_as.{name} {path!r}: is to be a path in the repository")
        return self


Source = Annotated[
    FolderSource | TableSource | WebDatasetSource | ParquetSource | HubSource,
    Field(discriminator="kind"),
]


class Found(Schema):
    """What a source turned out to have: columns to carry along, and columns whose rows have
    several files."""

    carried: tuple[str, ...] = ()
    several: tuple[str, ...] = ()


class SourceLine(KeyedRow):
    """A row of a listed source; what else it has is read by whoever knows the source."""


class IngestJob(MappedJob):
    """Training material into training shards. `found` is filled in when the source is listed."""

    source: Source
    rows_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 256
    allow_empty_captions: bool = False
    found: Found | None = None

    @model_validator(mode="after")
    def _free_names(self) -> Self:
        keys = self.file_keys
        if taken := sorted({*keys[1:]} & {*TRAINING_COLUMNS}):
            raise ValueError(f"source.data_file_keys: {', '.join(taken)} are columns of our own")
        if len(set(keys)) != len(keys):
            raise ValueError("source.data_file_keys: a column is named twice")
        return self

    @property
    def layout(self) -> FolderSource | TableSource | WebDatasetSource | ParquetSource:
        """How the source is read, wherever it comes from."""
        return self.source.read_as if isinstance(self.source, HubSource) else self.source

    @property
    def file_keys(self) -> tuple[str, ...]:
        """Columns of the output that hold files, `image` first."""
        keys = getattr(self.layout, "data_file_keys", ())
        return ("image", *(key for key in keys if key != "image"))

    @property
    def manifest(self) -> str:
        """The rows: Parquet as it lies there, else the lists that are made of the source."""
        if isinstance(self.layout, ParquetSource):
            return self.layout.path
        return below(self.output, LISTS)

    @property
    def passthrough(self) -> tuple[str, ...]:
        return self.found.carried if self.found else ()

    @property
    def samples_per_row(self) -> int:
        return 1

    @property
    def format(self) -> Literal["parquet"]:
        return "parquet"

    @property
    def device(self) -> str:
        return "cpu"
