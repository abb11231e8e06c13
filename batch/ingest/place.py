"""The place of a source on this machine: a hub's data set is brought here first, once a node."""

from pathlib import PurePosixPath

from batch.manifest import GLOB
from flux_engine.weights.source import fetch_dataset
from schemas.ingest import FolderSource as Folder
from schemas.ingest import (
    HubSource,
    IngestJob,
    ParquetSource,
    TableSource,
    WebDatasetSource,
)

Layout = Folder | TableSource | WebDatasetSource | ParquetSource
PATHS = ("path", "dataset_base_path", "dataset_metadata_path")


def here(job: IngestJob) -> Layout:
    """How the source is read, with addresses that hold on this machine; SourceError if a hub does
    not deliver."""
    source = job.source
    if not isinstance(source, HubSource):
        return source
    folder, _ = fetch_dataset(source.dataset_id, source.origin_file_pattern, source.download_source)
    told = {
        name: str(folder / path)
        for name in PATHS
        if (path := getattr(source.read_as, name, None)) is not None
    }
    return source.read_as.model_copy(update=told)


def root_of(layout: Layout) -> str:
    """The folder in which the source's relative paths start."""
    if isinstance(layout, TableSource):
        return layout.dataset_base_path
    if isinstance(layout, Folder):
        return layout.path
    place, mark, options = (
        layout.path.partition("?") if layout.path.startswith("s3://") else (layout.path, "", "")
    )
    scheme, has_one, path = place.rpartition("://")
    parts = PurePosixPath(path).parts
    deep = next((i for i, part in enumerate(parts) if any(m in part for m in GLOB)), len(parts))
    if deep == len(parts) and PurePosixPath(path).suffix in (".tar", ".parquet"):
        deep -= 1
    folder = str(PurePosixPath(*parts[:deep]))
    return f"{scheme}{has_one}{folder}{mark}{options}"
