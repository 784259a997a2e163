"""The unit of work of a preparation: one shard, written by any process at any time with the same result."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d2_jax.atomic import written_whole
from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.transforms import verify_image
from r2d2_jax.errors import FIRST_NAMES, UserError
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.corpus import Corpus, Piece
from r2d2_jax.preparation.downsizing import downsized, libraries
from r2d2_jax.preparation.examples import Entry, Example
from r2d2_jax.preparation.progress import News, Reporter
from r2d2_jax.preparation.writer import ShardSummary, ShardWriter, dataset_features


@dataclass(frozen=True)
class Job:
    """What all shards of a preparation have in common.

    corpus: where the entries come from. catalog: its catalog's file. folder: where the shards go.
    short_side: images with a longer short side are shrunk to this many pixels; 0 keeps all as they are.
    jpeg_quality: of the images that are shrunk. libraries: what shrinks them, see `downsizing.libraries`.
    """

    corpus: Corpus
    catalog: Path
    folder: Path
    short_side: int = 0
    jpeg_quality: int = 90
    libraries: dict[str, str] = dataclasses.field(default_factory=libraries)


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: number `index` of its split, out of these pieces."""

    split: str
    index: int
    pieces: tuple[Piece, ...]

    @property
    def weight(self) -> int:
        """Its size, in the corpus's unit."""
        return sum(piece.weight for piece in self.pieces)

    def path(self, job: Job) -> Path:
        """The shard's file until the dataset is published."""
        return job.folder / f"{self.split}-{self.index:05d}"


@dataclass(frozen=True)
class ShardReport:
    """What came of a shard; lies as JSON beside it and says that it is finished.

    written: what it holds. size: of its file, in bytes. skipped: every entry left out, with its place and reason.
    """

    written: ShardSummary
    size: int
    skipped: tuple[str, ...]

    def news(self, task: "ShardTask") -> News:
        """The same as news of the whole shard."""
        return News(
            task.weight, self.written.records + len(self.skipped), len(self.skipped), list(self.skipped[:FIRST_NAMES])
        )


def write_shard(job: Job, task: ShardTask, tell: Callable[[News], Any]) -> None:
    """Writes a shard, then its report; nothing appears under their names before it is complete.

    Args:
        job: what all shards share.
        task: the shard.
        tell: is given the news about five times a second.

    Raises:
        UserError: the disk is full, or something else that concerns more than an entry; or images are shrunk, and the
            libraries here are others than those of the machine where the preparation was begun.
    """
    _check_libraries(job)
    skipped: list[str] = []
    path = task.path(job)
    with written_whole(path) as unfinished:
        writer = ShardWriter(unfinished, dataset_features(job.corpus.class_names))
        try:
            for example in _usable(job, task, skipped, tell):
                writer.add(example)
        except BaseException:
            writer.abandon()
            raise
        summary = writer.finish()
    with written_whole(_report_path(path)) as unfinished:
        report = ShardReport(summary, path.stat().st_size, tuple(skipped))
        unfinished.write_text(json.dumps(dataclasses.asdict(report), ensure_ascii=False), encoding="utf-8")


def shard_report(job: Job, task: ShardTask) -> ShardReport | None:
    """What came of a shard; None if it is not finished, or not whole any more."""
    path = task.path(job)
    try:
        fields = json.loads(_report_path(path).read_text(encoding="utf-8"))
        report = ShardReport(ShardSummary(**fields["written"]), fields["size"], tuple(fields["skipped"]))
        return report if path.stat().st_size == report.size else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def take_finished(job: Job, tasks: Sequence[ShardTask], take: Callable[[News], Any]) -> list[ShardTask]:
    """Gives `take` the news of every shard that is finished; returns the tasks of the others, in order."""
    pending = []
    for task in tasks:
        report = shard_report(job, task)
        if report is None:
            pending.append(task)
        else:
            take(report.news(task))
    return pending


def _check_libraries(job: Job) -> None:
    if job.short_side and libraries() != job.libraries:
        raise UserError(
            f"images are shrunk by {libraries()} here and by {job.libraries} where the preparation began, "
            "so shards would differ; install the same versions everywhere"
        )


@contextlib.contextmanager
def readable(corpus: Corpus) -> Iterator[None]:
    """Turns what the operating system says while a corpus is read into a UserError that names the corpus."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read corpus {corpus.name}: {error}; mend that and start again: finished shards are kept"
        ) from error


def _entries(corpus: Corpus, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
    with readable(corpus):
        yield from corpus.read(piece, catalog)


def _report_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.json")


def _usable(job: Job, task: ShardTask, skipped: list[str], tell: Callable[[News], Any]) -> Iterator[Example]:
    reporter = Reporter(tell)
    catalog = Catalog(job.catalog)
    for piece in task.pieces:
        for entry in _entries(job.corpus, piece, catalog):
            outcome = _finished(entry, job)
            if isinstance(outcome, Example):
                yield outcome
            else:
                skipped.append(f"{entry.place}: {outcome}")
                reporter.skip(skipped[-1])
            reporter.read(entry.weight)
    reporter.tell()
    catalog.close()


def _finished(entry: Entry, job: Job) -> Example | UnusableRecord:
    """The example with its image seen to be whole, and shrunk if that is wanted."""
    if isinstance(entry.outcome, UnusableRecord):
        return entry.outcome
    example = entry.outcome
    try:
        if job.short_side:
            return dataclasses.replace(example, image=downsized(example.image, job.short_side, job.jpeg_quality))
        verify_image(example.image)
    except UnusableRecord as error:
        return UnusableRecord(f"image {example.image_id}: {error}")
    return example
