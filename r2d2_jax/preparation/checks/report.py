"""The report of a check: one tree of dataclasses, the source of both the JSON file and the printed table.

Its fields are the keys of the JSON file; docs/check_data.md lists them. None (null) means "not measured".
"""

from collections import Counter
from dataclasses import dataclass, field

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.checks.figures import Spread
from r2d2_jax.preparation.checks.parts import UNUSABLE_KINDS, SplitFigures
from r2d2_jax.preparation.checks.repeats import Repeats

UNKNOWN_CHARACTERS = 20  # how many a report names


@dataclass(frozen=True)
class CheckSettings:
    """The limits of a check, and the sizes of the training that the data is meant for.

    vocabulary: of the tokenizer; None leaves tokens unmeasured. text_length: tokens to which training cuts a text.
    image_size: side of the images in training, in pixels. hosts: number of hosts that training runs on.
    max_broken_share, max_unknown_share: the largest tolerated shares of unusable entries and of [UNK], 0 to 1.
    map_punctuation: as in the configuration of the training, see `load_tokenizer`.
    """

    vocabulary: str | None
    text_length: int
    image_size: int
    hosts: int
    max_broken_share: float
    max_unknown_share: float
    map_punctuation: bool = True

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of range."""
        for name, least in (("text_length", 3), ("image_size", 1), ("hosts", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; expected {least} or more")
        for name in ("max_broken_share", "max_unknown_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name):g}; expected a share, 0 to 1")


@dataclass(frozen=True)
class Range:
    """Minimum, median, 95th percentile and maximum of some numbers."""

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True)
class Limits:
    """Minimum and maximum of some numbers."""

    min: int
    max: int


@dataclass(frozen=True)
class ImageReport:
    """Figures of usable images; see `ImageFigures` and `Repeats`.

    damaged: images that can be decoded although part of them is damaged. first_damaged: places and reasons of a few.
    different: number of different images by their bytes. smaller: images whose short side is less than image_size.
    repeated: images with the same bytes as one of another image_id. duplicated: images with the same bytes and the same
        image_id as one of another record. first_repeated, first_duplicated: places of the first few, "PLACE = PLACE".
    """

    different: int
    width: Range | None
    height: Range | None
    smaller: int
    bytes: Range | None
    aspect_ratios: dict[str, int]
    formats: dict[str, int]
    modes: dict[str, int]
    colours: dict[str, int]
    rotated: int
    damaged: int
    first_damaged: list[str]
    repeated: int
    first_repeated: list[str]
    duplicated: int
    first_duplicated: list[str]


@dataclass(frozen=True)
class TokenReport:
    """Figures of captions in tokens, CLS and SEP included; `cut` counts the captions longer than text_length."""

    length: Range | None
    cut: int
    cut_share: float
    unknown: int
    unknown_share: float
    unknown_characters: dict[str, int]


@dataclass(frozen=True)
class CaptionReport:
    """Figures of the captions of usable images.

    per_image: captions of an image. different: number of different texts.
    duplicated: captions that repeat an earlier one of the same record.
    repeated: captions whose text another image of the split has too. most_frequent: text -> occurrences, of the most
        frequent among these. text_ids: figures of texts that have an identity, see `text_id_counts`.
    """

    count: int
    per_image: Range | None
    characters: Range | None
    different: int
    duplicated: int
    repeated: int
    repeated_share: float
    most_frequent: dict[str, int]
    text_ids: dict[str, int]
    tokens: TokenReport | None


@dataclass(frozen=True)
class ShardFigures:
    """Shards of a split: their number, the records in one, and the shards of a host."""

    number: int
    records: Limits
    per_host: Limits


@dataclass(frozen=True)
class SplitReport:
    """Figures of one split.

    entries: usable and unusable ones. lines: annotations that were unusable, so that no entry came of them.
    captioned: usable entries with a caption.
    unusable: kind -> entries. first_unusable: kind -> the first few. damaged_shards: file -> records lost in it.
    labels: class -> usable entries; None without classes. shards: None for a corpus that is not prepared.
    """

    entries: int
    lines: int
    usable: int
    captioned: int
    unusable: dict[str, int]
    first_unusable: dict[str, list[str]]
    damaged_shards: dict[str, int]
    images: ImageReport
    captions: CaptionReport
    labels: dict[str, int] | None
    shards: ShardFigures | None

    @property
    def all_unusable(self) -> int:
        """Number of unusable entries and unusable lines."""
        return self.lines + sum(self.unusable.values())


@dataclass(frozen=True)
class SharedReport:
    """What a split shares with another split before it.

    captions: captions of `split` that are also in `other`; images_by_bytes and images_by_id likewise.
    different_images_by_id: those of images_by_id whose image_id has different bytes somewhere in the two splits.
    first_images: places in both, "PLACE = PLACE", of the first few that are the same by bytes, then by image_id.
    """

    split: str
    other: str
    captions: int
    images_by_bytes: int
    images_by_id: int
    different_images_by_id: int
    first_images: list[str]


@dataclass(frozen=True)
class Report:
    """Everything that a check found.

    lines: unusable annotations that name no split. first_lines: the first few unusable annotations of all.
    errors, warnings: in plain words. status: 0, or 1 if there is an error.
    """

    source: str
    settings: CheckSettings
    splits: dict[str, SplitReport]
    shared: list[SharedReport]
    lines: int
    first_lines: list[str]
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    status: int = 0


def range_of(spread: Spread) -> Range | None:
    """The range of the counted numbers; None without numbers."""
    median, p95 = spread.quantile(0.5), spread.quantile(0.95)
    if spread.minimum is None or spread.maximum is None or median is None or p95 is None:
        return None
    return Range(spread.minimum, median, p95, spread.maximum)


def most_common(counts: Counter[str], limit: int | None = None) -> dict[str, int]:
    """The counts in descending order, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit])


def share(count: int, total: int) -> float:
    """count / total, or 0 if the total is 0."""
    return count / total if total else 0.0


def token_report(figures: SplitFigures, text_length: int) -> TokenReport:
    """The report on the tokens of captions that were measured with a tokenizer."""
    captions = figures.captions
    cut = captions.tokens.above(text_length)
    return TokenReport(
        length=range_of(captions.tokens),
        cut=cut,
        cut_share=share(cut, captions.count),
        unknown=captions.unknown_tokens,
        unknown_share=share(captions.unknown_tokens, captions.text_tokens),
        unknown_characters=most_common(captions.unknown_characters, UNKNOWN_CHARACTERS),
    )


def text_id_counts(captions: int, texts: Repeats, wordings: Repeats, split: int) -> dict[str, int]:
    """Figures of captions with a text_id; {} where none has one.

    Args:
        captions: how many have one.
        texts, wordings: text_ids by the image that has them, and by the characters of the caption.
        split: the split's number.
    """
    if not captions:
        return {}
    return {
        "captions": captions,
        "texts": texts.different[split],
        "of_several_images": texts.several[split],
        "captions_of_several_images": texts.repeated[split],
        "of_several_wordings": wordings.several[split],
    }


def unusable_counts(figures: SplitFigures) -> dict[str, int]:
    """Kind -> number of unusable entries, zeros included."""
    return {kind: figures.unusable.counts[kind] for kind in UNUSABLE_KINDS}


def label_counts(figures: SplitFigures, class_names: tuple[str, ...]) -> dict[str, int] | None:
    """Class -> number of usable entries, zeros included; a label without a class is named by its number."""
    if not class_names and not figures.labels:
        return None
    names = dict(enumerate(class_names)) | {
        label: f"label {label}" for label in sorted(figures.labels) if not 0 <= label < len(class_names)
    }
    return {name: figures.labels[label] for label, name in names.items()}


def shard_figures(records: list[int], hosts: int) -> ShardFigures:
    """Figures of shards with these numbers of records, dealt to the hosts in turn."""
    number = len(records)
    return ShardFigures(number, Limits(min(records), max(records)), Limits(number // hosts, -(-number // hosts)))
