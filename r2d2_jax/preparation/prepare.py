"""Prepares a corpus as a dataset in three stages: catalog, shards, dataset.

The working folder OUTPUT/NAME.unfinished holds the settings, the catalog, and every finished shard with its report. A
preparation that was killed continues from it. The bytes of the dataset depend neither on interruptions nor on the
number of processes.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2d2_jax.atomic import written_whole
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted
from r2d2_jax.paths import check_utf8, user_path
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.corpus import Corpus
from r2d2_jax.preparation.downsizing import libraries
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.progress import Watch
from r2d2_jax.preparation.shard_task import (
    START_AGAIN,
    Job,
    ShardReport,
    ShardTask,
    readable,
    shard_report,
    take_finished,
)
from r2d2_jax.preparation.work_folder import unfinished_work
from r2d2_jax.preparation.writer import SplitSummary, dataset_path, publish_dataset
from r2d2_jax.vocabulary import VOCABULARY, Vocabulary, find_vocabulary, read_vocabulary, write_vocabulary

SKIPPED_FILE = "skipped.txt"

Runner = Callable[[Job, Sequence[ShardTask], Watch], None]


@dataclass(frozen=True)
class Settings:
    """How a corpus is prepared.

    shards: files a split, at most one for each entry or archive; 0 chooses: about 10,000 entries or 256 MiB of archives
        each, but at least 8.
    max_broken_share: largest tolerated share of unusable entries, 0 to 1.
    short_side: images with a longer short side are shrunk to this many pixels; 0 keeps every image as it is.
    jpeg_quality: of the images that are shrunk, 1 to 95.
    refuse_damaged: whether images are left out that can be decoded although part of them is damaged, see `damage`.
    """

    shards: int = 0
    max_broken_share: float = 0.01
    short_side: int = 0
    jpeg_quality: int = 90
    refuse_damaged: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of range."""
        if self.shards < 0:
            raise UserError(f"--shards is {self.shards}; expected 1 or more files a split, or 0 for a fitting number")
        if not 0 <= self.max_broken_share <= 1:
            raise UserError(f"--max_broken_share is {self.max_broken_share:g}; expected a share, 0 to 1")
        if self.short_side < 0:
            raise UserError(f"--short_side is {self.short_side}; expected pixels, or 0 to keep images as they are")
        if not 1 <= self.jpeg_quality <= 95:
            raise UserError(f"--jpeg_quality is {self.jpeg_quality}; expected 1 to 95")


@dataclass(frozen=True)
class Preparation:
    """The result of a preparation.

    splits: what was written. skipped: split name -> number of its unusable entries, "" for those that name no split.
    first_skipped: the first ten of these, each with its place and reason. skipped_file: a file of all of them.
    remarks: other lines of the corpus for the report, such as how many links were dead.
    """

    splits: tuple[SplitSummary, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    first_skipped: tuple[str, ...] = ()
    skipped_file: Path | None = None
    remarks: tuple[str, ...] = ()

    def table(self) -> str:
        """The splits as a table: records, captions, skipped entries, bytes, shards."""
        rows: list[tuple[str, ...]] = [("split", "records", "captions", "skipped", "bytes", "shards")]
        for split in self.splits:
            counts = (split.records, split.captions, self.skipped.get(split.name, 0), split.bytes, split.shards)
            rows.append((split.name, *(f"{count:,}" for count in counts)))
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        lines += ["", *self.remarks] if self.remarks else []
        if self.first_skipped:
            total, unassigned = sum(self.skipped.values()), self.skipped.get("", 0)
            lines += [
                "",
                f"{total:,} entries skipped, {unassigned:,} of them without a known split; all of them are "
                f"listed in {self.skipped_file}. The first:",
            ]
            lines += [f"  {line}" for line in self.first_skipped]
        return "\n".join(lines)


def prepare(
    corpus: Corpus,
    output: str,
    settings: Settings | None = None,
    *,
    vocabulary: str = "",
    run: Runner | None = None,
) -> Preparation:
    """Writes a corpus as the dataset OUTPUT/NAME/1.0.0, or continues an interrupted preparation of it.

    Args:
        corpus: what to read.
        output: folder to hold the dataset.
        settings: shards, sizes, tolerance.
        vocabulary: a vocab.txt, a folder that holds one, or a hub name, to copy beside the dataset; "" copies none.
        run: writes the shards; by default in this process.

    Raises:
        UserError: something is wrong with the input or the disk; then the output holds no dataset.
    """
    settings = settings or Settings()
    root = user_path(output).absolute()
    check_utf8(root, "--output")
    tokens = read_vocabulary(find_vocabulary(vocabulary)) if vocabulary else None  # before the images are read
    folder = root / f"{corpus.name}.unfinished"
    identity = corpus.identity() | {
        "shards": settings.shards,
        "short_side": settings.short_side,
        "jpeg_quality": settings.jpeg_quality,
        "libraries": libraries() if settings.short_side else {},
    }
    if settings.refuse_damaged:
        identity["refuse_damaged"] = True  # else no key, as in the work of earlier versions
    with unfinished_work(folder, dataset_path(root, corpus.name), identity):
        catalog = build_catalog(corpus, folder / "catalog.sqlite")
        job = Job(
            corpus,
            catalog.path,
            folder,
            settings.short_side,
            settings.jpeg_quality,
            settings.refuse_damaged,
            text_ids=catalog.has_text_ids,
        )
        tasks = _tasks(corpus, catalog, settings.shards)
        _write_missing(job, tasks, _watch(corpus, catalog, tasks, settings), run or in_processes(1))
        if tokens:
            _copy_vocabulary(tokens, root)
        return _publish(root, job, tasks, catalog)


def _copy_vocabulary(vocabulary: Vocabulary, root: Path) -> None:
    with written_whole(root / VOCABULARY) as unfinished:
        write_vocabulary(vocabulary, unfinished)


def build_catalog(corpus: Corpus, path: Path) -> Catalog:
    """Indexes a corpus's annotations in a catalog at `path`, or opens the one that is there.

    Raises:
        UserError: an annotation file is missing, or the catalog cannot be written.
    """
    if not path.is_file():
        with written_whole(path) as unfinished:
            catalog = Catalog(unfinished, create=True)
            with readable(corpus):
                corpus.index(catalog)
            catalog.close()
    catalog = Catalog(path)
    try:
        catalog.sizes()
    except sqlite3.DatabaseError as error:
        raise UserError(f"catalog {path} is damaged ({error}); delete it and start again") from error
    return catalog


def _tasks(corpus: Corpus, catalog: Catalog, shards: int) -> list[ShardTask]:
    planned = corpus.shards(catalog, shards)
    if not planned:
        first = bulleted(itertools.islice(catalog.skipped_lines(), FIRST_NAMES))
        named = f". The first:\n{first}" if first else ""
        raise UserError(f"corpus {corpus.name} has no usable entry; mend its files{named}")
    return [
        ShardTask(split, index, pieces)
        for split, shards_of in planned.items()
        for index, pieces in enumerate(shards_of)
    ]


def _watch(corpus: Corpus, catalog: Catalog, tasks: list[ShardTask], settings: Settings) -> Watch:
    skipped = sum(catalog.skipped().values())
    total = sum(catalog.sizes().values()) + skipped
    first = list(itertools.islice(catalog.skipped_lines(), FIRST_NAMES))
    weight = sum(task.weight for task in tasks)
    return Watch(corpus.unit, weight, settings.max_broken_share, total=total or None, skipped=skipped, first=first)


def _write_missing(job: Job, tasks: list[ShardTask], watch: Watch, run: Runner) -> None:
    missing = take_finished(job, tasks, watch.count)
    with watch.showing():
        run(job, missing, watch)
    watch.judge(finished=True)


def _publish(root: Path, job: Job, tasks: list[ShardTask], catalog: Catalog) -> Preparation:
    shards: dict[str, list[Any]] = {}
    skipped = dict(catalog.skipped())
    for task in tasks:
        report = _report(job, task)
        shards.setdefault(task.split, []).append((task.path(job), report.written))
        skipped[task.split] = skipped.get(task.split, 0) + len(report.skipped)
    skipped_in_shards = itertools.chain.from_iterable(_report(job, task).skipped for task in tasks)
    first = _write_skipped(job.folder / SKIPPED_FILE, itertools.chain(catalog.skipped_lines(), skipped_in_shards))
    corpus = job.corpus
    summaries = publish_dataset(
        root,
        corpus.name,
        shards,
        files=[job.folder / SKIPPED_FILE] if first else [],
        class_names=corpus.class_names,
        text_ids=job.text_ids,
        description=corpus.description,
        homepage=corpus.homepage,
        advice=START_AGAIN,
    )
    skipped_file = dataset_path(root, corpus.name) / SKIPPED_FILE
    return Preparation(tuple(summaries), skipped, first, skipped_file, catalog.remarks())


def _report(job: Job, task: ShardTask) -> ShardReport:
    report = shard_report(job, task)
    if report is None:
        raise UserError(f"shard {task.path(job)} is not finished although everything has run; start again to go on")
    return report


def _write_skipped(path: Path, lines: Iterator[str]) -> tuple[str, ...]:
    first: list[str] = []
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(f"{line}\n")
            if len(first) < FIRST_NAMES:
                first.append(line)
    return tuple(first)
