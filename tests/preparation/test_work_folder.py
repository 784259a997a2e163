"""A preparation continues from those finished shards that are whole and of its own settings and files."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from small_corpus import files, until, written_corpus

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.prepare import Settings, prepare
from r2d2_jax.preparation.progress import Watch
from r2d2_jax.preparation.shard_task import Job, ShardTask

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """What stops a preparation as abruptly as a test can within one process."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> JsonLines:
    """Forty images in two splits."""
    return written_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture(scope="module")
def undisturbed(corpus: JsonLines, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the dataset that is wanted."""
    output = tmp_path_factory.mktemp("undisturbed")
    prepare(corpus, str(output), Settings(shards=4))
    return files(output)


@pytest.fixture(scope="module")
def killed(corpus: JsonLines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of a preparation that was killed when all shards were written."""

    def all_written(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        in_processes(1)(job, tasks, watch)
        raise Killed

    output = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        prepare(corpus, str(output), Settings(shards=4), run=all_written)
    return output / "json_lines.unfinished"


@pytest.fixture
def unfinished(killed: Path, tmp_path: Path) -> Path:
    """A copy of that to spoil."""
    return shutil.copytree(killed, tmp_path / "out" / killed.name)


def rewritten(corpus: JsonLines, output: Path, **settings: Any) -> list[str]:
    """Goes on, and returns the shards that were written again."""
    names = []

    def run(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        names.extend(task.path(job).name for task in tasks)
        in_processes(1)(job, tasks, watch)

    prepare(corpus, str(output), Settings(**dict(shards=4) | settings), run=run)
    return names


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "train-00002").unlink(),
        lambda folder: cut(folder / "train-00002"),
        lambda folder: (folder / "train-00002.json").unlink(),
        lambda folder: cut(folder / "train-00002.json"),
        lambda folder: (folder / "train-00002.json").write_text("{}"),
    ],
)
def test_a_shard_that_is_not_whole_is_written_again(
    corpus: JsonLines, undisturbed: dict, unfinished: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(unfinished)
    assert rewritten(corpus, unfinished.parent) == ["train-00002"]
    assert files(unfinished.parent) == undisturbed


@pytest.mark.parametrize("spoil", [Path.unlink, cut])
def test_shards_of_an_unknown_preparation_are_not_believed(
    corpus: JsonLines, undisturbed: dict, unfinished: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(unfinished / "preparation.json")
    (unfinished / "train-00000").write_bytes(b"of other settings")
    assert len(rewritten(corpus, unfinished.parent)) == 8
    assert files(unfinished.parent) == undisturbed


def test_what_killed_processes_were_writing_is_removed(corpus: JsonLines, unfinished: Path) -> None:
    left = [
        unfinished / "train-00001.unfinished-0123",
        unfinished.parent / "json_lines" / "1.0.0.unfinished-0123" / "x",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")

    def run(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        assert not any(path.exists() for path in left)

    prepare(corpus, str(unfinished.parent), Settings(shards=4), run=run)


def test_a_damaged_catalog(corpus: JsonLines, unfinished: Path) -> None:
    cut(unfinished / "catalog.sqlite")
    with pytest.raises(UserError, match=r"catalog .*catalog.sqlite is damaged \(.*\); delete it and start again"):
        rewritten(corpus, unfinished.parent)


def test_work_left_over_beside_its_dataset_goes(corpus: JsonLines, unfinished: Path) -> None:
    dataset = unfinished.parent / "json_lines" / "1.0.0"
    dataset.mkdir(parents=True)
    with pytest.raises(UserError, match=r"json_lines/1.0.0 holds a dataset already; choose another output folder"):
        rewritten(corpus, unfinished.parent)
    assert not unfinished.exists()


@contextlib.contextmanager
def killed_at_call(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> Iterator[None]:
    real, calls = getattr(Path, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            raise Killed
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, name, counted)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("links", [True, False])
def test_killed_while_the_dataset_takes_the_shards(
    corpus: JsonLines, undisturbed: dict, unfinished: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """On a file system without hard links too, where they are moved; those that are gone are written again then."""

    def refused(*arguments: Any) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    with killed_at_call(monkeypatch, "hardlink_to" if links else "rename", 3):
        rewritten(corpus, unfinished.parent)
    assert len(rewritten(corpus, unfinished.parent)) == (0 if links else 2)
    assert files(unfinished.parent) == undisturbed


def test_two_preparations_at_once(corpus: JsonLines, unfinished: Path) -> None:
    with (unfinished / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            UserError,
            match="another preparation is at work in .*json_lines.unfinished; let it end, or choose another --output",
        ):
            rewritten(corpus, unfinished.parent)
    assert rewritten(corpus, unfinished.parent) == []


def test_an_impossible_output_folder(corpus: JsonLines, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*: Not a directory; check --output and its permissions"):
        prepare(corpus, str(tmp_path / "file" / "out"))


def test_a_full_disk_while_the_dataset_takes_the_shards(
    corpus: JsonLines, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfds.core.DatasetInfo, "write_to_directory", full)
    with pytest.raises(
        UserError,
        match="cannot write .*json_lines/1.0.0: .*No space left on device; nothing was left there; free some space or "
        "choose another folder, and start again: finished shards are kept",
    ):
        rewritten(corpus, unfinished.parent)
    monkeypatch.undo()
    assert rewritten(corpus, unfinished.parent) == []


@pytest.fixture(scope="module")
def large_corpus(tmp_path_factory: pytest.TempPathFactory) -> JsonLines:
    """Enough images that a preparation is still running when it is stopped."""
    return written_corpus(tmp_path_factory.mktemp("large"), 1000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand(large_corpus: JsonLines, tmp_path: Path, number: signal.Signals) -> None:
    command = [
        sys.executable,
        str(ROOT / "launch" / "prepare_data.py"),
        f"--images={large_corpus.images}",
        f"--annotations={large_corpus.annotations}",
        f"--output={tmp_path / 'out'}",
        "--shards=50",
        "--processes=2",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored, if the tests run in the background
    )
    until(lambda: len(list(tmp_path.glob("out/json_lines.unfinished/train-0????.json"))) >= 2, process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped; the same command goes on: finished shards are kept" in said
    assert "Traceback" not in said
