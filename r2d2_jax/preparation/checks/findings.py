"""The findings of a report in plain words: errors, to be mended before training, and warnings.

The limits are our decision where no flag sets them.
"""

from collections.abc import Iterator

from r2d2_jax.preparation.checks.report import Report, SharedReport, SplitReport, share

TRAIN = "train"
_REPEATED_CAPTIONS = 0.05  # share of a split's captions
_CUT_CAPTIONS = 0.05
_SMALL_IMAGES = 0.1  # share of a split's images
_UNEVEN = 2  # times the mean number of records in a shard
_KINDS = {
    "missing": "missing image",
    "truncated": "truncated image",
    "undecodable": "undecodable image",
    "empty_caption": "empty caption",
    "no_image_id": "no image_id",
    "unreadable": "unreadable",
    "damaged_shard": "in a damaged shard",
}


def findings(report: Report) -> tuple[list[str], list[str]]:
    """Errors and warnings, one line each; both lists are empty if nothing speaks against training."""
    errors, warnings = list(_errors(report)), list(_warnings(report))
    return errors, warnings


def _errors(report: Report) -> Iterator[str]:
    if not any(split.entries for split in report.splits.values()):
        yield "there is no entry at all: every annotation is unusable, or there is none"
    for name, split in report.splits.items():
        if split.entries and not split.usable:
            yield f"{name}: none of the {split.entries:,} entries is usable"
        elif name == TRAIN and split.usable and not split.captioned:
            yield f"{name}: none of the {split.usable:,} usable entries has a caption to learn from"
        yield from _split_errors(name, split, report)
    total = report.lines + sum(split.entries + split.lines for split in report.splits.values())
    if share(report.lines, total) > report.settings.max_broken_share:
        yield (
            f"{report.lines:,} of the {total:,} annotations are unusable lines that name no split, more than "
            f"--max_broken_share={report.settings.max_broken_share:g} allows"
        )
    for shared in report.shared:
        if shared.other == TRAIN and shared.images_by_bytes:
            yield f"{_same_images(shared)}: what is measured on {shared.split} would be learned by heart"


def _split_errors(name: str, split: SplitReport, report: Report) -> Iterator[str]:
    settings = report.settings
    if _too_many_unusable(split, report):
        yield f"{_unusable(name, split)}, more than --max_broken_share={settings.max_broken_share:g} allows"
    if split.damaged_shards:
        yield (
            f"{name}: {len(split.damaged_shards):,} of the shards are missing or damaged, which training stops at: "
            f"{', '.join(split.damaged_shards)}"
        )
    tokens = split.captions.tokens
    if tokens and tokens.unknown_share > settings.max_unknown_share:
        yield (
            f"{name}: {tokens.unknown_share:.2%} of the tokens are [UNK], more than "
            f"--max_unknown_share={settings.max_unknown_share:g} allows; the vocabulary may be the wrong one"
        )


def _warnings(report: Report) -> Iterator[str]:
    if report.settings.vocabulary is None:
        yield "there is no vocabulary, so tokens are not measured; set --vocabulary to a vocab.txt"
    if report.splits and TRAIN not in report.splits:
        yield f"there is no split {TRAIN}; there are {', '.join(report.splits)}"
    for name, split in report.splits.items():
        if split.all_unusable and not _too_many_unusable(split, report):
            yield f"{_unusable(name, split)}; they are left out"
        yield from _image_warnings(name, split, report.settings.image_size)
        yield from _caption_warnings(name, split, report.settings.text_length)
        yield from _shard_warnings(name, split, report.settings.hosts)
    for shared in report.shared:
        if shared.other != TRAIN and shared.images_by_bytes:
            yield _same_images(shared)
        if shared.different_images_by_id:
            yield (
                f"{shared.split}: {shared.different_images_by_id:,} images have the image_id of an image of "
                f"{shared.other} with other bytes; image_ids should differ across splits"
            )
        if shared.captions:
            count = report.splits[shared.split].captions.count
            yield f"{shared.split}: {_of(shared.captions, count, 'captions')} also occur in {shared.other}"


def _image_warnings(name: str, split: SplitReport, image_size: int) -> Iterator[str]:
    images = split.images
    if share(images.smaller, split.usable) > _SMALL_IMAGES:
        yield (
            f"{name}: {_of(images.smaller, split.usable, 'images')} have a short side below "
            f"--image_size={image_size} pixels and will be enlarged"
        )
    if images.damaged:
        yield (
            f"{name}: {_of(images.damaged, split.usable, 'images')} are damaged, although they can be decoded; "
            "prepare_data.py leaves such images out with --refuse_damaged. The first: "
            f"{'; '.join(images.first_damaged)}"
        )
    if images.repeated:
        yield (
            f"{name}: {_of(images.repeated, split.usable, 'images')} have the same bytes as an image of another "
            "image_id; training takes them for different images"
        )


def _caption_warnings(name: str, split: SplitReport, text_length: int) -> Iterator[str]:
    captions, tokens = split.captions, split.captions.tokens
    # A text that several images have by its text_id is right for each of them.
    repeated = captions.repeated - captions.text_ids.get("captions_of_several_images", 0)
    if share(repeated, captions.count) > _REPEATED_CAPTIONS:
        yield (
            f"{name}: {_of(repeated, captions.count, 'captions')} are also a caption of another image; "
            "contrastive losses take these for mistakes"
        )
    if reworded := captions.text_ids.get("of_several_wordings", 0):
        yield (
            f"{name}: {_of(reworded, captions.text_ids['texts'], 'text_ids')} stand for captions of different "
            "characters; training and evaluation take these for one text"
        )
    if tokens and tokens.cut_share > _CUT_CAPTIONS:
        yield (
            f"{name}: {_of(tokens.cut, captions.count, 'captions')} are longer than --text_length={text_length} "
            "tokens and will be cut"
        )


def _shard_warnings(name: str, split: SplitReport, hosts: int) -> Iterator[str]:
    shards = split.shards
    if shards is None:
        return
    if shards.number < hosts:
        yield f"{name}: fewer shards ({shards.number:,}) than --hosts={hosts}; prepare it with one or more for each"
    mean = split.entries / shards.number
    if shards.records.max > _UNEVEN * mean:
        yield (
            f"{name}: shards are very uneven: the largest has {shards.records.max:,} records, more than twice the "
            f"mean of {mean:,.0f}"
        )


def _too_many_unusable(split: SplitReport, report: Report) -> bool:
    return share(split.all_unusable, split.entries + split.lines) > report.settings.max_broken_share


def _unusable(name: str, split: SplitReport) -> str:
    total = split.entries + split.lines
    kinds = [f"{count:,} {_KINDS[kind]}" for kind, count in split.unusable.items() if count]
    kinds += [f"{split.lines:,} unusable annotation"] * bool(split.lines)
    return f"{name}: {_of(split.all_unusable, total, 'entries')} are unusable: {', '.join(kinds)}"


def _of(count: int, total: int, what: str) -> str:
    return f"{count:,} of the {total:,} {what} ({count / total:.2%})"


def _same_images(shared: SharedReport) -> str:
    return f"{shared.split}: {shared.images_by_bytes:,} images are also in {shared.other} by their bytes"
