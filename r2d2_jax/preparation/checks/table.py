"""Prints a report as lines of text; every figure comes from the report's JSON form."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from r2d2_jax.preparation.checks.report import Report

NOT_MEASURED = "not measured"

# The rows for every split: title, path in the split's JSON object, format.
ROWS = (
    ("entries", "entries", "number"),
    ("  usable", "usable", "number"),
    ("  with a caption", "captioned", "number"),
    ("  missing image", "unusable.missing", "number"),
    ("  truncated image", "unusable.truncated", "number"),
    ("  undecodable image", "unusable.undecodable", "number"),
    ("  empty caption", "unusable.empty_caption", "number"),
    ("  no image_id", "unusable.no_image_id", "number"),
    ("  unreadable", "unusable.unreadable", "number"),
    ("  in a damaged shard", "unusable.damaged_shard", "number"),
    ("unusable annotations", "lines", "number"),
    ("images, different", "images.different", "number"),
    ("  repeated, other image_id", "images.repeated", "number"),
    ("  in several records", "images.duplicated", "number"),
    ("  width, min/median/max", "images.width", "range"),
    ("  height, min/median/max", "images.height", "range"),
    ("  bytes, min/median/max", "images.bytes", "range"),
    ("  short side too small", "images.smaller", "number"),
    ("  turned by EXIF", "images.rotated", "number"),
    ("  damaged, yet decoded", "images.damaged", "number"),
    ("captions", "captions.count", "number"),
    ("  per image, min/median/max", "captions.per_image", "range"),
    ("  different", "captions.different", "number"),
    ("  repeated, other image", "captions.repeated", "number"),
    ("  twice in a record", "captions.duplicated", "number"),
    ("  repeated share", "captions.repeated_share", "share"),
    ("  characters, median/p95/max", "captions.characters", "tail"),
    ("  tokens, median/p95/max", "captions.tokens.length", "tail"),
    ("  cut", "captions.tokens.cut", "number"),
    ("  cut share", "captions.tokens.cut_share", "share"),
    ("  [UNK] tokens", "captions.tokens.unknown", "number"),
    ("  [UNK] share", "captions.tokens.unknown_share", "share"),
    ("shards", "shards.number", "number"),
    ("  records in one, min/max", "shards.records", "limits"),
    ("  of a host, min/max", "shards.per_host", "limits"),
)
_KEYS = {"range": ("min", "median", "max"), "tail": ("median", "p95", "max"), "limits": ("min", "max")}
# Counts by name: one block each, with a row for every name in any split.
BLOCKS = (
    ("aspect ratio, width:height", "images.aspect_ratios"),
    ("format", "images.formats"),
    ("colour mode", "images.modes"),
    ("colour", "images.colours"),
    ("class", "labels"),
    ("text_id", "captions.text_ids"),
)
# Places of images: a list for each split that has any.
PLACES = (
    ("damaged images that can be decoded", "first_damaged"),
    ("the same image under several image_ids", "first_repeated"),
    ("the same image under the same image_id in several records", "first_duplicated"),
)
# Counts by name: a list for each split that has any.
LISTS = (
    ("damaged shards and the records lost in them", "damaged_shards"),
    ("the most frequent captions of several images, and how often", "captions.most_frequent"),
    ("characters that became [UNK], and how often", "captions.tokens.unknown_characters"),
)


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values."""
    return dataclasses.asdict(report)


def table(report: Report) -> str:
    """The report for people: a table of the splits, lists, findings."""
    document = as_json(report)
    sections = [
        [f"{document['source']}"],
        _figures(document["splits"]),
        _lists(document),
        _shared(document["shared"]),
        _findings(document),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def value_at(tree: Any, path: str) -> Any:
    """The value at a path of keys with dots between; None if anything on the way is None."""
    for key in path.split("."):
        tree = None if tree is None else tree[key]
    return tree


def cell(value: Any, form: str) -> str:
    """A figure as text."""
    if value is None:
        return NOT_MEASURED
    if form == "share":
        return f"{value:.2%}"
    if form == "number":
        return f"{value:,}"
    return " / ".join(f"{value[key]:,}" for key in _KEYS[form])


def _figures(splits: dict[str, Any]) -> Iterator[str]:
    rows = [("", *splits)]
    rows += [(title, *(cell(value_at(split, path), form) for split in splits.values())) for title, path, form in ROWS]
    for title, path in BLOCKS:
        counts = [value_at(split, path) or {} for split in splits.values()]
        names = list(dict.fromkeys(name for count in counts for name in count))
        rows += [(title, *[""] * len(counts))] * bool(names)
        rows += [(f"  {name}", *(cell(count.get(name, 0), "number") for count in counts)) for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for title, *cells in rows:
        yield "  ".join([title.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()


def _lists(document: dict[str, Any]) -> Iterator[str]:
    for name, split in document["splits"].items():
        for kind, first in split["first_unusable"].items():
            yield f"{name}, {kind}, the first of {split['unusable'][kind]:,}:"
            yield from (f"  {line}" for line in first)
        for title, key in PLACES:
            if split["images"][key]:
                yield f"{name}, {title}:"
                yield from (f"  {line}" for line in split["images"][key])
        for title, path in LISTS:
            counts = value_at(split, path)
            if counts:
                yield f"{name}, {title}:"
                yield from _counted(counts)
    if document["first_lines"]:
        yield f"unusable annotations, {document['lines']:,} of them without a split; the first of all:"
        yield from (f"  {line}" for line in document["first_lines"])


def _counted(counts: dict[str, int]) -> Iterator[str]:
    for name, count in counts.items():
        yield f"  {count:,}  {_printable(name)}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else f"U+{ord(character):04X}" for character in text)


def _shared(pairs: list[dict[str, Any]]) -> Iterator[str]:
    for pair in pairs:
        yield (
            f"{pair['split']} and {pair['other']}: in both are {pair['captions']:,} captions, "
            f"{pair['images_by_bytes']:,} images by their bytes, {pair['images_by_id']:,} by their image_id, "
            f"{pair['different_images_by_id']:,} of these with other bytes"
        )
        yield from (f"  {line}" for line in pair["first_images"])


def _findings(document: dict[str, Any]) -> Iterator[str]:
    yield from (f"error: {line}" for line in document["errors"])
    yield from (f"warning: {line}" for line in document["warnings"])
    if not document["errors"] and not document["warnings"]:
        yield "nothing found that speaks against training"
