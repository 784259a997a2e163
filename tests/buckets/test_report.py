"""Reports of runs and evaluations that lie in a bucket."""

import json
from pathlib import Path

import pytest
from bucket_server import BUCKET, FORBIDS, BucketServer
from programs import called, write_config
from small_model import CHEAPEST, config_values
from small_reports import Page

from r2d2_jax.buckets.path import BucketPath, bucket_path
from r2d2_jax.launch import evaluate, main, report
from r2d2_jax.report import writing
from r2d2_jax.report.findings import Findings

SHOWN = ("What was trained", "How good it is", "Curves", "From a caption to pictures", "How to go on")


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ended(prepared: Path, server: BucketServer, tmp_path_factory: pytest.TempPathFactory) -> BucketPath:
    """A training in the bucket that has ended with its report."""
    workdir = bucket_path(f"gs://{BUCKET}/reported/run")
    changes = {"data": {"directory": str(prepared)}, "train": {"epochs": 1.0, "log_every": 1}}
    config = write_config(tmp_path_factory.mktemp("config"), config_values(CHEAPEST, changes))
    done = called(main.main, f"--config={config}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"Report: {workdir}/report.html\n"), done.stderr
    assert "there is no report" not in done.stderr
    return workdir


def test_a_training_ends_with_its_report(ended: BucketPath) -> None:
    page = page_of(ended / "report.html")
    for title in SHOWN:
        assert title in page.text
    assert page.images > 5
    assert f"r2d2-status {ended}" in page.text  # the commands to go on with name the run as it can be named
    assert f"--checkpoint={ended}" in page.text


def test_a_command_writes_the_same_report_again(ended: BucketPath) -> None:
    before = page_of(ended / "report.html")
    (ended / "report.html").unlink()
    done = called(report.main, str(ended))
    assert (done.returncode, done.stdout) == (0, f"Report: {ended}/report.html\n"), done.stderr
    assert page_of(ended / "report.html").texts == before.texts


def test_reports_of_an_evaluation(ended: BucketPath, prepared: Path, bucket: BucketPath) -> None:
    flags = (f"--data={prepared}", "--split=validation", f"--json={bucket / 'measured.json'}")
    done = called(evaluate.main, f"--checkpoint={ended}", *flags)
    assert done.returncode == 0, done.stderr
    done = called(report.main, str(bucket / "measured.json"))
    assert (done.returncode, done.stdout) == (0, f"Report: {bucket}/measured.html\n"), done.stderr
    page = page_of(bucket / "measured.html")
    assert "I2T R@1" in page.text
    assert "From a caption to pictures" in page.text
    # And of one whose model is gone: what is left names it as it was named.
    document = json.loads((bucket / "measured.json").read_text())
    document["checkpoint"]["path"] = "gs://no-such-bucket/run"
    (bucket / "measured.json").write_text(json.dumps(document))
    done = called(report.main, str(bucket / "measured.json"))
    assert done.returncode == 0, done.stderr
    page = page_of(bucket / "measured.html")
    assert "The model that was measured cannot be read, so no answers are shown." in page.text
    assert "--checkpoint=gs://no-such-bucket/run" in page.text


def test_what_is_not_there(bucket: BucketPath) -> None:
    for named in (bucket / "run", bucket / "measured.json"):
        done = called(report.main, str(named))
        assert done.returncode == 2
        assert f"error: there is no {named}; expected the --workdir of a run, or a file that" in done.stderr


def test_a_bucket_that_forbids_to_write_costs_the_report_alone(
    ended: BucketPath, server: BucketServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has ended well."""
    original = writing.page

    def page(*arguments: object) -> str:
        text = original(*arguments)  # type: ignore[arg-type]
        server.fault = FORBIDS  # from here on, so that everything could be read
        return text

    monkeypatch.setattr(writing, "page", page)
    monkeypatch.setattr(writing, "find", lambda *_: Findings())
    monkeypatch.setattr(writing, "_curves", lambda _: ({}, []))
    report.report_at_the_end(ended)
    server.fault = None
    (warning,) = [record.getMessage() for record in caplog.records if "there is no report" in record.getMessage()]
    assert warning.startswith(f"there is no report of the run: cannot write {ended}/report.html: ")
    assert "storage.objectUser" in warning
