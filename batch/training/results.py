"""What comes of a run: weights as they go and at the end, pictures, lineage, and the page."""

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from batch.errors import OutputError
from batch.output import RUN, to_json
from batch.storage import Storage
from batch.training.curriculum import Curriculum
from batch.training.drawn import write_drawn
from batch.training.learner import Learner
from batch.training.material import TextsByKey
from batch.training.metrics import read_metrics
from batch.training.report import page
from batch.training.samples import Sampler
from batch.training.whole import write_whole
from flux_engine.encode import PictureCoder
from flux_engine.training.full import TrainedWeights
from flux_engine.weights.lora.write import write_lora
from schemas.training import TrainJob

FINAL_LORA, FINAL_MODEL = "lora.safetensors", "model"
LINEAGE, PAGE, FINISHED = "lineage.json", "training.html", f"{RUN}/finished.json"
SAMPLES = "samples"

logger = logging.getLogger(__name__)


def finished_at(storage: Storage) -> int:
    """The step that an output's last finished run ended with; 0 if none has."""
    if not storage.exists(FINISHED):
        return 0
    return int(json.loads(storage.read(FINISHED))["step"])


def settings(job: TrainJob) -> dict[str, dict[str, Any]]:
    """What of a job decides how results look: written again at will, pictures, and as it learns."""
    told = job.model_dump(mode="json")
    pictures = ("sample_prompts", "sample_seed", "sampling") if job.sample_prompts else ()
    return {
        "weights": {"lora_layout": job.layout, "save_dtype": job.save_dtype},
        "pictures": {name: told[name] for name in pictures},
        "on_the_way": {name: told[name] for name in ("save_steps", "sample_steps")},
    }


def unlike(storage: Storage, job: TrainJob) -> bool:
    """Whether a finished run's results are to be written again, for the job wants others.
    OutputError for what its last checkpoint does not have in it any more."""
    there = json.loads(storage.read(FINISHED)).get("results")
    here = settings(job)
    if there is None or there == here:
        return False
    lost = [("on_the_way", "its steps are done")]
    if there["pictures"]:
        lost.append(("pictures", "its pictures are of those"))
    for part, why in lost:
        for name in {**there[part], **here[part]}:
            was, now = there[part].get(name), here[part].get(name)
            if was != now:
                raise OutputError(
                    f"{storage.uri}: is finished: {name} was {was!r} and is {now!r}, and {why}; "
                    "give another output_path"
                )
    return True


class Results:
    """Written by one rank."""

    def __init__(
        self,
        job: TrainJob,
        storage: Storage,
        curriculum: Curriculum,
        learner: Learner,
        coder: Callable[[], PictureCoder],
        texts: TextsByKey,
    ) -> None:
        self.job, self.storage = job, storage
        self.curriculum, self.learner = curriculum, learner
        self._coder, self._texts = coder, texts
        self._sampler: Sampler | None = None
        self.lineage = lineage_of(job, curriculum)

    def after(self, step: int) -> None:
        """Weights and pictures that are due after a step, but for the last one."""
        if step >= self.curriculum.stream.steps:
            return
        if self.job.save_steps and step % self.job.save_steps == 0:
            self._weights(f"step-{step:06d}", step)
        if self.job.sample_steps and step % self.job.sample_steps == 0:
            self._pictures(step)

    def finish(self, step: int, told: Mapping[str, Any]) -> None:
        """All that an output has in the end; that it is finished comes last."""
        lines = read_metrics(self.storage)
        left_out = [line["step"] - 1 for line in lines if "broken" in line]
        self.lineage["drawn"] = write_drawn(self.storage, self.curriculum, left_out)
        self.storage.replace(LINEAGE, to_json(self.lineage))
        name = FINAL_MODEL if self.job.trainable_models else FINAL_LORA.partition(".")[0]
        self._weights(name, step)
        if self.job.sample_prompts:
            self._pictures(step)
        text = page(self.job, lines, self.lineage, told, self._shown())
        self.storage.replace(PAGE, text.encode())
        end = {"step": step, "written": time.time(), **told, "results": settings(self.job)}
        self.storage.replace(FINISHED, to_json(end))

    def _weights(self, name: str, step: int) -> None:
        if isinstance(self.learner.trained, TrainedWeights):
            parts = self.curriculum.parts
            write_whole(
                self.storage,
                name,
                parts.root,
                self.learner.trained.weights(self.learner.result()),
                self.learner.dit.spec,
                dtype=getattr(torch, self.job.save_dtype),
                words=self.words(step),
            )
            return
        lora = self.learner.trained.lora(self.learner.result())
        lora = replace(lora, metadata=self.words(step))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / FINAL_LORA
            dtype = getattr(torch, self.job.save_dtype)
            write_lora(lora, file, self.job.layout, dtype=dtype)
            self.storage.replace_file(f"{name}.safetensors", file)
        logger.info("weights written", extra={"file": f"{name}.safetensors", "step": step})

    def words(self, step: int) -> dict[str, str]:
        """What a file says of where it comes from."""
        job = self.job
        triggers = {job.trigger_of(dataset) for dataset in job.datasets} - {None}
        text = to_json(self.lineage)
        return {
            "modelspec.title": self.storage.uri.rstrip("/").rpartition("/")[2],
            "ss_steps": str(step),
            "ss_seed": str(job.seed),
            "ss_optimizer": job.optimizer.kind,
            "ss_learning_rate": str(job.learning_rate),
            "training_info": json.dumps({"step": step, "steps": self.curriculum.stream.steps}),
            "fluxmill.base": json.dumps(self.lineage["base"], sort_keys=True),
            "fluxmill.datasets": json.dumps(self.curriculum.digests, sort_keys=True),
            "fluxmill.lineage": hashlib.sha256(text).hexdigest(),
            **({"modelspec.trigger_phrase": ", ".join(sorted(filter(None, triggers)))}
               if triggers else {}),
        }  # fmt: skip

    def _pictures(self, step: int) -> None:
        if self._sampler is None:
            self._sampler = Sampler(
                self.job, self.learner.dit, self._coder(), self._texts, self.curriculum.parts
            )
        started = time.monotonic()
        with self.learner.averaged():
            for n, (_, png) in enumerate(self._sampler()):
                self.storage.replace(f"{SAMPLES}/{picture_name(step, n)}", png)
        logger.info(
            "sample pictures",
            extra={"step": step, "seconds": round(time.monotonic() - started, 3)},
        )

    def _shown(self) -> list[tuple[int, str, bytes]]:
        """All sample pictures with their steps and prompts."""
        out = []
        for name in self.storage.names(SAMPLES):
            found = re.fullmatch(r"step-(\d+)-(\d+)\.png", name)
            if found and int(found[2]) < len(self.job.sample_prompts):
                prompt = self.job.sample_prompts[int(found[2])]
                out.append((int(found[1]), prompt, self.storage.read(f"{SAMPLES}/{name}")))
        return out


def picture_name(step: int, n: int) -> str:
    return f"step-{step:06d}-{n:02d}.png"


def lineage_of(job: TrainJob, curriculum: Curriculum) -> dict[str, Any]:
    """Everything that a result was made of, by content: so that its rows are found again."""
    return {
        "base": curriculum.parts.fingerprints,
        "lora_checkpoint": job.lora_checkpoint,
        "preset_lora_path": job.preset_lora_path,
        "recipe": job.recipe(),
        "steps": curriculum.stream.steps,
        "datasets": curriculum.lineage,
    }
