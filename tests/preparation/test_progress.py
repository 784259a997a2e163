"""Workers report what they read in small steps; a preparation with too many unusable entries stops early."""

import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.preparation import progress as progress_module
from r2d2_jax.preparation.progress import Progress, Reporter, Watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which stands still unless a test changes it."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_reports_come_five_times_a_second_and_add_up(clock: list[float]) -> None:
    reports: list[Progress] = []
    reporter = Reporter(reports.append)
    for number in range(20):
        reporter.count(7, f"a.jsonl:{number}: broken" if number % 2 else "")
        clock[0] += 0.125
    reporter.flush()
    assert [report.entries for report in reports] == [3, *[2] * 8, 1]  # begins, 0.25 s later, every 0.25 s, the rest
    assert sum(report.weight for report in reports) == 140
    assert sum(report.skipped for report in reports) == 10
    assert [line for report in reports for line in report.first] == [f"a.jsonl:{n}: broken" for n in range(1, 20, 2)]


def test_a_report_names_ten_entries_at_most(clock: list[float]) -> None:
    reports: list[Progress] = []
    reporter = Reporter(reports.append)
    for number in range(25):
        reporter.count(1, f"{number}")
    reporter.flush()
    assert reports == [Progress(25, 25, 25, [f"{number}" for number in range(10)])]


def test_ten_unusable_entries_are_named_however_many_there_are(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch("B", 100, 1.0, total=50, skipped=4, first=["a", "b", "c", "d"])
    watch.count(Progress(10, 5, 3, ["e", "f", "g"]))  # of an earlier run, which named them
    with watch.showing():
        watch.take(Progress(10, 5, 5, ["h", "i", "j", "k", "l"]))
    assert watch.first == list("abcdefghij")
    assert (watch.skipped, watch.entries) == (12, 14)
    assert [record.getMessage() for record in caplog.records] == [f"skipped {name}" for name in "abcdhij"]


def test_the_time_that_is_left_counts_this_run_only(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    watch = Watch("B", 1000, 0.5)
    watch.count(Progress(500, 50))
    with watch.showing():
        clock[0] += 20
        watch.take(Progress(100, 10))
    assert capsys.readouterr().err == "60 entries, 60.0%, 0 entries/s, 80 s left\n"


def test_where_the_number_is_unknown_few_entries_are_not_judged() -> None:
    watch = Watch("B", 10_000, 0.01)
    with watch.showing():
        watch.take(Progress(100, 100, 10, ["a.tar#1: broken"]))
        watch.take(Progress(100, 900, 9))  # 19, where 10 are allowed and chance brings 9.5 more
        with pytest.raises(UserError, match=r"20 of the 1,000 entries read are unusable so far(.|\n)*  - a.tar#1: bro"):
            watch.take(Progress(10, 0, 1))
    small = Watch("B", 100, 0.01)
    with small.showing():
        small.take(Progress(100, 50, 1))
    with pytest.raises(UserError, match="1 of the 50 entries read are unusable"):
        small.judge(finished=True)
