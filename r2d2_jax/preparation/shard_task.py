"""The unit of work of a preparation: one shard. Any process can write it at any time, with the same bytes."""

import contextlib
import dataclasses
import itertools
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
from r2d2_jax.preparation.damage import damage
from r2d2_jax.preparation.downsizing import downsized, libraries
from r2d2_jax.preparation.examples import Entry, Example
from r2d2_jax.preparation.progress import Progress, Reporter
from r2d2_jax.preparation.writer import ShardSummary, ShardWriter, dataset_features

START_AGAIN = "start again: finished shards are kept"


@dataclass(frozen=True)
class Job:
    """What all shards of a preparation share.

    corpus: where the entries come from. catalog: the file of its catalog. folder: where the shards go.
    short_side: images with a longer short side are shrunk to this many pixels; 0 keeps every image as it is.
    jpeg_quality: of the images that are shrunk. refuse_damaged: whether damaged images are left out, see `damage`.
    libraries: what shrinks images, see `downsizing.libraries`. text_ids: whether the catalog has identities of texts.
    """

    corpus: Corpus
    catalog: Path
    folder: Path
    short_side: int = 0
    jpeg_quality: int = 90
    refuse_damaged: bool = False
    libraries: dict[str, str] = dataclasses.field(default_factory=libraries)
    text_ids: bool = False


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: number `index` of its split, read from these pieces."""

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
    """What was written into a shard and what was left out; a JSON file beside the shard, which marks it as finished.

    written: what it holds. size: of its file, in bytes. skipped: every unusable entry with its place and reason.
    """

    written: ShardSummary
    size: int
    skipped: tuple[str, ...]

    def progress(self, task: ShardTask) -> Progress:
        """The whole shard as one step of progress."""
        return Progress(
            task.weight, self.written.records + len(self.skipped), len(self.skipped), list(self.skipped[:FIRST_NAMES])
        )


def write_shard(job: Job, task: ShardTask, report: Callable[[Progress], Any]) -> None:
    """Writes a shard, then its report; neither name exists before its file is complete.

    Args:
        job: what all shards share.
        task: the shard.
        report: is given the progress about five times a second.

    Raises:
        UserError: the disk is full, or something else concerns more than one entry; or images are shrunk, and the
            libraries here differ from those of the machine where the preparation was begun.
    """
    _check_libraries(job)
    skipped: list[str] = []
    path = task.path(job)
    with written_whole(path, advice=START_AGAIN) as unfinished:
        features = dataset_features(job.corpus.class_names, text_ids=job.text_ids)
        with contextlib.closing(ShardWriter(unfinished, features)) as writer:
            for example in _usable(job, task, skipped, report):
                writer.add(example)
            written = writer.finish()
    with written_whole(_report_path(path), advice=START_AGAIN) as unfinished:
        finished = ShardReport(written, path.stat().st_size, tuple(skipped))
        unfinished.write_text(json.dumps(dataclasses.asdict(finished), ensure_ascii=False), encoding="utf-8")


def shard_report(job: Job, task: ShardTask) -> ShardReport | None:
    """The report of a finished shard; None if the shard is not finished, or was damaged since."""
    path = task.path(job)
    try:
        fields = json.loads(_report_path(path).read_text(encoding="utf-8"))
        report = ShardReport(ShardSummary(**fields["written"]), fields["size"], tuple(fields["skipped"]))
        return report if path.stat().st_size == report.size else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def take_finished(job: Job, tasks: Sequence[ShardTask], take: Callable[[Progress], Any]) -> list[ShardTask]:
    """Calls `take` with the progress of every finished shard; returns the tasks of the others, in order."""
    pending = []
    for task in tasks:
        report = shard_report(job, task)
        if report is None:
            pending.append(task)
        else:
            take(report.progress(task))
    return pending


def _check_libraries(job: Job) -> None:
    if job.short_side and libraries() != job.libraries:
        raise UserError(
            f"images are shrunk by {libraries()} here and by {job.libraries} where the preparation began, "
            "so shards would differ; install the same versions everywhere"
        )


@contextlib.contextmanager
def readable(corpus: Corpus) -> Iterator[None]:
    """Turns an OSError that is raised while a corpus is read into a UserError that names the corpus."""
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


def _usable(job: Job, task: ShardTask, skipped: list[str], report: Callable[[Progress], Any]) -> Iterator[Example]:
    """The usable examples of a shard in order; appends the place and reason of each other entry to `skipped`."""
    reporter = Reporter(report)
    with contextlib.closing(Catalog(job.catalog)) as catalog:
        for entry in itertools.chain.from_iterable(_entries(job.corpus, piece, catalog) for piece in task.pieces):
            outcome, unusable = _finished(entry, job), ""
            if isinstance(outcome, Example):
                yield outcome
            else:
                unusable = f"{entry.place}: {outcome}"
                skipped.append(unusable)
            reporter.count(entry.weight, unusable)
    reporter.flush()


def _finished(entry: Entry, job: Job) -> Example | UnusableRecord:
    if isinstance(entry.outcome, UnusableRecord):
        return entry.outcome
    example = entry.outcome
    try:
        return dataclasses.replace(example, image=_finished_image(example.image, job))
    except UnusableRecord as error:
        return UnusableRecord(f"image {example.image_id}: {error}")


def _finished_image(encoded: bytes, job: Job) -> bytes:
    """The image, checked, and shrunk if that is wanted."""
    if job.short_side:
        finished = downsized(encoded, job.short_side, job.jpeg_quality)
    else:
        verify_image(encoded)
        finished = encoded
    if job.refuse_damaged and (reason := damage(encoded)):
        raise UnusableRecord(f"the image is damaged, although it can be decoded: {reason}")
    return finished
