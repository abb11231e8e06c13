"""A target dataset looked at again: every row by itself, and a sample by its teacher.

Rows: noise is drawn again and its hash compared, digests and caption ids are made again, texts are
in the table. The teacher: a sample is asked about again, then the same with another caption,
another guidance and a bent schedule, which have to come out far worse; a few ways are walked whole;
a few texts are encoded again.
"""

import heapq
import io
import json
import math
import shutil
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from batch.errors import OutputError
from batch.output import DATA, RUN
from batch.storage import Storage
from batch.targets.checks import AS_IS, CONTROLS, FAR_OFF, KINDS, Checks, Row, levels_of
from batch.targets.copy import copy_texts
from batch.targets.identity import IdentityError, refuse_other
from batch.targets.layout import digest_of, from_row, tensor_names
from batch.targets.noise import derived, hash_of, noise_of
from batch.targets.teacher import READERS
from batch.targets.text import TEXT, TextError, TextTable, caption_id
from batch.targets.verdict import Finding, Verdict, judged, spread
from batch.targets.worn import Wardrobe
from flux_engine.engine import FluxEngine
from flux_engine.sampling.trace import bounds, states
from flux_engine.teacher import Taps, Teacher
from schemas.jobs import DistillJob
from schemas.records import TargetRecord
from schemas.targets import METADATA, VERSION, FeatureTarget

FAR = 5.0  # times the right rows' median that a control's has to be
MOST = 5.0  # times the bound of their median that a right row may be off
ENOUGH = 32  # rows that a median is worth something of
ROUNDING = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-3}  # that storing a row may cost
COARSE = 3e-2  # that computing in bfloat16 may cost
SHEET = 32  # pictures on the contact sheet
TEXTS = 8  # that are encoded again
SIGMA = 1e-6  # that machines may differ in a noise level


@dataclass
class Sample:
    """The rows whose names fall lowest, so that a second look takes the same."""

    count: int
    _heap: list[tuple[int, str]] = field(default_factory=list)
    _kept: dict[str, TargetRecord] = field(default_factory=dict)

    def offer(self, record: TargetRecord) -> None:
        """A row that stands in two places is in it once."""
        name = record.sample_id
        entry = (-derived(name, -4), name)
        if name in self._kept:
            return
        if len(self._heap) < self.count:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            del self._kept[heapq.heapreplace(self._heap, entry)[1]]
        else:
            return
        self._kept[name] = record

    def rows(self) -> list[TargetRecord]:
        return [self._kept[name] for _, name in sorted(self._heap, reverse=True)]


class Dataset:
    """The files of a target dataset, and who made them."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.identity: dict[str, Any] = json.loads(storage.read(f"{RUN}/identity.json"))
        if (version := self.identity.get("version")) != VERSION:
            raise OutputError(
                f"{storage.uri}: has version {version} of the layout; {VERSION} is read"
            )
        self.job = DistillJob.model_validate_json(storage.read(f"{RUN}/job.json"))
        self.names = tensor_names(self.identity["target"])

    @cached_property
    def texts(self) -> TextTable | None:
        """None where none are stored; those of an object store are copied for as long as this is
        used."""
        if not self.job.store_text:
            return None
        if self.storage.local:
            return TextTable(Path(self.storage.path(TEXT)))
        folder = Path(mkdtemp(prefix="texts-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return TextTable(copy_texts(self.storage, folder))

    def rows(self) -> Iterator[tuple[str, TargetRecord | str]]:
        """Each row with where it stands, or what is wrong with its file or itself."""
        for name in self.storage.names(DATA):
            with self.storage.open(f"{DATA}/{name}") as file:
                parquet = pq.ParquetFile(io.BufferedReader(file))
                words = parquet.schema_arrow.metadata or {}
                told = json.loads(words.get(METADATA.encode(), b"{}"))
                try:
                    refuse_other(told, self.identity, f"{DATA}/{name}")
                except IdentityError as error:
                    yield name, str(error)
                number = 0
                for group in range(parquet.num_row_groups):
                    for row in parquet.read_row_group(group).to_pylist():
                        yield f"{DATA}/{name}:{number}", from_row(row, self.names)
                        number += 1


def is_targets(storage: Storage) -> bool:
    return storage.exists(f"{RUN}/identity.json")


def check_rows(dataset: Dataset, sample: Sample) -> tuple[int, list[Finding]]:
    """Every row by itself, and what its maker found when it asked again; how many there are."""
    faults: list[str] = []
    asked: dict[str, float] = {}
    names = bytearray()
    count, noises = 0, 0
    for where, row in dataset.rows():
        if isinstance(row, str):
            faults.append(row)
            continue
        count += 1
        noises += len(row.t_noise_seed) + (row.noise_hash is not None)
        if row.check_rel is not None:
            asked[f"{where} ({row.key})"] = row.check_rel
        wrong = [*faults_of(row, dataset)]
        names += bytes.fromhex(row.sample_id)
        faults += [f"{where} ({row.key}): {fault}" for fault in wrong]
        if not wrong:
            sample.offer(row)
    faults += [f"sample {name}: stands in the dataset twice" for name in repeated(names)]
    facts = {"rows": count, "noises drawn": noises, "faults": len(faults)}
    found = [Finding("rows by themselves", not faults, facts, tuple(faults))]
    if asked:
        bound = bound_of(dataset)
        found.append(judged("asked again as they were made", asked, bound, ceiling_of(bound)))
    return count, found


def repeated(names: bytes | bytearray) -> list[str]:
    """Which of these sample ids, 16 bytes each, come more than once."""
    ids = np.sort(np.frombuffer(names, np.dtype([("high", ">u8"), ("low", ">u8")])))
    return [name.tobytes().hex() for name in np.unique(ids[1:][ids[1:] == ids[:-1]])]


def faults_of(record: TargetRecord, dataset: Dataset) -> Iterator[str]:
    texts = dataset.texts
    data = {name: tensor.bytes for name, tensor in record.tensors.items()}
    if digest_of(record.model_dump(), data) != record.digest:
        yield "a value or a byte is not what it was"
    yield from noise_faults(record)
    if record.sigmas and wide_of(record.sigmas, sigmas_of(record)) > SIGMA:
        yield "its sigmas are not those of its schedule"
    said = [(record.caption, record.caption_id), (record.negative_caption, record.negative_id)]
    for caption, name in said:
        if caption is None or name is None:
            continue
        encoders = dataset.identity["text"]
        plain = caption_id(caption, record.t5_sequence_length, encoders)
        if not record.loras and plain != name:
            yield f"the caption {caption[:60]!r} is not the one of its id"
        if texts is not None and name not in texts:
            yield f"the caption {caption[:60]!r} has no text"


def sigmas_of(record: TargetRecord) -> list[float]:
    """The noise levels that a row's schedule, steps and shift lead to, where its tensors meet."""
    levels = levels_of(record, AS_IS)
    if "u" not in record.tensors:
        return levels
    ends = bounds(len(levels) - 1, record.tensors["u"].shape[0])
    return [levels[end] for end in ends]


def wide_of(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest difference; infinite between lists of two lengths."""
    if len(found) != len(wanted):
        return math.inf
    return max(abs(one - other) for one, other in zip(found, wanted, strict=True))


def noise_faults(record: TargetRecord) -> Iterator[str]:
    keys = list(zip(record.t_noise_seed, record.t_noise_hash, strict=True))
    if record.seed is not None and record.noise_hash is not None:
        keys.append((record.seed, record.noise_hash))
    if not keys:
        return
    shape = next(iter(record.tensors.values())).shape[-3:]
    for seed, wanted in keys:
        if hash_of(noise_of(seed, shape)) != wanted:
            yield f"the noise of seed {seed} comes out otherwise"


def check_identity(dataset: Dataset, engine: FluxEngine) -> Finding:
    """Whether the teacher at hand is the one that made the dataset."""
    mine = {
        "teacher": {"weights": engine.fingerprints.get("dit", {})},
        "vae": {"weights": engine.fingerprints.get("vae", {})},
        "text": {name: engine.fingerprints.get(name, {}) for name in READERS},
    }
    theirs = {
        part: {name: dataset.identity[part][name] for name in fields}
        for part, fields in mine.items()
    }
    try:
        refuse_other(mine, theirs, "the teacher at hand is another one")
    except IdentityError as error:
        return Finding("teacher's identity", False, {}, (str(error),))
    return Finding("teacher's identity", True, {"device": engine.device.type})


def check_teacher(
    dataset: Dataset, engine: FluxEngine, rows: Sequence[Row], replays: int, verdict: Verdict
) -> None:
    """A sample asked about again, and the controls."""
    target = dataset.job.target
    if target.kind not in KINDS:
        verdict.skipped.append(f"teacher: {target.kind} rows hold none of its answers")
        return
    taps = None
    if isinstance(target, FeatureTarget):
        taps = Taps(names=target.taps, width=target.width, seed=target.seed)
    checks = Checks(Teacher(engine, taps), target.kind)
    keys = {row.record.sample_id: called(row.record) for row in rows}
    bound, errors = bound_of(dataset), checks.errors(rows, AS_IS)
    told = {keys[name]: error for name, error in errors.items()}
    verdict.findings.append(judged("asked again", told, bound, ceiling_of(bound)))
    right = [*errors.values()]
    if len(rows) < ENOUGH:
        verdict.skipped.append(f"controls: {len(rows)} rows; {ENOUGH} make a median")
    for name, change in CONTROLS.items():
        if name.startswith("guidance") and not engine.dit.spec.guidance:
            verdict.skipped.append(f"{name}: the teacher takes none")
            continue
        try:
            wrong = list(checks.errors(rows, change(rows)).values())
        except ValueError as error:
            verdict.skipped.append(f"{name}: {error}")
            continue
        ratio = median(wrong) / max(median(right), 1e-30)
        facts = {**spread(wrong), "times the right ones": ratio}
        verdict.findings.append(Finding(f"must fail: {name}", ratio >= FAR, facts))
    if target.kind == "path" and replays:
        walked = checks.errors(rows[:replays], whole=True)
        told = {keys[name]: error for name, error in walked.items()}
        verdict.findings.append(judged("walked whole", told, 10 * bound, 10 * ceiling_of(bound)))


def bound_of(dataset: Dataset) -> float:
    """What the median of right rows may be: storing rounds, and so does computing."""
    rounding = ROUNDING[dataset.identity["stored"]]
    return max(rounding, COARSE if dataset.identity["teacher"]["dtype"] == "bfloat16" else 0.0)


def called(record: TargetRecord) -> str:
    """A row for people: its key, and which of its samples."""
    return f"{record.key} ({record.sample})" if record.sample else record.key


def ceiling_of(bound: float) -> float:
    """What any right row may be, where their median may be so much."""
    return min(MOST * bound, FAR_OFF)


def check_texts(dataset: Dataset, engine: FluxEngine, rows: Sequence[Row]) -> Finding | None:
    """Some texts encoded again."""
    texts = dataset.texts
    plain = [row.record for row in rows if not row.record.loras]
    if texts is None or not plain:
        return None
    errors, faults = [], []
    for record in plain[:TEXTS]:
        try:
            told = texts[record.caption_id]
        except TextError as error:
            faults.append(str(error))
            continue
        key = (record.caption, record.t5_sequence_length)
        with engine.residency.phase(engine.planning.text(record.t5_sequence_length)):
            text = engine.text([key])[key]
        for stored, made in ((told.t5, text.states_TW), (told.clip, text.pooled_P)):
            lost = (stored.float() - made.float()).norm() / made.float().norm()
            errors.append(float(lost))
    bound = bound_of(dataset)
    passed = not faults and max(errors, default=0.0) <= bound
    return Finding("texts encoded again", passed, {**spread(errors or [0.0])}, tuple(faults))


def latents_of(row: Row) -> Tensor:
    """The latents of a row that a picture can be made of."""
    record = row.record
    if "moments" in record.tensors:
        return row.tensor("moments").chunk(2)[0]
    if "u" not in record.tensors:
        return row.tensor("latent")
    velocities = row.tensor("u")
    assert record.seed is not None
    noise = noise_of(record.seed, velocities.shape[1:])
    return states(noise, velocities, record.sigmas)[-1]


def decoded(engine: FluxEngine, rows: Sequence[Row]) -> list[Tensor]:
    """Pictures of some rows, for people."""
    out = []
    for row in rows[:SHEET]:
        latent = latents_of(row)
        height, width = (side * engine.vae.spec.factor for side in latent.shape[-2:])
        with engine.residency.phase(engine.planning.decode(height, width, None)):
            batch = engine.planning.decode_batch(height, width, None)
            out += engine.pictures.decode([latent], batch, None)
    return out


def verify_rows(dataset: Dataset, verdict: Verdict, count: int) -> Sample:
    """The first part: needs no engine."""
    if dataset.texts is not None:
        for path, identity in dataset.texts.identities:
            try:
                refuse_other(identity, dataset.identity, f"{TEXT}/{path.name}")
            except IdentityError as error:
                verdict.findings.append(Finding("texts' identity", False, {}, (str(error),)))
    sample = Sample(count)
    verdict.rows, findings = check_rows(dataset, sample)
    verdict.findings += findings
    return sample


def verify_teacher(
    dataset: Dataset,
    engine: FluxEngine,
    sample: Sample,
    verdict: Verdict,
    *,
    folder: str,
    replays: int,
) -> tuple[list[Tensor], list[str]]:
    """The second part; pictures of the sample and their captions."""
    verdict.findings.append(check_identity(dataset, engine))
    wardrobe = Wardrobe(dataset.job, folder, engine.loras.shelf)
    worn = wardrobe.dress(sample.rows())
    rows = worn.rows
    verdict.skipped += worn.absent
    if worn.changed or any(row.loras for row in rows):
        facts = {"rows": sum(bool(row.loras) for row in rows)}
        verdict.findings.append(Finding("LoRAs", not worn.changed, facts, worn.changed))
    if not rows:
        verdict.skipped.append("teacher: no row can be asked about")
        return [], []
    check_teacher(dataset, engine, rows, replays, verdict)
    if (finding := check_texts(dataset, engine, rows)) is not None:
        verdict.findings.append(finding)
    with torch.inference_mode():
        return decoded(engine, rows), [row.record.caption for row in rows[:SHEET]]
