"""The report on a corpus made by hand, on datasets with and without repeats, and on other kinds of corpora."""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from small_check import IMAGES, checked, settings
from small_data import encode, example

from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.report import Limits, Range, Report
from r2d2_jax.preparation.checks.sources import CorpusSource, DatasetSource
from r2d2_jax.preparation.checks.table import NOT_MEASURED, table
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.corpus import Corpus, Piece
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.examples import Annotation, Entry, Example
from r2d2_jax.preparation.writer import write_dataset


def test_entries(report: Report) -> None:
    assert {
        name: (split.entries, split.usable, split.captioned, split.lines) for name, split in report.splits.items()
    } == {"train": (7, 4, 4, 1), "validation": (1, 1, 1, 0), "test": (3, 3, 3, 0)}
    assert report.lines == 2  # the empty caption is found when the line is read, before its split counts


def test_broken_images_of_each_kind(report: Report, corpus: JsonLines) -> None:
    train = report.splits["train"]
    assert {kind: count for kind, count in train.unusable.items() if count} == {
        "missing": 1,
        "truncated": 1,
        "undecodable": 1,
    }
    assert train.first_unusable["missing"][0].startswith(f"{corpus.annotations}:7: image ")
    assert train.first_unusable["truncated"][0].startswith(f"{corpus.annotations}:5: image cut.jpg: ")
    assert train.first_unusable["undecodable"] == [
        f"{corpus.annotations}:6: image text.jpg: not an image: 16 bytes in no known format"
    ]
    assert [line.split(": ", 1)[0] for line in report.first_lines] == [f"{corpus.annotations}:{n}" for n in (8, 13, 14)]


def test_images(report: Report, corpus: JsonLines) -> None:
    images = report.splits["train"].images
    assert images.width == Range(20, 40, 64, 64)
    assert images.height == Range(30, 30, 90, 90)
    assert images.smaller == 3
    assert images.formats == {"JPEG": 3, "PNG": 1}
    assert images.modes == {"RGB": 4}
    assert images.colours == {"CMYK": 0, "palette": 0, "alpha": 0, "16 bit": 0}
    assert {name: count for name, count in images.aspect_ratios.items() if count} == {"3:4 to 4:3": 3, "under 1:3": 1}
    sizes = sorted(len(IMAGES[name]) for name in ("a.jpg", "again.jpg", "tall.png", "c.jpg"))
    assert images.bytes == Range(sizes[0], sizes[1], sizes[3], sizes[3])
    assert (images.different, images.repeated) == (3, 2)
    assert images.first_repeated == [f"{corpus.annotations}:1 = {corpus.annotations}:2"]


def test_captions(report: Report) -> None:
    captions = report.splits["train"].captions
    assert captions.count == 8
    assert captions.per_image == Range(1, 2, 3, 3)
    assert captions.characters == Range(1, 2, 10, 10)
    assert captions.different == 5
    assert captions.duplicated == 1
    assert (captions.repeated, captions.repeated_share) == (3, 3 / 8)  # 绿球 is said twice, of one image
    assert captions.most_frequent == {"一只狗": 3}


def test_tokens(report: Report) -> None:
    tokens = report.splits["train"].captions.tokens
    assert tokens
    assert tokens.length == Range(3, 4, 12, 12)
    assert (tokens.cut, tokens.cut_share) == (1, 1 / 8)
    assert (tokens.unknown, tokens.unknown_share) == (1, 1 / 26)
    assert tokens.unknown_characters == {"猫": 1}


def test_punctuation_as_in_training(vocabulary: Path, tmp_path: Path) -> None:
    """The vocabulary lacks the ellipsis and, too, what it is mapped to: three dots."""
    write_dataset(tmp_path, {"train": [example(0, "狗…")]})
    for mapped, characters in ((True, {".": 3}), (False, {"…": 1})):
        tokens = checked(tmp_path, vocabulary=str(vocabulary), map_punctuation=mapped).splits["train"].captions.tokens
        assert tokens
        assert tokens.unknown_characters == characters


def test_what_splits_share(report: Report, corpus: JsonLines) -> None:
    file = corpus.annotations
    assert [
        (
            pair.split,
            pair.other,
            pair.captions,
            pair.images_by_bytes,
            pair.images_by_id,
            pair.different_images_by_id,
            pair.first_images,
        )
        for pair in report.shared
    ] == [
        ("validation", "train", 1, 0, 0, 0, []),
        ("test", "train", 1, 2, 1, 0, [f"{file}:11 = {file}:1", f"{file}:12 = {file}:4"]),
        ("test", "validation", 1, 0, 0, 0, []),
    ]


def test_splits_that_number_their_images_from_0(tmp_path: Path) -> None:
    """Image 4 is the same in both, 3 stands for two images in one split; all other numbers for one in each."""

    def made(identity: int, seed: int) -> Example:
        return example(seed, image_id=str(identity))

    train = [*(made(number, number) for number in range(5)), made(3, 50)]
    valid = [made(number, number + 10 * (number < 3)) for number in range(5)]
    write_dataset(tmp_path, {"train": train, "valid": valid})
    (pair,) = checked(tmp_path).shared
    assert (pair.split, pair.images_by_bytes, pair.images_by_id, pair.different_images_by_id) == ("valid", 2, 5, 4)


def test_different_images_of_one_number_stop_no_training(tmp_path: Path) -> None:
    splits = {"train": 0, "valid": 10}
    write_dataset(
        tmp_path,
        {
            name: [example(first + n, f"{first + n}", image_id=str(n)) for n in range(5)]
            for name, first in splits.items()
        },
    )
    report = checked(tmp_path)
    assert (report.status, report.errors) == (0, [])
    assert (
        "valid: 5 images have the image_id of an image of train with other bytes; image_ids should differ across splits"
    ) in report.warnings


def test_images_in_several_records(tmp_path: Path) -> None:
    """Under the same image_id three times, and once under another, which is another matter."""
    image = encode(seed=1)
    records = [example(n, f"{n}", image=image, image_id="甲" if n < 3 else "乙") for n in range(4)]
    write_dataset(tmp_path, {"train": [*records, example(9, "狗", "球", "狗", "狗")], "test": [records[0]]})
    report = checked(tmp_path)
    train = report.splits["train"]
    assert (train.images.different, train.images.repeated, train.images.duplicated) == (2, 4, 3)
    first, _, second = train.images.first_duplicated[0].partition(" = ")
    source = DatasetSource(str(tmp_path))
    entries = {entry.place: entry.outcome for part in source.parts() for entry in source.read(part)}
    assert first != second
    assert [getattr(entries[place], "image_id", None) for place in (first, second)] == ["甲", "甲"]
    assert report.splits["test"].images.duplicated == 0
    assert (train.captions.duplicated, train.captions.repeated) == (2, 0)
    assert f"train, the same image under the same image_id in several records:\n  {first} = {second}\n" in table(report)


def test_without_a_vocabulary_tokens_are_not_measured(corpus: JsonLines) -> None:
    report = check(functools.partial(CorpusSource, corpus), "corpus", settings())
    assert report.splits["train"].captions.tokens is None
    (row,) = [line for line in table(report).splitlines() if line.startswith("  [UNK] share")]
    assert row.split("  ")[-1].strip() == NOT_MEASURED
    assert "there is no vocabulary, so tokens are not measured; set --vocabulary to a vocab.txt" in report.warnings


def test_the_number_of_processes_changes_nothing(many: Path, vocabulary: Path) -> None:
    one = checked(many, vocabulary=str(vocabulary))
    assert one == checked(many, processes=2, vocabulary=str(vocabulary))
    train = one.splits["train"]
    assert list(one.splits) == ["train", "test"]
    assert train.images.repeated
    assert train.captions.repeated
    assert one.shared[0].images_by_id == 5


def test_the_corpus_and_the_dataset_of_it_agree(many: Path, vocabulary: Path, tmp_path: Path) -> None:
    """Number by number, but for places and shards: the same examples through both ways of reading."""
    source = DatasetSource(str(many))
    (tmp_path / "images").mkdir()
    lines = []
    for part in source.parts():
        for entry in source.read(part):
            assert isinstance(entry.outcome, Example)
            name = f"{entry.place}.jpg"
            (tmp_path / "images" / name).write_bytes(entry.outcome.image)
            lines.append(
                json.dumps(
                    {
                        "image": name,
                        "captions": entry.outcome.captions,
                        "split": part.split,
                        "image_id": entry.outcome.image_id,
                    }
                )
            )
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    corpus = JsonLines(str(tmp_path / "images"), str(tmp_path / "captions.jsonl"))
    of_corpus = check(functools.partial(CorpusSource, corpus), "corpus", settings(vocabulary))
    of_dataset = checked(many, vocabulary=str(vocabulary))
    for name, split in of_dataset.splits.items():
        same = replace(
            of_corpus.splits[name],
            shards=split.shards,
            images=replace(
                of_corpus.splits[name].images,
                first_repeated=split.images.first_repeated,
                first_duplicated=split.images.first_duplicated,
            ),
        )
        assert same == split
    assert [replace(pair, first_images=[]) for pair in of_corpus.shared] == [
        replace(pair, first_images=[]) for pair in of_dataset.shared
    ]


def test_parts_of_a_shard(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checked(many)
    monkeypatch.setattr("r2d2_jax.preparation.checks.sources.PART_RECORDS", 2)
    assert checked(many) == whole


def test_shards(many: Path) -> None:
    shards = checked(many, hosts=3).splits["train"].shards
    assert shards
    assert (shards.number, shards.records, shards.per_host) == (7, Limits(5, 6), Limits(2, 3))


class Classes(JsonLines):
    """Lines of an image's name and the number of its class."""

    name, class_names = "classes", ("一", "二", "三")  # type: ignore[assignment]

    def parse(self, line: str) -> Annotation:
        image, label = line.split()
        return Annotation(image, (), "test", label=int(label))


def test_labels(corpus: JsonLines, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a.jpg 2\nc.jpg 0\nd.jpg 2\ntext.jpg 2\ne.jpg 7\n")
    classes = Classes(str(corpus.images), str(tmp_path / "labels.txt"))
    report = check(functools.partial(CorpusSource, classes), "classes", settings(max_broken_share=0.5))
    assert report.splits["test"].labels == {"一": 1, "二": 0, "三": 2, "label 7": 1}
    assert report.splits["test"].captions.per_image == Range(0, 0, 0, 0)
    assert report.status == 0


class Bundles(Corpus):
    """Pairs of files, each with one entry a line: caption, image_id; every pair makes a shard."""

    name, unit = "bundles", "B"

    def check(self) -> None:
        pass

    def inputs(self) -> list[Path]:
        assert self.images
        return sorted(self.images.iterdir())

    def index(self, catalog: Catalog) -> None:
        pass

    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        pieces = [Piece("train", path.stat().st_size, archive=str(path)) for path in self.inputs()]
        return {"train": [tuple(pieces[:2]), tuple(pieces[2:])]}

    def read(self, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
        for line in Path(piece.archive).read_text(encoding="utf-8").splitlines():
            caption, image_id = line.split()
            pair = Example(encode(), (caption,), image_id)
            yield Entry(f"{Path(piece.archive).name}#{image_id}", pair, len(line.encode()) + 1)


def test_archives_without_a_catalog(tmp_path: Path) -> None:
    for number, lines in enumerate(["一 a\n二 b\n", "三 c\n四 d\n", "五 e\n", "四 f\n三 g\n三 c\n"]):
        (tmp_path / f"{number}").write_text(lines, encoding="utf-8")
    report = check(functools.partial(CorpusSource, Bundles(str(tmp_path))), "bundles", settings())
    train = report.splits["train"]
    assert train.captions.most_frequent == {"三": 3, "四": 2}
    assert train.images.repeated == 8
    assert train.images.first_repeated == ["0#a = 0#b"]
