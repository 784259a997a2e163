"""The unit of work of a check: one part of a corpus. Any process can write its figures and sightings at any time."""

import contextlib
import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.text.blank import is_blank
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.preparation.checks.captions import CaptionFigures, CaptionMeter
from r2d2_jax.preparation.checks.figures import Figures, Named, Spread
from r2d2_jax.preparation.checks.images import ImageFigures, damage_kind
from r2d2_jax.preparation.checks.repeats import Sightings, hash_of
from r2d2_jax.preparation.checks.sources import DamagedShard, Part, Source
from r2d2_jax.preparation.damage import damage
from r2d2_jax.preparation.examples import Entry, Example, MissingImage
from r2d2_jax.preparation.progress import Progress, Reporter

MISSING, TRUNCATED, UNDECODABLE = "missing", "truncated", "undecodable"
EMPTY_CAPTION, NO_IMAGE_ID, UNREADABLE, DAMAGED_SHARD = "empty_caption", "no_image_id", "unreadable", "damaged_shard"
UNUSABLE_KINDS = (MISSING, TRUNCATED, UNDECODABLE, EMPTY_CAPTION, NO_IMAGE_ID, UNREADABLE, DAMAGED_SHARD)
DAMAGED = "damaged"
# What is compared, and the key that makes two images different:
#   captions by image_id; bytes of images by image_id; image_ids by the image's bytes;
#   records (an image's bytes with its image_id), each of which is different from all others;
#   texts (a caption's text_id) by image_id; wordings (the same again) by the caption's characters.
SIGHTINGS = ("captions", "bytes", "identities", "records", "texts", "wordings")

_BATCH = 512  # captions that are tokenised together


@dataclass
class SplitFigures(Figures):
    """Figures of a split, or of a part of it.

    entries: usable and unusable ones. unusable: counts of each of UNUSABLE_KINDS, with the first places and reasons.
    damaged_shards: records lost in each. The others are figures of usable entries: captioned: how many have a caption.
    damaged: images that can be decoded although part of them is damaged, with the first places and reasons.
    captions_of_image: number of captions of each. labels: number of each class.
    """

    entries: int = 0
    unusable: Named = field(default_factory=Named)
    damaged_shards: Counter[str] = field(default_factory=Counter)
    damaged: Named = field(default_factory=Named)
    captioned: int = 0
    captions_of_image: Spread = field(default_factory=Spread)
    labels: Counter[int] = field(default_factory=Counter)
    images: ImageFigures = field(default_factory=ImageFigures)
    captions: CaptionFigures = field(default_factory=CaptionFigures)


@dataclass(frozen=True)
class CheckJob:
    """What all parts of a check share.

    source: what is checked. splits: its splits, by number. folder: where figures and sightings go.
    tokenizer: None leaves tokens unmeasured.
    """

    source: Source
    splits: tuple[str, ...]
    folder: Path
    tokenizer: Tokenizer | None

    def figures_path(self, part: Part) -> Path:
        """The file of a part's figures."""
        return self.folder / f"{part.number:07d}.figures"

    def sightings_path(self, part: Part, kind: str) -> Path:
        """The file of a part's sightings of one of SIGHTINGS."""
        return self.folder / f"{part.number:07d}.{kind}"

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns the OSError of a full disk into a UserError that names the folder."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {first_line(error)}; name a folder with more room by --work"
            ) from error

    def figures(self, part: Part) -> SplitFigures:
        """What `check_part` found in a part."""
        figures: SplitFigures = pickle.loads(self.figures_path(part).read_bytes())
        return figures


def check_part(job: CheckJob, part: Part, report: Callable[[Progress], Any]) -> None:
    """Writes the figures and the sightings of a part.

    Args:
        job: what all parts share.
        part: the part.
        report: is given the progress about five times a second.

    Raises:
        UserError: the disk is full.
    """
    check = _PartCheck(part.number, job.tokenizer)
    reporter = Reporter(report)
    for number, entry in enumerate(job.source.read(part)):
        check.take(number, entry)
        reporter.count(entry.weight)
    check.measure_captions()
    with job.writing():
        for kind, sightings in check.sightings.items():
            sightings.write(job.sightings_path(part, kind), split=job.splits.index(part.split), part=part.number)
        job.figures_path(part).write_bytes(pickle.dumps(check.figures))
    reporter.flush()


class _PartCheck:
    """Collects figures and sightings while a part is read."""

    def __init__(self, part: int, tokenizer: Tokenizer | None) -> None:
        self.figures = SplitFigures()
        self._part = part
        self.sightings = {kind: Sightings() for kind in SIGHTINGS}
        self._meter = CaptionMeter(tokenizer)
        self._captions: list[str] = []

    def take(self, number: int, entry: Entry) -> None:
        self.figures.entries += 1
        if isinstance(entry.outcome, Example):
            kind, reason = self._take_example(number, entry.outcome)
            if not kind and (found := damage(entry.outcome.image)):
                self.figures.damaged.add(DAMAGED, _line(entry.place, f"image {entry.outcome.image_id}: {found}"))
        else:
            kind, reason = _kind(entry.outcome), str(entry.outcome)
            if isinstance(entry.outcome, DamagedShard):
                self.figures.damaged_shards[entry.outcome.shard] += 1
        if kind:
            self.figures.unusable.add(kind, _line(entry.place, reason))

    def measure_captions(self) -> None:
        self._meter.measure(self._captions, self.figures.captions)
        self._captions.clear()

    def _take_example(self, number: int, example: Example) -> tuple[str, str]:
        """Counts a usable example; returns the kind and the reason of an unusable one, "" and "" otherwise."""
        if any(map(is_blank, example.captions)):
            return EMPTY_CAPTION, "it has an empty caption"
        if not example.image_id:
            return NO_IMAGE_ID, "it has no image_id"
        try:
            self.figures.images.add(example.image)
        except UnusableRecord as error:
            return damage_kind(error, example.image), f"image {example.image_id}: {error}"
        self._see(number, example)
        self.figures.captioned += bool(example.captions)
        self.figures.captions_of_image.add(len(example.captions))
        if example.label is not None:
            self.figures.labels[example.label] += 1
        self.figures.captions.duplicated += len(example.captions) - len(set(example.captions))
        self._captions += example.captions
        if len(self._captions) >= _BATCH:
            self.measure_captions()
        return "", ""

    def _see(self, number: int, example: Example) -> None:
        identity, image = hash_of(example.image_id.encode()), hash_of(example.image)
        record = hash_of(identity.to_bytes(8, "little") + image.to_bytes(8, "little"))
        self.sightings["identities"].add(identity, image, number)
        self.sightings["bytes"].add(image, identity, number)
        self.sightings["records"].add(record, self._part << 32 | number, number)
        for caption, text_id in itertools.zip_longest(example.captions, example.text_ids, fillvalue=""):
            characters = hash_of(caption.encode())
            self.sightings["captions"].add(characters, identity, number)
            if text_id:
                self.sightings["texts"].add(hash_of(text_id.encode()), identity, number)
                self.sightings["wordings"].add(hash_of(text_id.encode()), characters, number)
                self.figures.captions.identified += 1


def _line(place: str, reason: str) -> str:
    return f"{place}: {reason}".replace("\n", " ")


def _kind(reason: UnusableRecord) -> str:
    if isinstance(reason, MissingImage):
        return MISSING
    return DAMAGED_SHARD if isinstance(reason, DamagedShard) else UNREADABLE
