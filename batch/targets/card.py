"""What stands at the root of a target dataset: `manifest.json`, which says what is in it and who
made it, and a card for people."""

import json
from typing import Any

from batch.output import RUN, Output, to_json
from batch.report import RunReport
from batch.storage import name_of
from schemas.jobs import DistillJob
from schemas.targets import VERSION

MANIFEST = "manifest.json"
CARD = """# {title}

{done} rows of `{kind}` targets{rejected}, made by `{model}` in {stored}.

`manifest.json` says who made them and names every file with its sum; each file of `data/` has the
same in its footer. Tensors are triples of columns (`x_bytes`, `x_shape`, `x_dtype`), noise is a
seed and a hash, texts are in `text/`, once for each caption. Read them with
`batch.targets.dataset.TargetDataset`; check them with `python -m jobs.verify {output}`.

## Recipe

```json
{recipe}
```
"""


def manifest_of(output: Output, report: RunReport) -> dict[str, Any]:
    """All files of a finished dataset, from their receipts."""
    storage = output.storage
    receipts = output.receipts()
    files = []
    for shard in sorted(output.finished()):
        told = output.receipt(shard, receipts.get(shard, []))
        if told is not None:
            files.append(
                {
                    "file": output.data(shard),
                    "rows": told.done,
                    "bytes": told.data_bytes,
                    "sha256": told.data_sum,
                    "beside": told.beside,
                }
            )
    identity = json.loads(storage.read(f"{RUN}/identity.json"))
    return {
        "version": VERSION,
        "identity": identity,
        "rows": report.done,
        "rejected": report.rejected,
        "files": files,
    }


def publish_targets(job: DistillJob, output: Output, report: RunReport) -> None:
    """Write both, the manifest last: that it is there means that the dataset is whole."""
    model = job.engine.model
    text = CARD.format(
        title=name_of(job.output) or "targets",
        done=report.done,
        kind=job.target.kind,
        rejected=f" ({report.rejected} were rejected)" if report.rejected else "",
        model=model
        if isinstance(model, str)
        else ", ".join(str(e.path or e.model_id) for e in model),
        stored=job.dtype,
        output=job.output,
        recipe=json.dumps(job.recipe(), indent=2, sort_keys=True),
    )
    output.storage.replace("README.md", text.encode())
    output.storage.replace(MANIFEST, to_json(manifest_of(output, report)))
