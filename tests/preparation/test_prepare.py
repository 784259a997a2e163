"""A preparation gives the same bytes whatever the number of processes, and goes on where it was killed."""

import dataclasses
import io
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_corpus import files, until, written_corpus
from small_data import encode

from r2d2_jax.data.records import RecordSource
from r2d2_jax.errors import UserError
from r2d2_jax.preparation import progress as progress_module
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.prepare import Settings, prepare
from r2d2_jax.preparation.progress import Progress, Watch
from r2d2_jax.preparation.shard_task import Job, ShardTask
from r2d2_jax.preparation.writer import ShardWriter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> JsonLines:
    """Forty images, two captions each; number 7 is broken."""
    return written_corpus(tmp_path, 40, broken={7})


def settings(**changes: Any) -> Settings:
    return Settings(**dict(shards=4, max_broken_share=0.1) | changes)


def test_one_and_two_processes_write_the_same_bytes(corpus: JsonLines, tmp_path: Path) -> None:
    tables = []
    for count in (1, 2):
        preparation = prepare(corpus, str(tmp_path / str(count)), settings(), run=in_processes(count))
        tables.append(preparation.table().replace(f"/{count}/", "/N/"))
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert tables[0] == tables[1]
    assert "captions.jsonl:8: image 7.jpg: the image cannot be decoded" in tables[0]


class Killed(BaseException):
    """What stops a preparation as abruptly as a test can within one process."""


def test_finished_shards_are_not_written_again(corpus: JsonLines, tmp_path: Path) -> None:
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    prepare(corpus, str(undisturbed), settings())

    def killed_after_five(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        in_processes(1)(job, tasks[:5], watch)
        (job.folder / "train-00003").write_bytes(b"half a shard without a report")
        raise Killed

    with pytest.raises(Killed):
        prepare(corpus, str(resumed), settings(), run=killed_after_five)
    assert not (resumed / "json_lines").exists()

    written = []

    def only_the_rest(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        written.extend(f"{task.split}-{task.index}" for task in tasks)
        in_processes(1)(job, tasks, watch)

    preparation = prepare(corpus, str(resumed), settings(), run=only_the_rest)
    assert len(written) == 3
    assert sum(preparation.skipped.values()) == 1
    assert files(undisturbed) == files(resumed)


def test_killed_processes_leave_nothing_that_disturbs(tmp_path: Path) -> None:
    """The real thing: SIGKILL while two processes write; they die with it, and the same command goes on."""
    corpus = written_corpus(tmp_path, 600)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"
    prepare(corpus, str(undisturbed), Settings(shards=24))
    command = [
        sys.executable,
        str(ROOT / "launch" / "prepare_data.py"),
        f"--images={tmp_path / 'images'}",
        f"--annotations={tmp_path / 'captions.jsonl'}",
        f"--output={output}",
        "--shards=24",
        "--processes=2",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    unfinished = output / "json_lines.unfinished"
    until(lambda: len(list(unfinished.glob("*-0????.json"))) >= 3, process)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    until(lambda: not any(map(alive, workers)))
    assert not (output / "json_lines").exists()
    prepare(corpus, str(output), Settings(shards=24))
    assert files(undisturbed) == files(output)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_worker_is_one_message(tmp_path: Path, monkeypatch: Any) -> None:
    def take(watch: Watch, progress: Progress) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    corpus = written_corpus(tmp_path, 80)
    monkeypatch.setattr(Watch, "take", take)
    with pytest.raises(
        UserError,
        match="a process that writes shards was killed, perhaps for want of memory; lower "
        "--processes and start again: finished shards are kept",
    ):
        prepare(corpus, str(tmp_path / "out"), Settings(shards=20), run=in_processes(2))
    monkeypatch.undo()
    prepare(corpus, str(tmp_path / "out"), Settings(shards=20))
    assert len(RecordSource(tmp_path / "out", "train")) == 60


def test_too_much_broken_stops_all_processes(tmp_path: Path) -> None:
    corpus = written_corpus(tmp_path, 40, broken=set(range(0, 40, 2)))
    with pytest.raises(UserError, match=r"of the 40 entries are unusable so far, more than --max_broken_share=0.1"):
        prepare(corpus, str(tmp_path / "out"), settings(), run=in_processes(2))
    assert not (tmp_path / "out" / "json_lines").exists()
    assert not list((tmp_path / "out" / "json_lines.unfinished").glob("*.unfinished-*"))  # of workers that were killed


def nothing(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
    raise Killed


def test_a_full_disk_is_one_message(corpus: JsonLines, tmp_path: Path) -> None:
    """No file may become longer than 5 kB, and a shard takes more than that."""
    with pytest.raises(Killed):
        prepare(corpus, str(tmp_path / "out"), settings(), run=nothing)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(
            UserError,
            match="cannot write .*/validation-00000: .*File too large.*; nothing was left there; .*, "
            "and start again: finished shards are kept",
        ):
            prepare(corpus, str(tmp_path / "out"), settings())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = {path.name for path in (tmp_path / "out" / "json_lines.unfinished").iterdir()}
    assert left == {"catalog.sqlite", "lock", "preparation.json"}
    prepare(corpus, str(tmp_path / "out"), settings())


@pytest.mark.parametrize("error", [KeyError("image"), ValueError("no such colour")])
def test_a_bug_in_a_writer_is_a_traceback(
    corpus: JsonLines, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(writer: ShardWriter, example: Any) -> None:
        raise error

    monkeypatch.setattr(ShardWriter, "add", planted)
    with pytest.raises(type(error)) as raised:
        prepare(corpus, str(tmp_path / "out"), settings())
    assert raised.value is error
    left = {path.name for path in (tmp_path / "out" / "json_lines.unfinished").iterdir()}
    assert left == {"catalog.sqlite", "lock", "preparation.json"}


def test_other_settings_or_files_do_not_go_on(corpus: JsonLines, tmp_path: Path) -> None:
    output = str(tmp_path / "out")

    def killed_after_one(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        in_processes(1)(job, tasks[:1], watch)
        raise Killed

    with pytest.raises(Killed):
        prepare(corpus, output, settings(), run=killed_after_one)
    with pytest.raises(
        UserError,
        match=r"out/json_lines.unfinished was left over by a preparation with other settings "
        r"or files; delete it, or go back to them. 1 differences, the first:\n"
        "  - shards: 4, now 5$",
    ):
        prepare(corpus, output, settings(shards=5))
    with (tmp_path / "captions.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"1 differences, the first:\n  - files: .*captions.jsonl: \[\d+, \d+\], now "):
        prepare(corpus, output, settings())


def test_what_no_shard_was_finished_of_is_no_hindrance(corpus: JsonLines, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        prepare(corpus, str(tmp_path / "out"), settings(), run=nothing)
    prepare(corpus, str(tmp_path / "out"), settings(shards=5))
    prepare(corpus, str(tmp_path / "undisturbed"), settings(shards=5))
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_an_unwritten_shard_is_noticed(corpus: JsonLines, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard .*validation-00000 is not finished although everything has run"):
        prepare(corpus, str(tmp_path / "out"), settings(), run=lambda job, tasks, watch: None)


def test_an_existing_dataset_is_kept(corpus: JsonLines, tmp_path: Path) -> None:
    prepare(corpus, str(tmp_path / "out"), settings())
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match=r"json_lines/1.0.0 holds a dataset already; choose another output folder"):
        prepare(corpus, str(tmp_path / "out"), settings())
    assert files(tmp_path / "out") == before


def test_shards_without_a_usable_record_are_left_out(tmp_path: Path) -> None:
    corpus = written_corpus(tmp_path, 40, broken={1, 2, 3})
    preparation = prepare(corpus, str(tmp_path / "out"), settings(shards=10, max_broken_share=0.5))
    assert [split.shards for split in preparation.splits] == [10, 9]
    assert len(RecordSource(tmp_path / "out", "train")) == 27


def test_a_split_without_a_usable_record(tmp_path: Path) -> None:
    corpus = written_corpus(tmp_path, 4, broken={0})
    with pytest.raises(UserError, match="split 'validation' has no usable record; no dataset was made"):
        prepare(corpus, str(tmp_path / "out"), settings(max_broken_share=0.5))


def test_a_number_of_shards_is_chosen(corpus: JsonLines, tmp_path: Path) -> None:
    preparation = prepare(corpus, str(tmp_path / "out"), settings(shards=0))
    assert [split.shards for split in preparation.splits] == [8, 8]


def test_images_are_shrunk_once(tmp_path: Path) -> None:
    corpus = written_corpus(tmp_path, 4)
    (tmp_path / "images" / "1.jpg").write_bytes(encode((300, 200), seed=1))
    prepare(corpus, str(tmp_path / "out"), settings(short_side=50, jpeg_quality=80))
    source = RecordSource(tmp_path / "out", "train")
    found = {source[index].image_id: source[index].image for index in range(len(source))}
    assert Image.open(io.BytesIO(found["1.jpg"])).size == (75, 50)
    assert found["2.jpg"] == (tmp_path / "images" / "2.jpg").read_bytes()


def test_an_image_that_cannot_be_shrunk_is_left_out(tmp_path: Path) -> None:
    corpus = written_corpus(tmp_path, 5)
    Image.new("RGB", (30, 80_000)).save(tmp_path / "images" / "1.jpg", "PNG")
    preparation = prepare(corpus, str(tmp_path / "out"), settings(short_side=25, max_broken_share=0.5))
    (named,) = preparation.first_skipped
    assert named.endswith("captions.jsonl:2: image 1.jpg: shrunk to 25 x 66667 pixels it is too long for a JPEG")


def test_a_corpus_that_cannot_be_read_any_more(corpus: JsonLines, tmp_path: Path, monkeypatch: Any) -> None:
    def gone(*arguments: Any) -> None:
        raise OSError(5, "Input/output error", "captions.jsonl")

    for name in ("index", "read"):
        with monkeypatch.context() as patched:
            patched.setattr(JsonLines, name, gone)
            with pytest.raises(
                UserError,
                match="cannot read corpus json_lines: .*Input/output error.*captions.jsonl"
                ".*; mend that and start again: finished shards are kept",
            ):
                prepare(corpus, str(tmp_path / "out"), settings())


def test_other_libraries_shrink_to_other_bytes(corpus: JsonLines, tmp_path: Path) -> None:
    def elsewhere(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        in_processes(1)(dataclasses.replace(job, libraries={"pillow": "1.0"}), tasks, watch)

    with pytest.raises(
        UserError,
        match=r"images are shrunk by \{'pillow': .*\} here and by \{'pillow': '1.0'\} where "
        "the preparation began, so shards would differ; install the same versions",
    ):
        prepare(corpus, str(tmp_path / "out"), settings(short_side=20), run=elsewhere)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": -1}, "--shards is -1; expected 1 or more files a split, or 0"),
        ({"max_broken_share": 1.5}, "--max_broken_share is 1.5; expected a share, 0 to 1"),
        ({"short_side": -2}, "--short_side is -2; expected pixels, or 0"),
        ({"jpeg_quality": 0}, "--jpeg_quality is 0; expected 1 to 95"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Settings(**changes)


def test_no_processes() -> None:
    with pytest.raises(UserError, match="--processes is 0; expected 1 or more"):
        in_processes(0)


def test_wrong_vocabulary_is_found_before_the_images_are_read(corpus: JsonLines, tmp_path: Path) -> None:
    for bad in ("absent.txt", str(tmp_path)):
        with pytest.raises(UserError, match="does not exist; expected a WordPiece vocab.txt"):
            prepare(corpus, str(tmp_path / "out"), vocabulary=bad)
    assert not (tmp_path / "out").exists()


def test_vocabulary_in_a_folder(corpus: JsonLines, tmp_path: Path, vocabulary: Path) -> None:
    prepare(corpus, str(tmp_path / "out"), settings(), vocabulary=str(vocabulary.parent))
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == vocabulary.read_bytes()


def test_progress_lines_outside_a_terminal(corpus: JsonLines, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress_module, "_LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress_module, "_REPORT_SECONDS", 0.0)
    prepare(corpus, str(tmp_path / "out"), settings())
    assert re.search(r"^20 entries, 50.0%, [\d,]+ entries/s, \d+ s left$", capsys.readouterr().err, re.MULTILINE)


def test_bar_on_a_terminal(corpus: JsonLines, tmp_path: Path, monkeypatch: Any) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    prepare(corpus, str(tmp_path / "out"), settings())
    assert "40/40" in terminal.getvalue()
    assert "entries/s" in terminal.getvalue()
