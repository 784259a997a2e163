"""Preparing a dataset from a folder of images and a JSON-lines file of captions."""

import collections
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tqdm

from r2d2_jax.data.records import Example, SplitSummary, UnusableRecord, write_dataset
from r2d2_jax.data.tokenizer import load_tokenizer
from r2d2_jax.data.transforms import map_ahead, verify_image
from r2d2_jax.errors import UserError

logger = logging.getLogger(__name__)

_SPLIT_ALIASES = {"val": "validation"}
_FIRST_NAMES = 10  # how many bad lines a message lists
_LOG_SECONDS = 10.0  # between progress lines where there is no terminal
_EXPECTED = '{"image": "a.jpg", "captions": ["..."], "split": "train"}'


@dataclass(frozen=True)
class Preparation:
    """What came of a preparation.

    splits: what was written. skipped: split name -> number of its lines left out. bad_lines: the first ten of all lines
    left out, each with its place and reason. unassigned: number of lines left out that name no split.
    """

    splits: tuple[SplitSummary, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    bad_lines: tuple[str, ...] = ()
    unassigned: int = 0

    def table(self) -> str:
        """The splits as lines of text: records, captions, skipped lines, bytes."""
        rows: list[tuple[str, ...]] = [("split", "records", "captions", "skipped", "bytes", "shards")]
        for split in self.splits:
            counts = (split.records, split.captions, self.skipped.get(split.name, 0), split.bytes, split.shards)
            rows.append((split.name, *(f"{count:,}" for count in counts)))
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        if self.bad_lines:
            total = sum(self.skipped.values()) + self.unassigned
            lines += ["", f"{total:,} lines skipped, {self.unassigned:,} of them without a known split. The first:"]
            lines += [f"  {line}" for line in self.bad_lines]
        return "\n".join(lines)


class AnnotatedImages:
    """The usable image-text pairs of an annotation file, split by split; counts what it has to skip.

    One line of the file describes one image: "image" (a path inside the image folder), "captions" (at least one text),
    "split" ("val" is taken for "validation"), and optionally "image_id" (by default the image's path). Lines are never
    held in memory; the file is read once for the splits' sizes and once more for each split.

    Attributes:
        sizes: split name -> number of lines, in the order in which the file first names them.
        skipped: split name -> number of lines skipped so far. unassigned: lines skipped without a known split.
        bad_lines: the first ten lines that were skipped.
    """

    def __init__(
        self, images: str | os.PathLike[str], annotations: str | os.PathLike[str], max_broken_share: float
    ) -> None:
        """Reads the annotation file once, without the images.

        Raises:
            UserError: one of the two does not exist, no line is usable, or too many are not.
        """
        self._images, self._annotations = Path(images).expanduser(), Path(annotations).expanduser()
        self._max_broken_share = max_broken_share
        if not self._images.is_dir():
            raise UserError(f"image folder {self._images} does not exist; set --images to the folder with the images")
        if not self._annotations.is_file():
            raise UserError(f"annotation file {self._annotations} does not exist; set --annotations to a JSON-lines "
                            f"file with lines like {_EXPECTED}")
        self.sizes: dict[str, int] = {}
        self.skipped: collections.Counter[str] = collections.Counter()
        self.unassigned = 0
        self.bad_lines: list[str] = []
        self._scan()

    def examples(self, split: str) -> Iterator[Example]:
        """Yields the usable examples of a split in the order of the file, after decoding every image.

        Raises:
            UserError: more than the tolerated share of all lines is unusable; raised as soon as that is certain.
        """
        lines = (line for line in self._lines() if _split_of(line[1]) == split)
        for number, outcome in map_ahead(lambda line: (line[0], self._load(line[1])), lines):
            if isinstance(outcome, Example):
                yield outcome
            else:
                self.skipped[split] += 1
                self._note(number, str(outcome))
                self._stop_above_share()

    def _scan(self) -> None:
        for number, line in self._lines():
            split = _split_of(line)
            if split is None:
                self.unassigned += 1
                self._note(number, _malformed(line) or 'no "split"')
            else:
                self.sizes[split] = self.sizes.get(split, 0) + 1
        if not self.sizes:
            raise UserError(f"annotation file {self._annotations} has no usable line; expected lines like {_EXPECTED}"
                            + "".join(f"\n  {line}" for line in self.bad_lines))
        self._stop_above_share()

    def _lines(self) -> Iterator[tuple[int, str]]:
        with self._annotations.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line

    def _load(self, line: str) -> Example | UnusableRecord:
        reason = _malformed(line)
        if reason:
            return UnusableRecord(reason)
        entry = json.loads(line)
        path = self._images / entry["image"]
        try:
            image = path.read_bytes()
        except OSError as error:
            return UnusableRecord(f"image {path} cannot be read: {error.strerror}")
        try:
            verify_image(image)
        except UnusableRecord as error:
            return UnusableRecord(f"image {path}: {error}")
        return Example(image, tuple(entry["captions"]), entry.get("image_id", entry["image"]))

    def _note(self, number: int, reason: str) -> None:
        text = f"{self._annotations}:{number}: {reason}"
        logger.warning("skipped %s", text)
        if len(self.bad_lines) < _FIRST_NAMES:
            self.bad_lines.append(text)

    def _stop_above_share(self) -> None:
        bad = self.unassigned + sum(self.skipped.values())
        total = self.unassigned + sum(self.sizes.values())
        if bad > self._max_broken_share * total:
            raise UserError(f"{bad} of the {total} lines of {self._annotations} are unusable so far, more than "
                            f"--max-broken-share={self._max_broken_share:g} allows; mend them or raise the share. The "
                            "first:\n" + "\n".join(f"  {line}" for line in self.bad_lines))


def prepare_dataset(
    images: str,
    annotations: str,
    output: str,
    *,
    vocabulary: str = "",
    shards: int = 1,
    max_broken_share: float = 0.01,
) -> Preparation:
    """Writes a folder of images with captions as a dataset that `RecordSource` reads.

    Args:
        images: folder of the images.
        annotations: JSON-lines file, see `AnnotatedImages`.
        output: folder to hold the dataset.
        vocabulary: a vocab.txt to copy beside the dataset; "" copies none.
        shards: number of files a split.
        max_broken_share: largest tolerated share of unusable lines, 0 to 1.

    Raises:
        UserError: whatever is wrong with the input; the output then holds no dataset.
    """
    if vocabulary:
        load_tokenizer(vocabulary, text_length=3)  # says what is wrong with it before the images are read
        if not Path(vocabulary).expanduser().is_file():
            raise UserError(f"--vocabulary={vocabulary} is not a file; expected a vocab.txt to copy beside the dataset")
    pairs = AnnotatedImages(images, annotations, max_broken_share)
    progress = _Progress(sum(pairs.sizes.values()))
    examples = {split: progress.count(pairs, split) for split in pairs.sizes}
    with progress:
        summaries = write_dataset(output, examples, shards=shards)
    if vocabulary:
        shutil.copyfile(Path(vocabulary).expanduser(), Path(output).expanduser() / "vocab.txt")
    skipped = {split: pairs.skipped[split] for split in pairs.sizes}
    return Preparation(tuple(summaries), skipped, tuple(pairs.bad_lines), pairs.unassigned)


class _Progress:
    """A bar on a terminal, a line every ten seconds elsewhere; both with rate and remaining time."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> "_Progress":
        self._bar = tqdm.tqdm(total=self._total, unit=" records", disable=not self._terminal)
        self._done, self._start = 0, time.monotonic()
        self._next_line = self._start + _LOG_SECONDS
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.close()

    def count(self, pairs: AnnotatedImages, split: str) -> Iterable[Example]:
        """Passes the examples of a split through, and counts them."""
        for example in pairs.examples(split):
            yield example
            self._done += 1
            self._bar.update()
            now = time.monotonic()
            if not self._terminal and now >= self._next_line:
                self._next_line = now + _LOG_SECONDS
                rate = self._done / (now - self._start)
                print(f"{split}: {self._done:,} of {self._total:,} records, {rate:,.0f} records/s, "
                      f"{(self._total - self._done) / rate:,.0f} s left", file=sys.stderr)


def _split_of(line: str) -> str | None:
    """The split that a line names, or None if it names none."""
    try:
        split = json.loads(line).get("split")
    except (ValueError, AttributeError):
        return None
    return _SPLIT_ALIASES.get(split, split) if isinstance(split, str) and split else None


def _malformed(line: str) -> str:
    """What is wrong with a line, or ""."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        return f"invalid JSON ({error}); expected {_EXPECTED}"
    if not isinstance(entry, dict):
        return f"not a JSON object; expected {_EXPECTED}"
    absent = [key for key in ("image", "captions", "split") if key not in entry]
    if absent:
        return f"no {', '.join(map(json.dumps, absent))}; expected {_EXPECTED}"
    if not _is_text(entry["image"]):
        return '"image" is not the path of an image'
    captions = entry["captions"]
    if not isinstance(captions, list) or not captions:
        return '"captions" is not a list with at least one text'
    if not all(map(_is_text, captions)):
        return '"captions" has an empty caption'
    if not _is_text(entry.get("image_id", entry["image"])):
        return '"image_id" is empty'
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
