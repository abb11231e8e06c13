import dataclasses

from batch.report import RunReport, ShardReport


def shard(done: int, rejected: int) -> ShardReport:
    return ShardReport(
        shard="s", done=done, rejected=rejected, seconds=1.0, host="h", state="published"
    )


def test_progress_tells_rate_and_time_left_of_this_run_alone() -> None:
    report = RunReport(rows=100, done=45, rejected=5, skipped=50, started=1000.0)
    report.add(shard(18, 2))
    assert report.line(now=1010.0) == "70 of 100 rows, 2.00 rows/s, 7 rejected, 15 s left"


def test_before_the_first_shard_no_time_is_promised() -> None:
    line = RunReport(rows=10, started=0.0).line(now=5.0)
    assert line == "0 of 10 rows, 0.00 rows/s, 0 rejected, time left unknown"


def test_the_written_report_says_how_the_run_ended() -> None:
    report = RunReport(rows=1)
    report.add(shard(1, 0))
    told = report.as_json("finished")
    assert (told["state"], told["done"], told["shards"][0]["host"]) == ("finished", 1, "h")


def test_rejects_are_held_against_what_the_job_allows() -> None:
    report = RunReport(rows=1000, done=80, rejected=10)
    assert not report.over(None)
    assert report.over(9)
    assert not report.over(10)
    assert not report.over(0.05)  # too few to speak of a share
    report.done = 100
    assert report.over(0.05)
    assert not report.over(0.1)


def test_a_part_of_a_shard_is_not_counted() -> None:
    report = RunReport(rows=10)
    report.add(dataclasses.replace(shard(0, 0), state="part"))
    assert (report.finished, report.shards) == (0, [])
    assert report.line(report.started + 1, underway=4).startswith("4 of 10 rows, 4.00 rows/s")


def test_a_run_tells_how_far_approximate_rows_were_from_the_exact_ones() -> None:
    report = RunReport(rows=10)
    assert "deviation_of_latents" not in report.as_json("running")
    report.add(dataclasses.replace(shard(2, 0), deviations=(0.25, 0.75)))
    report.add(shard(2, 0))
    told = report.as_json("running")
    assert told["deviation_of_latents"] == {"rows": 2, "mean": 0.5, "largest": 0.75}
    assert "deviations" not in told
