"""What an exporter reads: rows proved by their digests, by size, in the dataset's order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batch.errors import ExportError
from batch.targets.dataset import Part, TargetDataset, TargetRow
from batch.targets.files import Bucket
from batch.targets.text import Told

CACHE_BYTES = 64 * 2**20  # rows come in their order: one row group at a time


@dataclass(frozen=True)
class Source:
    """A dataset that a format can carry."""

    address: str
    dataset: TargetDataset

    @property
    def kind(self) -> str:
        return self.dataset.kind

    def buckets(self) -> Iterator[tuple[Bucket, Sequence[int]]]:
        for bucket, numbers in self.dataset.buckets().items():
            yield bucket, numbers.tolist()

    def rows(self, numbers: Sequence[int]) -> Iterator[TargetRow]:
        for number in numbers:
            yield self.dataset[number]


def source(
    address: str, form: str, carried: Mapping[str, tuple[Part, ...]], copies: Path | None = None
) -> Source:
    """The dataset with what each kind needs; ExportError for a kind that is not carried, or a
    dataset that has not what is needed."""
    probe = TargetDataset(address, parts=(), copies=copies)
    if probe.kind not in carried:
        raise ExportError(
            f"{address}: holds {probe.kind} targets, which {form} cannot carry; it takes "
            f"{' and '.join(carried)}"
        )
    parts = carried[probe.kind]
    if "text" in parts and not probe.has_text:
        raise ExportError(
            f"{address}: has no texts, which {form} needs: distil it with store_text: true"
        )
    dataset = TargetDataset(
        address, parts=parts, verify=True, cache_bytes=CACHE_BYTES, copies=copies
    )
    return Source(address, dataset)


def folder_of(bucket: Bucket) -> str:
    return f"{bucket[0]}x{bucket[1]}"


def name_of(row: TargetRow) -> str:
    return f"row {row.number} ({row.record.key})"


def text_of(row: TargetRow) -> Told:
    assert row.text is not None
    return row.text


def end_of(row: TargetRow) -> Tensor:
    """Where the teacher arrived."""
    if row.states is not None:
        return row.states[-1]
    return row.tensors["latent"]


class OneSchedule:
    """Noise levels that all rows of a folder have to share."""

    def __init__(self) -> None:
        self.sigmas: tuple[float, ...] | None = None
        self._first = ""

    def add(self, row: TargetRow) -> None:
        """ExportError for a row that has others."""
        if self.sigmas is None:
            self.sigmas, self._first = row.record.sigmas, name_of(row)
        elif row.record.sigmas != self.sigmas:
            raise ExportError(
                f"{name_of(row)} has the noise levels {list(row.record.sigmas)}, and "
                f"{self._first} {list(self.sigmas)}: this format has one schedule for all rows"
            )


def as_type(tensor: Tensor, dtype: torch.dtype, what: str, row: TargetRow) -> Tensor:
    """The tensor in the type that a reader takes; ExportError for values that it has not."""
    cast = tensor.to(dtype).contiguous()
    if not torch.isfinite(cast).all():
        most = float(tensor.float().abs().max())
        raise ExportError(f"{name_of(row)}: {what} has values up to {most:g}, too many for {dtype}")
    return cast


def told_of(row: TargetRow) -> dict[str, Any]:
    """Every value of a row, for a file beside its tensors."""
    values = row.record.model_dump(mode="json", exclude={"tensors", "digest", "check_rel"})
    return values | {"carried": {k: plain(v) for k, v in row.carried.items()}}


def plain(value: Any) -> Any:
    """What JSON has words for; else how it is written."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)
