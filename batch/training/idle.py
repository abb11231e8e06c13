"""Settings that would have no effect on datasets of these kinds, or with this transformer."""

from batch.errors import JobError
from batch.training.curriculum import Course, Curriculum
from batch.training.material import TargetSource
from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxSpec
from schemas.learning import changed
from schemas.task import TrainDataset
from schemas.training import TrainJob

OF_PICTURES = ("height", "width", "max_pixels", "bucket_step", "picture_roots")
OF_TABLES = ("prompt_column", "leave_out")


def refuse_idle(job: TrainJob, curriculum: Curriculum, spec: FluxSpec) -> None:
    """JobError or SettingError that names what is said in vain, and who takes it."""
    said = [name for name in OF_PICTURES if name in changed(job)]
    if job.data_file_keys[0] != "image":
        said.append(f"data_file_keys {job.data_file_keys[0]}")
    if said and not curriculum.pictures:
        raise JobError(
            f"{', '.join(said)}: of no effect, for they are about pictures, and every dataset of "
            "this job holds targets, which are as they were made"
        )
    for course in curriculum.courses:
        refuse_idle_of(course)
        if not spec.guidance:
            refuse_guidance(job, course)


def refuse_idle_of(course: Course) -> None:
    dataset, source = course.dataset, course.source
    if source.kind != "pictures" and (
        said := [name for name in OF_TABLES if name in changed(dataset)]
    ):
        raise JobError(
            f"{dataset.path}: {', '.join(said)}: of no effect, for it holds {source.kind} targets; "
            "they are about tables of pictures"
        )
    if dataset.posterior_mean and not (isinstance(source, TargetSource) and source.has_moments):
        raise JobError(
            f"{dataset.path}: posterior_mean: of no effect, for it holds {source.kind} without "
            "moments; it is for `cache` targets made with moments: true"
        )


def refuse_guidance(job: TrainJob, course: Course) -> None:
    """SettingError for what a transformer that is told no guidance would not notice."""
    dataset: TrainDataset = course.dataset
    task = job.task_of(dataset)
    why = "the transformer has no guidance embedder (as FLUX.1-schnell)"
    if task == "kd_w":
        raise SettingError(f"{dataset.path}: task kd_w tells the student its w, and {why}")
    if job.guidance_of(dataset) is not None:
        raise SettingError(f"{dataset.path}: embedded_guidance: of no effect, for {why}")
    if task == "kd" and dataset.teacher_guidance is None:
        assert isinstance(course.source, TargetSource)
        if len(several := course.source.guidances) > 1:
            raise SettingError(
                f"{dataset.path}: task kd learns the teacher's answers at {list(several)} one as "
                f"the other, and {why}: name one as teacher_guidance"
            )
