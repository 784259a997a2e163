"""Assembles the report of a check from the files that its parts have written."""

from collections import Counter
from dataclasses import dataclass

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.checks.figures import FIRST_NAMES
from r2d2_jax.preparation.checks.images import ASPECT_RATIOS, COLOURS
from r2d2_jax.preparation.checks.parts import DAMAGED, SIGHTINGS, CheckJob, SplitFigures
from r2d2_jax.preparation.checks.repeats import Repeats, Sighting, find_repeats, hash_of
from r2d2_jax.preparation.checks.report import (
    CaptionReport,
    CheckSettings,
    ImageReport,
    Report,
    SharedReport,
    SplitReport,
    label_counts,
    most_common,
    range_of,
    shard_figures,
    share,
    text_id_counts,
    token_report,
    unusable_counts,
)
from r2d2_jax.preparation.checks.sources import Part
from r2d2_jax.preparation.examples import Example


@dataclass(frozen=True)
class Assembly:
    """The files of all parts, and the parts by their numbers."""

    job: CheckJob
    parts: list[Part]
    settings: CheckSettings

    def report(self, name: str) -> Report:
        """The report without its findings."""
        lines = self.job.source.unusable_lines(FIRST_NAMES)
        repeats = {kind: self._repeats(kind) for kind in SIGHTINGS}
        names = list(self.job.splits) + [split for split in lines.counts if split and split not in self.job.splits]
        splits = {split: self._split(split, repeats, lines.counts.get(split, 0)) for split in names}
        shared = [
            self._shared(split, other, repeats)
            for number, split in enumerate(self.job.splits)
            for other in self.job.splits[:number]
        ]
        return Report(name, self.settings, splits, shared, lines.counts.get("", 0), list(lines.first))

    def _repeats(self, kind: str) -> Repeats:
        with self.job.writing():
            return find_repeats([self.job.sightings_path(part, kind) for part in self.parts])

    def _split(self, split: str, repeats: dict[str, Repeats], lines: int) -> SplitReport:
        figures = SplitFigures()
        for part in self.parts:
            if part.split == split:
                figures.merge(self.job.figures(part))
        number = self.job.splits.index(split) if split in self.job.splits else -1
        shards = (self.job.source.shard_records() or {}).get(split)
        return SplitReport(
            entries=figures.entries,
            lines=lines,
            usable=figures.images.count,
            captioned=figures.captioned,
            unusable=unusable_counts(figures),
            first_unusable=figures.unusable.first.names,
            damaged_shards=dict(figures.damaged_shards),
            images=self._images(figures, repeats["bytes"], repeats["records"], number),
            captions=self._captions(figures, repeats, number),
            labels=label_counts(figures, self.job.source.class_names),
            shards=None if shards is None else shard_figures(shards, self.settings.hosts),
        )

    def _images(self, figures: SplitFigures, repeats: Repeats, records: Repeats, split: int) -> ImageReport:
        images = figures.images
        return ImageReport(
            different=repeats.different[split],
            width=range_of(images.widths),
            height=range_of(images.heights),
            smaller=images.short_sides.below(self.settings.image_size),
            bytes=range_of(images.file_sizes),
            aspect_ratios={name: images.aspect_ratios[name] for name in ASPECT_RATIOS},
            formats=most_common(images.formats),
            modes=most_common(images.modes),
            colours={colour: images.colours[colour] for colour in COLOURS},
            rotated=images.rotated,
            damaged=figures.damaged.counts[DAMAGED],
            first_damaged=figures.damaged.first.names.get(DAMAGED, []),
            repeated=repeats.repeated[split],
            first_repeated=self._most_frequent(repeats, split),
            duplicated=records.repeated[split],
            first_duplicated=self._most_frequent(records, split),
        )

    def _most_frequent(self, repeats: Repeats, split: int) -> list[str]:
        return [
            self._same((one.part, one.entry), (one.other_part, one.other_entry))
            for one in repeats.most_frequent.get(split, [])
        ]

    def _captions(self, figures: SplitFigures, kinds: dict[str, Repeats], split: int) -> CaptionReport:
        captions, repeats = figures.captions, kinds["captions"]
        return CaptionReport(
            count=captions.count,
            per_image=range_of(figures.captions_of_image),
            characters=range_of(captions.characters),
            different=repeats.different[split],
            duplicated=captions.duplicated,
            repeated=repeats.repeated[split],
            repeated_share=share(repeats.repeated[split], captions.count),
            most_frequent={self._text(one): one.count for one in repeats.most_frequent.get(split, [])},
            text_ids=text_id_counts(captions.identified, kinds["texts"], kinds["wordings"], split),
            tokens=token_report(figures, self.settings.text_length) if self.job.tokenizer else None,
        )

    def _shared(self, split: str, other: str, repeats: dict[str, Repeats]) -> SharedReport:
        pair = (self.job.splits.index(split), self.job.splits.index(other))
        same = Counter({kind: repeats[kind].shared[pair] for kind in SIGHTINGS})
        first = [
            self._same((one.part, one.entry), (two.part, two.entry))
            for kind in ("bytes", "identities")
            for one, two in repeats[kind].first_shared.get(pair, [])
        ]
        return SharedReport(
            split,
            other,
            same["captions"],
            same["bytes"],
            same["identities"],
            repeats["identities"].shared_by_others[pair],
            list(dict.fromkeys(first))[:FIRST_NAMES],
        )

    def _same(self, one: tuple[int, int], other: tuple[int, int]) -> str:
        return " = ".join(self.job.source.entry(self.parts[part], entry).place for part, entry in (one, other))

    def _text(self, seen: Sighting) -> str:
        entry = self.job.source.entry(self.parts[seen.part], seen.entry)
        captions = entry.outcome.captions if isinstance(entry.outcome, Example) else ()
        for caption in captions:
            if hash_of(caption.encode()) == seen.key:
                return caption
        raise UserError(f"{entry.place} has changed since the check began; check again when nothing writes to the data")
