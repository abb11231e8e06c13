"""What can go wrong around the engine; the class decides what happens.

BatchError
├── JobError         this cluster cannot run the job: nothing is started
├── ManifestError    the manifest is not usable: nothing is started
├── OutputError      the output belongs to another recipe or manifest: nothing is started
├── PictureError     a row's picture cannot be had: the row is rejected
│   └── PictureDown  its place does not answer: it may be had later
├── CaptionError     a row's caption cannot be had: the row is rejected
├── LoraError        a row's LoRA cannot be had: the row is rejected
├── TargetsError     a folder is no whole dataset of targets, or a row of it is not as written
├── IdentityError    targets of another teacher, encoder or layout than is wanted (targets.identity)
├── NoiseError       noise of a target is not what it was (targets.noise)
├── TextError        a caption has no text, or another's (targets.text)
├── ExportError      targets that a format cannot carry: nothing is written
├── MachineFault     memory or the card gave out under some rows: they are tried again elsewhere
├── StorageError     the output cannot be written, whoever tries: the run stops, nothing is lost
├── StorageDown      storage does not answer: tried again, elsewhere
└── RunFailed        workers keep failing, or too many rows: the run stops, a rerun goes on
"""


class BatchError(Exception):
    """Anything that this layer refuses, with a message for whoever started the run."""


class JobError(BatchError):
    """A job that asks for workers or a device that the cluster does not have."""


class ManifestError(BatchError):
    """A manifest that is missing, empty, or has columns that nobody asked for."""


class OutputError(BatchError):
    """An output folder that was made by another recipe, or from files that changed since."""


class PictureError(BatchError):
    """One row's picture is missing, unreadable, too large, or outside the allowed folders."""


class PictureDown(PictureError):
    """A place that does not answer, or not to the end, after its tries: that says nothing of the
    row, and asking later may."""


class CaptionError(BatchError):
    """One row's caption is missing, or is no text."""


class LoraError(BatchError):
    """One row's LoRA is missing, or outside the allowed folders."""


class TargetsError(BatchError):
    """A folder that is no whole dataset of targets, or a row that is not what was written."""


class ExportError(BatchError):
    """Targets that another project's format cannot carry."""


class MachineFault(BatchError):
    """Memory or the card gave out while a worker was at some rows of a shard."""

    rows: tuple[int, ...] = ()


class StorageError(BatchError):
    """A disk that is full, a bucket that refuses us: asking again will not mend it."""


class StorageDown(BatchError):
    """Storage that does not answer, after several tries."""


class RunFailed(BatchError):
    """Something that no row is to blame for kept going wrong."""
