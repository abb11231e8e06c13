"""The dataset card: what is in the folder, and how it was made."""

import json

from batch.report import RunReport
from batch.storage import name_of
from schemas.ingest import IngestJob
from schemas.jobs import GenerateJob

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*{suffix}
tags:
- synthetic
- text-to-image
---
# {title}

{done} pictures made from prompts with `{model}`{rejected}.

```python
from datasets import load_dataset

dataset = load_dataset("path/of/this/folder", split="train")
```

Each row says which values made it (`seed`, `num_inference_steps`, …). Rows that got no picture are
in `rejected/`, each with its reason; `_run/` holds the job, the plan, the fingerprint of the
weights and a report of each run. `index.html` shows a part of the pictures.

## Recipe

```json
{recipe}
```
"""

TRAINING = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- text-to-image
---
# {title}

{done} captioned pictures to train on{rejected}.

```python
from datasets import load_dataset

dataset = load_dataset("path/of/this/folder", split="train")
```

Files are as they were found: `image` and further columns of files hold their bytes and their paths
in the source. `prompt` is the caption; `image_width` and `image_height` are the picture's as it is
shown. Rows that could not be used are in `rejected/`, each with its reason. `index.html` shows a
part of the pictures.

## Recipe

```json
{recipe}
```
"""


def training_card(job: IngestJob, report: RunReport) -> str:
    """The card of training shards."""
    return TRAINING.format(
        title=name_of(job.output) or "training shards",
        done=report.done,
        rejected=f"; {report.rejected} rows were rejected" if report.rejected else "",
        recipe=json.dumps(job.recipe(), indent=2, sort_keys=True),
    )


def card(job: GenerateJob, report: RunReport) -> str:
    """Markdown with the metadata that `datasets` and the Hugging Face hub read."""
    parquet = job.format == "parquet"
    suffix = ".parquet" if parquet else ".tar"
    model = job.engine.model
    return CARD.format(
        suffix=suffix,
        title=name_of(job.output) or "dataset",
        done=report.done,
        model=model
        if isinstance(model, str)
        else ", ".join(str(e.path or e.model_id) for e in model),
        rejected=f"; {report.rejected} rows were rejected" if report.rejected else "",
        recipe=json.dumps(job.recipe(), indent=2, sort_keys=True),
    )
