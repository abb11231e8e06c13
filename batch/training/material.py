"""Rows into what a trainer has of them: of distillation targets, or of pictures with captions."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from batch.errors import JobError, PictureDown, PictureError
from batch.manifest import Manifest
from batch.output import DATA
from batch.targets.copy import local
from batch.targets.dataset import Part, TargetDataset
from batch.targets.files import Bucket, inventory
from batch.targets.layout import tensor_names
from batch.targets.text import Told, caption_id
from batch.training.columns import Reject
from batch.training.kept import Kept
from batch.training.pictures import KEY, PictureRows
from batch.training.source import Captions, inputs, refuse_unusable
from flux_engine.encode import TextKey
from flux_engine.training.material import Material
from schemas.task import EXTRA_INPUTS

CELL = 8  # pixels to the side of a latent cell
LENGTH = "t5_sequence_length"
ROOM = 2 * 2**30  # bytes of latents that are kept in memory
TENSORS = ("latent", "moments", "u", "v_cond", "v_uncond", "mask")
RECORDED = ("seed", "num_inference_steps", "embedded_guidance", "cfg_scale")
NOISE = {"rand_device": "cpu"}  # of every target
HELD: dict[str, tuple[Part, ...]] = {  # by kind, beside tensors and text
    "pair": ("noise",),
    "path": ("noise", "states"),
    "velocity": ("noise",),
}

logger = logging.getLogger(__name__)

# a picture's pixels (3, H, W) into its latent (Z, h, w); threads may ask at once
Encode = Callable[[Tensor], Tensor]


class TextsByKey(Protocol):
    """Texts by caption and length."""

    def __getitem__(self, key: TextKey) -> Told: ...


class TargetSource:
    """Distillation targets of any kind."""

    def __init__(
        self,
        address: str,
        *,
        texts: TextsByKey,
        extra_inputs: Iterable[str] = (),
        needed: Iterable[str] = (),
        mask: bool = False,
    ) -> None:
        """`needed` are those of `extra_inputs` that no row may lack. JobError for a column or a
        mask that its rows do not have."""
        self.address, self.texts, self.mask = address, texts, mask
        told = inventory(local(address)).identity["target"]
        names = [name for name in TENSORS if name in tensor_names(told)]
        plain = TargetDataset(address, parts=("tensors",), tensors=names)
        parts: tuple[Part, ...] = ("tensors", *HELD.get(plain.kind, ()))
        if plain.has_text:
            parts = (*parts, "text")
        self.dataset = TargetDataset(address, parts=parts, tensors=names)
        self.kind = self.dataset.kind
        if mask and "mask" not in names:
            raise JobError(f"{address}: mask is asked for, and its rows have none")
        self.extra = tuple(extra_inputs)
        refuse_lost(self.extra, {*RECORDED, *NOISE, *self.dataset.told.carried}, address)
        self._rejects = self._surveyed(tuple(needed))
        self._lock = threading.Lock()

    def _surveyed(self, needed: tuple[str, ...]) -> list[Reject]:
        """Rows whose further values cannot be taken."""
        out: list[Reject] = []
        there = {*RECORDED, *self.dataset.told.carried}
        columns = ["key", *(name for name in self.extra if name in there)]
        for file in self.dataset.told.files if self.extra else ():
            lines = pq.read_table(file.path, columns=columns).to_pylist()
            for number, values in enumerate(lines, file.first):
                where = self.dataset.where(number)
                try:
                    refuse_unusable(self.extra, needed, NOISE | values, where)
                except JobError as error:
                    why = str(error).removeprefix(f"{where}: ")
                    out.append(Reject(number, where, values["key"], why))
        return out

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def has_moments(self) -> bool:
        return "moments" in self.dataset.names

    @property
    def guidances(self) -> tuple[float, ...]:
        """Values that its teacher was asked with for each row; none where rows say their own."""
        return tuple(self.dataset.identity["target"].get("guidance", ()))

    def buckets(self) -> dict[Bucket, np.ndarray]:
        lost = [reject.number for reject in self._rejects]
        kept = {b: n[~np.isin(n, lost)] for b, n in self.dataset.buckets().items()}
        return {bucket: rows for bucket, rows in kept.items() if len(rows)}

    def row_groups(self) -> np.ndarray:
        return self.dataset.row_groups()

    def wanted(self, captions: Captions) -> list[TextKey]:
        keys: dict[TextKey, None] = {}
        has = self.dataset.has_text
        for file in self.dataset.told.files:
            table = pq.read_table(file.path, columns=["caption", LENGTH])
            pairs = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
            for caption, length in dict.fromkeys(pairs):
                for dropped in {False, captions.dropout > 0}:
                    told = captions.told(caption, dropped=dropped)
                    if not has or (told != caption and self._own(told, length) is None):
                        keys[told, length] = None
        return list(keys)

    def _own(self, caption: str, length: int) -> Told | None:
        """What the dataset's table says to a caption that may be another row's."""
        if not self.dataset.has_text:
            return None
        name = caption_id(caption, length, self.dataset.identity["text"])
        table = self.dataset.texts
        return table[name] if name in table else None  # noqa: SIM401  it has no `get`

    def material(self, row: int, captions: Captions, *, dropped: bool) -> Material:
        self._open()
        found = self.dataset.row(row)
        where = f"{self.dataset.where(row)} (key {found.record.key})"
        record, told = found.record, captions.told(found.record.caption, dropped=dropped)
        length = record.t5_sequence_length
        text = found.text if told == record.caption else self._own(told, length)
        text = text or self.texts[told, length]
        tensors = {name: tensor.float() for name, tensor in found.tensors.items()}
        recorded = {name: getattr(record, name) for name in RECORDED}
        values: dict[str, Any] = {
            name: recorded[name] for name in ("seed", "num_inference_steps", "embedded_guidance")
        }
        return Material(
            name=where,
            caption=told,
            t5_TW=text.t5.float(),
            pooled_P=text.clip.float(),
            negative_t5_TW=found.negative.t5.float() if found.negative else None,
            negative_pooled_P=found.negative.clip.float() if found.negative else None,
            latent_ZHW=tensors.get("latent"),
            moments=tensors.get("moments"),
            noise=found.noise,
            states=found.states,
            sigmas=record.sigmas,
            v_cond=tensors.get("v_cond"),
            v_uncond=tensors.get("v_uncond"),
            t=record.t,
            guidances=record.guidances,
            mask_1HW=tensors.get("mask") if self.mask else None,
            **(values | inputs(self.extra, {**recorded, **NOISE, **found.carried}, where)),
        )

    def longest(self) -> int:
        files = [file.path for file in self.dataset.told.files]
        lengths = (pq.read_table(path, columns=[LENGTH]).column(0) for path in files)
        return max(int(pc.max(told).as_py()) for told in lengths if len(told))

    def _open(self) -> None:
        """Have the table of texts opened by one thread; rows are read and drawn by several."""
        with self._lock:
            if "text" in self.dataset.parts:
                _ = self.dataset.texts

    def rejects(self) -> list[Reject]:
        return list(self._rejects)

    def passed_over(self) -> list[int]:
        return []  # a row that is not what was written ends the run

    def pass_over(self, rows: Iterable[int]) -> None:
        pass

    def stand_in(self, row: int) -> int:
        return row

    def row_keys(self) -> Iterator[tuple[str, pa.ChunkedArray]]:
        for file in self.dataset.told.files:
            yield f"{DATA}/{file.path.name}", pq.read_table(file.path, columns=["key"]).column(0)

    def lineage(self) -> dict[str, Any]:
        manifest = json.loads((local(self.address) / "manifest.json").read_text())
        identity = json.dumps(manifest["identity"], sort_keys=True).encode()
        return {
            "address": self.address,
            "kind": self.kind,
            "identity": hashlib.sha256(identity).hexdigest()[:16],
            "files": [
                {"file": one["file"], "rows": one["rows"], "digest": one["sha256"]}
                for one in manifest["files"]
            ],
            "rows": len(self.dataset),
        }

    def encoded_by(self) -> dict[str, Any]:
        """Whose latents and texts these are, in the words of its identity."""
        return {name: self.dataset.identity[name] for name in ("vae", "text", "latent")}


class PictureSource:
    """A table of pictures with captions; latents are made here, and kept while there is room."""

    kind = "pictures"

    def __init__(
        self,
        rows: PictureRows,
        *,
        address: str,
        prompt_column: str,
        texts: TextsByKey,
        length: int,
        encode: Encode,
        extra_inputs: Iterable[str] = (),
        mask: bool = False,
        room: int = ROOM,
    ) -> None:
        """`length` is that of captions in T5 tokens. JobError for a column that is not there."""
        self.rows, self.address, self.texts = rows, address, texts
        self.length, self.mask, self.prompt_column = length, mask, prompt_column
        self.extra = tuple(extra_inputs)
        self.manifest = Manifest(address)
        named = {*self.extra, *({"mask"} if mask else ())}
        for file in self.manifest.files:
            refuse_lost(sorted(named), set(file.schema.names), file.path)
        self._encode = encode
        self._kept: Kept[int, Material] = Kept(room)
        self._broken: set[int] = set()  # rows whose pictures turned out not to be decodable

    def __len__(self) -> int:
        return len(self.rows)

    def buckets(self) -> dict[Bucket, np.ndarray]:
        return self.rows.buckets()

    def row_groups(self) -> np.ndarray:
        return self.rows.row_groups()

    def wanted(self, captions: Captions) -> list[TextKey]:
        keys: dict[TextKey, None] = {}
        for file in self.manifest.files:
            with self.manifest.fs.open_input_file(file.path) as stream:
                table = pq.read_table(stream, columns=[self.prompt_column])
            for caption in dict.fromkeys(table.column(0).to_pylist()):
                for dropped in {False, captions.dropout > 0}:
                    keys[captions.told(caption or "", dropped=dropped), self.length] = None
        return list(keys)

    def material(self, row: int, captions: Captions, *, dropped: bool) -> Material:
        plain = self._readable(row)
        told = captions.told(plain.caption, dropped=dropped)
        text = self.texts[told, self.length]
        return replace(plain, caption=told, t5_TW=text.t5.float(), pooled_P=text.clip.float())

    def _readable(self, row: int) -> Material:
        """Of the row, or, where its picture cannot be decoded, of the next one of its size that
        can: whoever asks, and whenever, is given the same. JobError if there is none. PictureDown
        for one that cannot be had now, of which nobody knows whether it can be decoded."""
        for number in self._from(row):
            if number in self._broken:
                continue
            try:
                return self._kept.get(number) or self._made(number)
            except PictureDown:
                raise
            except PictureError as error:
                if number not in self._broken:
                    logger.warning("row passed over", extra={"why": str(error)})
                self._broken.add(number)
        raise JobError(f"{self.address}: no picture of the size of row {row} can be decoded")

    def passed_over(self) -> list[int]:
        return sorted(self._broken.copy())

    def pass_over(self, rows: Iterable[int]) -> None:
        self._broken.update(rows)

    def stand_in(self, row: int) -> int:
        return next(number for number in self._from(row) if number not in self._broken)

    def row_keys(self) -> Iterator[tuple[str, pa.ChunkedArray]]:
        for file in self.manifest.files:
            if KEY not in file.schema.names:
                yield file.name, pa.chunked_array([pa.nulls(file.rows, pa.string())])
                continue
            with self.manifest.fs.open_input_file(file.path) as stream:
                table = pq.read_table(stream, columns=[KEY])
            yield file.name, table.column(0).cast(pa.string())

    def _from(self, row: int) -> Iterator[int]:
        """The rows of a row's size, it first."""
        yield row
        for rows in self.rows.buckets().values():
            place = int(np.searchsorted(rows, row))
            if place < len(rows) and rows[place] == row:
                yield from (int(n) for n in (*rows[place + 1 :], *rows[:place]))

    def _made(self, row: int) -> Material:
        """What the row has whatever it is told."""
        found = self.rows.row(row)
        where = f"{found.where} (key {found.key})"
        mask = None
        if self.mask:
            if found.mask is None:
                raise JobError(f"{where}: mask is null, and the job trains with masks")
            mask = F.avg_pool2d(found.mask[None], CELL)[0]
        latent = self._encode(found.pixels)
        nothing = latent.new_zeros(0)
        made = Material(
            name=where,
            caption=found.caption,
            t5_TW=nothing,
            pooled_P=nothing,
            latent_ZHW=latent,
            mask_1HW=mask,
            **inputs(self.extra, found.carried, where),
        )
        self._kept.put(row, made, latent.nbytes + (mask.nbytes if mask is not None else 0))
        return made

    def longest(self) -> int:
        return self.length

    def rejects(self) -> list[Reject]:
        return self.rows.rejects()

    def lineage(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "kind": self.kind,
            "identity": None,
            "files": [
                {"file": one.name, "rows": one.rows, "digest": one.footer}
                for one in self.manifest.files
            ],
            "rows": len(self.rows),
        }


def refuse_lost(wanted: Iterable[str], there: set[str], where: str) -> None:
    """JobError that names the columns which are asked for and not there."""
    if lost := [name for name in wanted if name not in there]:
        known = sorted(there & {*EXTRA_INPUTS, "mask"}) or ["none of those it takes"]
        raise JobError(
            f"{where}: has no column {', '.join(lost)}, which the job asks for; there is "
            f"{', '.join(known)}"
        )
