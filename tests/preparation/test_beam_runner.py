"""A Beam pipeline on this machine prepares the same bytes as processes do; what goes wrong is one message.

Without apache-beam these tests are skipped: .ci/run has an environment for them, as Beam wants older versions of some
packages than the others have.
"""

import concurrent.futures
import importlib.util
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_corpus import files, written_corpus

from r2d2_jax.errors import UserError
from r2d2_jax.preparation import beam_runner
from r2d2_jax.preparation import shard_task as shard_tasks
from r2d2_jax.preparation.beam_runner import in_beam
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.prepare import Preparation, Settings, prepare
from r2d2_jax.preparation.progress import Watch
from r2d2_jax.preparation.shard_task import Job, ShardTask, shard_report, write_shard

ROOT = Path(__file__).resolve().parents[2]
SAME_PROCESS = "--runner=FnApiRunner"
OTHER_PROCESSES = "--runner=FnApiRunner --direct_num_workers=2 --direct_running_mode=multi_processing"
# As on a cluster: the pipeline goes to a job server, which runs while this process waits.
JOB_SERVER = "--runner=PortableRunner --job_endpoint=embed --environment_type=LOOPBACK"

with_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="needs apache-beam: pip install -e '.[beam]'"
)


@pytest.fixture
def corpus(tmp_path: Path) -> JsonLines:
    """Forty images, two captions each; number 7 is broken."""
    return written_corpus(tmp_path, 40, broken={7})


@pytest.fixture
def undisturbed(corpus: JsonLines, tmp_path: Path) -> dict[str, bytes]:
    """The files that one process makes of it."""
    prepare(corpus, str(tmp_path / "undisturbed"), settings())
    return files(tmp_path / "undisturbed")


def settings(**changes: Any) -> Settings:
    return Settings(**dict(shards=4, max_broken_share=0.1) | changes)


def prepare_in_beam(corpus: JsonLines, output: Path, options: str = SAME_PROCESS, **changes: Any) -> Preparation:
    return prepare(corpus, str(output), settings(**changes), run=in_beam(options))


def interrupted(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
    raise KeyboardInterrupt


def command(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "launch" / "prepare_data.py"),
        f"--images={folder / 'images'}",
        f"--annotations={folder / 'captions.jsonl'}",
        f"--output={folder / 'out'}",
        "--shards=4",
        *more,
    ]


@with_beam
@pytest.mark.parametrize("options", [SAME_PROCESS, OTHER_PROCESSES, JOB_SERVER])
def test_the_same_bytes_as_in_processes(
    corpus: JsonLines, tmp_path: Path, undisturbed: dict[str, bytes], options: str
) -> None:
    preparation = prepare_in_beam(corpus, tmp_path / "out", options)
    assert files(tmp_path / "out") == undisturbed
    assert preparation.skipped == {"validation": 0, "train": 1}


@with_beam
def test_as_a_program(corpus: JsonLines, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    arguments = command(tmp_path, "--max_broken_share=0.1", f"--beam_options={SAME_PROCESS}")
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == undisturbed


@with_beam
def test_finished_shards_are_not_written_again(
    corpus: JsonLines, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        in_processes(1)(job, tasks[:4], watch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, str(tmp_path / "out"), settings(), run=half)
    written = []

    def counted(job: Job, task: ShardTask, report: Any) -> None:
        written.append((task.split, task.index))
        write_shard(job, task, report)

    monkeypatch.setattr(beam_runner, "write_shard", counted)
    preparation = prepare_in_beam(corpus, tmp_path / "out")
    assert len(written) == len(set(written)) == 4
    assert preparation.skipped == {"validation": 0, "train": 1}
    assert files(tmp_path / "out") == undisturbed


@with_beam
def test_nothing_to_do_starts_no_pipeline(
    corpus: JsonLines, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_them(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        in_processes(1)(job, tasks, watch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, str(tmp_path / "out"), settings(), run=all_of_them)
    monkeypatch.setattr(beam_runner, "_run_pipeline", None)
    prepare_in_beam(corpus, tmp_path / "out")
    assert files(tmp_path / "out") == undisturbed


def test_one_shard_written_by_two_at_once(corpus: JsonLines, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """As engines do that take a slow worker for a lost one; on two machines both may have the same process id."""

    def twice(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        both = threading.Barrier(2, timeout=60)
        with concurrent.futures.ThreadPoolExecutor(2) as executor:
            for task in tasks:
                for written in [executor.submit(write_shard, job, task, lambda _: both.wait()) for _ in range(2)]:
                    written.result()

    prepare(corpus, str(tmp_path / "out"), settings(), run=twice)
    assert files(tmp_path / "out") == undisturbed


@with_beam
@pytest.mark.parametrize("options", [SAME_PROCESS, JOB_SERVER])
def test_too_much_broken(tmp_path: Path, options: str, caplog: pytest.LogCaptureFixture) -> None:
    corpus = written_corpus(tmp_path, 40, broken=set(range(0, 40, 2)))
    with pytest.raises(UserError, match=r"of the 40 entries are unusable so far, more than --max_broken_share=0.1"):
        prepare_in_beam(corpus, tmp_path / "out", options)
    assert not (tmp_path / "out" / "json_lines").exists()
    assert "Traceback" not in caplog.text


@with_beam
def test_too_much_broken_stops_a_pipeline_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def until_stopped_after_ten(job: Job, task: ShardTask, report: Any) -> None:
        write_shard(job, task, report)
        written.append(task)
        deadline = time.monotonic() + 60
        # A note that is still being written, stop-….unfinished-…, stops nothing yet.
        while len(written) == 10 and not any(path.suffix == "" for path in job.folder.glob("stop-*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    monkeypatch.setattr(beam_runner, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(beam_runner, "write_shard", until_stopped_after_ten)
    corpus = written_corpus(tmp_path, 400, broken=set(range(400)))
    with pytest.raises(UserError, match="entries are unusable so far"):
        prepare_in_beam(corpus, tmp_path / "out", shards=40, max_broken_share=0.01)
    assert len(written) <= 10


@with_beam
@pytest.mark.parametrize("options", [SAME_PROCESS, OTHER_PROCESSES, JOB_SERVER])
def test_what_a_shard_raises_is_one_message(corpus: JsonLines, tmp_path: Path, options: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, str(tmp_path / "out"), settings(), run=interrupted)
    (tmp_path / "out" / "json_lines.unfinished" / "train-00001").mkdir()  # a file cannot take its place
    done = subprocess.run(
        command(tmp_path, "--max_broken_share=0.1", f"--beam_options={options}"), capture_output=True, text=True
    )
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert re.match("error: cannot write .*/train-00001: .*Is a directory.*; nothing was left there; check", message)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "json_lines").exists()
    (tmp_path / "out" / "json_lines.unfinished" / "train-00001").rmdir()
    prepare_in_beam(corpus, tmp_path / "out")


@with_beam
def test_what_a_shard_raises_leaves_the_rest_out(
    corpus: JsonLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(job: Job, task: ShardTask, report: Any) -> None:
        asked.append(task)
        raise UserError("the disk is full")

    monkeypatch.setattr(beam_runner, "write_shard", refuse)
    with pytest.raises(UserError, match="^the disk is full$"):
        prepare_in_beam(corpus, tmp_path / "out")
    assert len(asked) == 1


@with_beam
def test_a_pipeline_that_fails(corpus: JsonLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job, task: ShardTask, report: Any) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr(beam_runner, "write_shard", fail)
    with pytest.raises(
        UserError,
        match="^the Beam pipeline failed: .*no memory left.*; mend that and start again: finished shards are kept$",
    ):
        prepare_in_beam(corpus, tmp_path / "out")


@with_beam
def test_reports_that_arrive_late_are_waited_for(
    corpus: JsonLines, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where another machine's file may not be seen at once."""
    looks: dict[str, int] = {}

    def seen_late(job: Job, task: ShardTask) -> Any:
        name = task.path(job).name
        looks[name] = looks.get(name, 0) + 1
        return shard_report(job, task) if looks[name] > 4 else None

    monkeypatch.setattr(beam_runner, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(shard_tasks, "shard_report", seen_late)
    preparation = prepare_in_beam(corpus, tmp_path / "out")
    assert preparation.skipped == {"validation": 0, "train": 1}
    assert files(tmp_path / "out") == undisturbed


@with_beam
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--runner=Foo",
            r"--beam_options='--runner=Foo': Unexpected pipeline runner: Foo. Valid values are .*FlinkRunner",
        ),
        ("--runner=foo.Bar", r"--beam_options='--runner=foo.Bar': No module named 'foo'"),
        ("--paralelism=4", r"--beam_options='--paralelism=4': Beam does not know --paralelism"),
        ("--direct_num_workers=x", r"argument --direct_num_workers: invalid int value: 'x'$"),
        ("--runner='FnApiRunner", r"No closing quotation"),
    ],
)
def test_options_that_beam_does_not_know(options: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        in_beam(options)


@with_beam
def test_options_that_only_a_cluster_knows_are_handed_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        in_beam("--runner=FlinkRunner --flink_master=localhost:8081 --parallelism=64")
    assert "parallelism" not in caplog.text


@with_beam
def test_processes_and_beam_options(corpus: JsonLines, tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--processes=2", f"--beam_options={SAME_PROCESS}"), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --processes and --beam_options are both set; with Beam its own options say")


def test_beam_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(
        UserError, match=re.escape("--beam_options needs apache_beam, which is not installed: pip install -e '.[beam]'")
    ):
        in_beam(SAME_PROCESS)
