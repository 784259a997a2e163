"""A catalog gives back what was added, numbered split by split, with captions of one image together."""

import pickle
from pathlib import Path

import pytest

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.corpora.catalog import Blob, Catalog
from r2d2_jax.preparation.examples import Annotation, Place


def at(line: int, file: str = "a.txt") -> Place:
    return Place(file, line)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """An empty one, still open for writing."""
    return Catalog(tmp_path / "catalog.sqlite", create=True)


def reopened(catalog: Catalog) -> Catalog:
    catalog.close()
    return Catalog(catalog.path)


def test_captions_meet_at_their_image(catalog: Catalog) -> None:
    for number, (image, text) in enumerate([("x", "一"), ("y", "二"), ("x", "三\"'"), ("y", "四"), ("x", "五")]):
        catalog.add(at(number + 1), "train", Annotation(image, (text,)), grouped=True)
    catalog = reopened(catalog)
    assert catalog.sizes() == {"train": 2}
    assert list(catalog.entries("train", 0, 9)) == [
        (at(1), Annotation("x", ("一", "三\"'", "五"), "train", "x")),
        (at(2), Annotation("y", ("二", "四"), "train", "y")),
    ]


def test_text_ids_stay_with_their_captions(catalog: Catalog) -> None:
    """A gallery image has no caption; a caption without an id has none beside others that have one."""
    for number, (image, ids) in enumerate([("x", ("1",)), ("y", ()), ("x", ("",)), ("x", ("2",))]):
        catalog.add(at(number), "train", Annotation(image, (f"{number}",), text_ids=ids), grouped=True)
    catalog.add(at(9), "train", Annotation("z", ()), grouped=True)
    catalog = reopened(catalog)
    assert catalog.has_text_ids
    assert [entry.text_ids for _, entry in catalog.entries("train", 0, 9)] == [("1", "", "2"), ("",), ()]


def test_a_catalog_of_a_version_without_text_ids_goes_on_without(catalog: Catalog) -> None:
    catalog.add(at(1), "train", Annotation("x", ("一",)), grouped=True)
    catalog._database.execute("DROP TABLE text_id")
    catalog = reopened(catalog)
    assert not catalog.has_text_ids
    assert [entry for _, entry in catalog.entries("train", 0, 9)] == [Annotation("x", ("一",), "train", "x")]


def test_many_captions_of_an_image_cost_no_more_than_those_of_many_images(tmp_path: Path) -> None:
    steps = []
    for name, images in (("one", 1), ("many", 4000)):
        catalog, counted = Catalog(tmp_path / name, create=True), [0]

        def count(counted: list[int] = counted) -> None:
            counted[0] += 1

        catalog._database.set_progress_handler(count, 100)  # called after so many steps of SQLite's machine
        for line in range(4000):
            catalog.add(at(line), "train", Annotation(f"{line % images}", (f"{line}",)), grouped=True)
        steps.append(counted[0])
        ((_, first), *_) = reopened(catalog).entries("train", 0, 1)
        assert first.captions == tuple(f"{line}" for line in range(0, 4000, images))
    assert steps[0] < 3 * steps[1] + 100


def test_what_is_unique_may_be_what_groups(catalog: Catalog) -> None:
    catalog.add(at(3), "train", Annotation("x", ("一",), unique="x"), grouped=True)
    with pytest.raises(UnusableRecord, match=r"^x has been annotated before, in a.txt:3$"):
        catalog.add(at(4), "train", Annotation("x", ("二",), unique="x"), grouped=True)
    assert [annotation.captions for _, annotation in reopened(catalog).entries("train", 0, 9)] == [("一",)]


def test_ungrouped_annotations_stay_apart(catalog: Catalog) -> None:
    for line, label in ((1, 1), (2, 0)):
        catalog.add(at(line), "train", Annotation("x", ("一",), label=label, image_id="id"), grouped=False)
    assert [annotation for _, annotation in reopened(catalog).entries("train", 0, 2)] == [
        Annotation("x", ("一",), "train", "id", 1),
        Annotation("x", ("一",), "train", "id", 0),
    ]


def test_splits_are_numbered_apart_in_the_order_of_their_first_lines(catalog: Catalog) -> None:
    for line, split in enumerate(["validation", "train", "validation", "train", "train"], start=1):
        catalog.add(at(line), split, Annotation(f"{line}", ("一",)), grouped=True)
    catalog = reopened(catalog)
    assert list(catalog.sizes().items()) == [("validation", 2), ("train", 3)]
    assert [place.line for place, _ in catalog.entries("train", 1, 3)] == [4, 5]
    assert [place.line for place, _ in catalog.entries("validation", 0, 1)] == [1]


def test_what_is_unique_is_so_within_a_split(catalog: Catalog) -> None:
    once = Annotation("x", ("一",), unique="x#0")
    catalog.add(at(3), "train", once, grouped=True)
    catalog.add(at(4), "test", once, grouped=True)
    with pytest.raises(UnusableRecord, match=r"^x#0 has been annotated before, in a.txt:3$"):
        catalog.add(at(9, "b.txt"), "train", once, grouped=True)


def test_an_image_without_captions_is_an_entry(catalog: Catalog) -> None:
    catalog.add(at(1), "test", Annotation("x", ()), grouped=True)
    catalog.add(at(2), "test", Annotation("x", ("一",)), grouped=True)
    assert [annotation.captions for _, annotation in reopened(catalog).entries("test", 0, 1)] == [("一",)]


def test_blobs(catalog: Catalog) -> None:
    blob = Blob(at(7, "images.tsv"), 2**40, 12)
    catalog.add_blob("x", blob)
    with pytest.raises(UnusableRecord, match="^image x has been given before, in images.tsv:7$"):
        catalog.add_blob("x", Blob(at(8, "images.tsv"), 5, 12))
    catalog = reopened(catalog)
    assert catalog.blob("x") == blob
    assert catalog.blob("y") is None


def test_images_that_no_annotation_names(catalog: Catalog) -> None:
    for line, name in enumerate(["train/1", "train/2", "train/3", "test/1"], start=1):
        catalog.add_blob(name, Blob(at(line), 0, 0))
    catalog.add(at(1), "train", Annotation("train/2", ("一",)), grouped=True)
    catalog.add(at(2), "test", Annotation("train/3", ("一",)), grouped=True)
    assert [catalog.unnamed_blobs(split, f"{split}/") for split in ("train", "test", "other")] == [2, 1, 0]


def test_remarks_are_kept_in_order(catalog: Catalog) -> None:
    catalog.remark("b")
    catalog.remark("a")
    assert reopened(catalog).remarks() == ("b", "a")


def test_skipped_lines_are_kept_in_order(catalog: Catalog) -> None:
    catalog.skip(at(2, "b.txt"), "", UnusableRecord("no split"))
    catalog.skip(at(1), "train", UnusableRecord("empty"))
    catalog = reopened(catalog)
    assert catalog.skipped() == {"": 1, "train": 1}
    assert list(catalog.skipped_lines()) == ["b.txt:2: no split", "a.txt:1: empty"]


def test_a_pickled_catalog_is_opened_again(catalog: Catalog) -> None:
    catalog.add(at(1), "train", Annotation("x", ("一",)), grouped=True)
    copy = pickle.loads(pickle.dumps(reopened(catalog)))
    assert copy.sizes() == {"train": 1}
