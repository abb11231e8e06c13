import pytest

from batch.errors import JobError
from batch.workers import Resources, share_of

CPUS = {"CPU": 4.0}
GPUS = {"CPU": 32.0, "GPU": 8.0}


def test_without_gpus_the_cpus_are_shared_out() -> None:
    assert share_of(CPUS, "auto", "auto").resources == Resources(gpus=0, cpus=4)
    assert share_of(CPUS, 2, "auto").resources == Resources(gpus=0, cpus=2)
    assert share_of(CPUS, (1, 3), "cpu").resources == Resources(gpus=0, cpus=1)
    assert [share_of(CPUS, w, "auto").wanted(CPUS) for w in ("auto", 2, (1, 3))] == [1, 2, 3]
    assert share_of(GPUS, "auto", "cpu").resources == Resources(gpus=0, cpus=32)


def test_where_there_are_gpus_each_worker_has_one() -> None:
    assert share_of(GPUS, "auto", "auto").resources == Resources(gpus=1, cpus=1)
    assert [share_of(GPUS, w, "cuda").wanted(GPUS) for w in ("auto", 3, (2, 4))] == [8, 3, 4]


def test_workers_come_and_go_with_the_clusters_gpus_between_least_and_most() -> None:
    share = share_of(GPUS, (2, 4), "auto")
    assert [share.wanted({"GPU": n}) for n in (0, 1, 3, 9)] == [2, 2, 3, 4]
    everything = share_of(GPUS, "auto", "auto")
    assert [everything.wanted({"GPU": n}) for n in (0, 1, 9)] == [1, 1, 9]


def test_more_than_the_cluster_has_is_refused_with_the_numbers() -> None:
    with pytest.raises(JobError, match="workers: 99 asked for, and the cluster has 4 CPUs"):
        share_of(CPUS, 99, "auto")
    with pytest.raises(JobError, match="9 asked for, and the cluster has 8 GPUs"):
        share_of(GPUS, 9, "auto")
    with pytest.raises(JobError, match="device is cuda and the cluster has no GPU"):
        share_of(CPUS, "auto", "cuda")
