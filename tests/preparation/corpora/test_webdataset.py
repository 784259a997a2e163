"""Tars become a dataset, whole or cut short, compressed or not; every sample that does not is named."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from small_corpora import prepared, records, skipped, texts, write_tar
from small_data import encode

from r2d2_jax.data.image.decoding import FORMATS
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.formats.samples import IMAGE_EXTENSIONS
from r2d2_jax.preparation.corpora.webdataset import WebDataset
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.prepare import Settings, prepare


def sample(number: int, *texts_of: str, **fields: object) -> list[tuple[str, bytes]]:
    key = f"{number:05d}"
    members = [(f"{key}.jpg", encode((90, 70), seed=number))]
    members += [(f"{key}.json", json.dumps(fields).encode())] if fields else []
    return members + [(f"{key}.txt", text.encode()) for text in texts_of]


def test_splits_texts_and_identities(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "00000.tar", sample(0, "一") + sample(1, caption="二", text="三", captions=["四", "二", ""]))
    write_tar(tars / "00001.tar", sample(0, "五") + sample(2, image_id=42, caption="六"))
    write_tar(tars / "val" / "a.tar.gz", sample(7, "七"), "w:gz")
    write_tar(tars / "val" / "b.tar.bz2", sample(8, "八"), "w:bz2")
    write_tar(tars / "val" / "c.tar.xz", sample(9, "九"), "w:xz")
    write_tar(tars / "._00000.tar", [])
    prepared(WebDataset(str(tars)), tmp_path / "out")
    assert texts(tmp_path / "out") == {
        "00000.tar#00000": ("一",),
        "00000.tar#00001": ("三", "二", "四"),
        "00001.tar#00000": ("五",),
        "42": ("六",),
    }
    assert texts(tmp_path / "out", "validation") == {
        "val/a.tar.gz#00007": ("七",),
        "val/b.tar.bz2#00008": ("八",),
        "val/c.tar.xz#00009": ("九",),
    }
    assert records(tmp_path / "out")[0].image == encode((90, 70), seed=0)


def test_rules_of_webdataset(tmp_path: Path) -> None:
    image = encode()
    write_tar(
        tmp_path / "0.tar",
        [
            ("./a.b/x.jpg", image),
            ("./a.b/x.txt", "一".encode()),
            ("1.seg.png", b"no image of ours"),
            ("1.PNG", image),
            ("1.cls", b"3"),
            ("1.txt", "二".encode()),
            ("._1.jpg", b"of another system"),
            ("a/.hidden.jpg", b""),
            ("README", b""),
            ("__meta__/1.jpg", b""),
            ("2.webp", image),
            ("2.txt", "\N{BYTE ORDER MARK}三".encode()),
        ],
    )
    prepared(WebDataset(str(tmp_path)), tmp_path / "out")
    assert texts(tmp_path / "out") == {"0.tar#./a.b/x": ("一",), "0.tar#1": ("二",), "0.tar#2": ("三",)}


def test_every_format_that_is_decoded_has_its_extension() -> None:
    Image.init()
    named = {Image.EXTENSION[f".{extension}"] for extension in IMAGE_EXTENSIONS if f".{extension}" in Image.EXTENSION}
    assert named == set(FORMATS) & set(Image.EXTENSION.values()) - {"MPO"}  # these are called .jpg


@pytest.mark.parametrize("extension", ["jfif", "avif", "jp2", "ppm"])
def test_images_by_their_extensions(tmp_path: Path, extension: str) -> None:
    write_tar(tmp_path / "0.tar", [(f"0.{extension}", encode()), ("0.txt", b"a")])
    prepared(WebDataset(str(tmp_path)), tmp_path / "out")
    assert texts(tmp_path / "out") == {"0.tar#0": ("a",)}


def test_chosen_fields(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", sample(0, "一", Title="二", tags=["三", "四"]))
    prepared(WebDataset(str(tmp_path), text_fields=["tags", "Title"]), tmp_path / "out")
    assert texts(tmp_path / "out") == {"0.tar#00000": ("三", "四", "二")}


BAD = [
    ([("x.jpg", encode())], "no text in txt, text, caption, captions; there is nothing"),
    ([("x.jpg", encode()), ("x.txt", b" \n")], "no text in txt, text, caption, captions; there is txt"),
    ([("x.txt", "一".encode())], "no images among .txt; expected one"),
    ([("x.jpg", encode()), ("x.png", encode()), ("x.txt", b"a")], "2 images among .jpg, .png, .txt; expected one"),
    ([("x.jpg", encode()), ("x.jpg", encode())], ".jpg is there twice"),
    ([("x.jpg", encode()), ("x.json", b'{"caption": ')], ".json: invalid JSON (Expecting value"),
    ([("x.jpg", encode()), ("x.json", b"[" * 100_000)], ".json: invalid JSON (maximum recursion depth"),
    ([("x.jpg", encode()), ("x.json", b"[]")], ".json: not a JSON object"),
    ([("x.jpg", encode()), ("x.json", b'{"caption": 1.5}')], '"caption" is not a text'),
    ([("x.jpg", encode()), ("x.json", b'{"caption": "\\ud83d"}')], '"caption" has half a surrogate pair'),
    ([("x.jpg", encode()), ("x.json", b'{"caption": "\xff"}')], ".json: invalid UTF-8 at byte 13"),
    ([("x.jpg", encode()), ("x.txt", b"ab\xff")], ".txt: invalid UTF-8 at byte 2"),
    ([("x.jpg", b"<html>"), ("x.txt", b"a")], "image 0.tar#x: not an image: 6 bytes"),
]


@pytest.mark.parametrize(("members", "reason"), BAD)
def test_bad_sample_is_skipped_counted_and_named(tmp_path: Path, members: list[tuple[str, bytes]], reason: str) -> None:
    write_tar(tmp_path / "0.tar", [*sample(0, "一"), *members, *sample(1, "二")])
    preparation = prepared(WebDataset(str(tmp_path)), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {"0.tar#00000": ("一",), "0.tar#00001": ("二",)}
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"0.tar#x: {reason}")
    with pytest.raises(UserError, match="1 of the 3 entries read are unusable so far"):
        prepared(WebDataset(str(tmp_path)), tmp_path / "again")


def test_name_that_is_no_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT, encoding="gbk") as tar:
        for name, content in (("狗.jpg", encode()), ("狗.txt", b"a"), ("马.jpg", encode()), ("马.txt", b"b")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("猪.txt"))
    preparation = prepared(WebDataset(str(tmp_path)), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {r"0.tar#\xb9\xb7": ("a",), r"0.tar#\xc2\xed": ("b",)}
    assert skipped(preparation, tmp_path) == [r"0.tar#\xd6\xed: no images among .txt; expected one"]


def cut_tar(folder: Path, length: int) -> Path:
    path = write_tar(folder / "0.tar", [member for number in range(3) for member in sample(number, f"{number}")])
    path.write_bytes(path.read_bytes()[:length])
    return path


# A sample of the test takes a header and the image's blocks, then a header and one block of text.
IMAGE_BLOCKS = -(-len(encode((90, 70), seed=0)) // 512)
SAMPLE = 512 * (1 + IMAGE_BLOCKS + 2)


@pytest.mark.parametrize(
    ("length", "whole"),
    [
        (SAMPLE + 100, 0),  # within the header that would end the first sample
        (SAMPLE * 2 - 700, 1),  # within a header of the second sample
        (SAMPLE + 1200, 1),  # within the second image
        (SAMPLE * 2, 1),  # between two samples: whether the second had more files nobody knows
        (SAMPLE * 2 + 1200, 2),
        (SAMPLE * 3, 2),  # only the end mark is missing
    ],
)
def test_tar_cut_short_gives_what_was_before(tmp_path: Path, length: int, whole: int) -> None:
    assert all(-(-len(encode((90, 70), seed=seed)) // 512) == IMAGE_BLOCKS for seed in range(3))
    cut_tar(tmp_path / "tars", length)
    write_tar(tmp_path / "tars" / "1.tar", sample(9, "九"))
    preparation = prepared(WebDataset(str(tmp_path / "tars")), tmp_path / "out", 0.6)
    assert list(texts(tmp_path / "out")) == [*(f"0.tar#{n:05d}" for n in range(whole)), "1.tar#00009"]
    (named,) = skipped(preparation, tmp_path)
    after = f"after sample {whole - 1:05d}" if whole else "before its first sample is complete"
    assert named.startswith(f"tars/0.tar: the archive is truncated or broken {after} (")
    assert named.endswith("; all that follows is lost")


@pytest.mark.parametrize("zeros", [1, 100, 512, 700, 1024])
def test_an_end_mark_need_not_fill_its_blocks(tmp_path: Path, zeros: int) -> None:
    cut_tar(tmp_path / "tars", SAMPLE * 3 + zeros)
    prepared(WebDataset(str(tmp_path / "tars")), tmp_path / "out")
    assert list(texts(tmp_path / "out")) == [f"0.tar#{n:05d}" for n in range(3)]


def test_a_sample_whose_last_header_is_lost_is_not_taken_for_whole(tmp_path: Path) -> None:
    """The name of the text is there, in a header of its own, but zeros follow it."""
    long = "d" * 120
    path = write_tar(tmp_path / "tars" / "0.tar", [*sample(0, "一"), (f"{long}.jpg", encode()), (f"{long}.txt", b"a")])
    content = path.read_bytes()
    text = content.rindex(b"ddd.txt")
    header = content.index(b"d" * 100, text + 512 - text % 512)
    path.write_bytes(content[:header] + bytes(512) + content[header + 512 :])
    preparation = prepared(WebDataset(str(tmp_path / "tars")), tmp_path / "out", 0.5)
    assert list(texts(tmp_path / "out")) == ["0.tar#00000"]
    assert "is truncated or broken after sample 00000 (" in skipped(preparation, tmp_path)[0]


def test_compressed_tar_cut_short(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    path = write_tar(tars / "0.tgz", [member for n in range(30) for member in sample(n, f"{n}")], "w:gz")
    path.write_bytes(path.read_bytes()[:-4000])
    preparation = prepared(WebDataset(str(tars)), tmp_path / "out", 0.5)
    assert 15 < len(records(tmp_path / "out")) < 30
    assert skipped(preparation, tmp_path)[0].startswith("tars/0.tgz: the archive is truncated or broken after sample ")


COMPRESSIONS = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def tar_of(folder: Path, *numbers: int) -> bytes:
    members = [member for number in numbers for member in sample(number, f"{number}")]
    return write_tar(folder / "made" / "made.tar", members).read_bytes()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_joined_tars(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSIONS[suffix]
    content = compress(tar_of(tmp_path, 0, 1)) + compress(tar_of(tmp_path, 1, 2) + bytes(700))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / f"0.{suffix}").write_bytes(content)
    prepared(WebDataset(str(tmp_path / "tars")), tmp_path / "out")
    assert texts(tmp_path / "out") == {
        f"0.{suffix}#00000": ("0",),
        f"0.{suffix}#00001": ("1",),
        f"0.{suffix}#2:00001": ("1",),
        f"0.{suffix}#2:00002": ("2",),
    }


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz"])
def test_tar_compressed_in_parts(tmp_path: Path, suffix: str) -> None:
    tar = tar_of(tmp_path, 0, 1, 2)
    (tmp_path / "tars").mkdir()
    parts = [COMPRESSIONS[suffix](tar[start : start + 1000]) for start in range(0, len(tar), 1000)]
    (tmp_path / "tars" / f"0.{suffix}").write_bytes(b"".join(parts))
    prepared(WebDataset(str(tmp_path / "tars")), tmp_path / "out")
    assert [record.captions for record in records(tmp_path / "out")] == [("0",), ("1",), ("2",)]


def test_something_after_the_end_mark(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(tar_of(tmp_path, 0) + b"something else" * 40)
    preparation = prepared(WebDataset(str(tmp_path / "tars")), tmp_path / "out", 0.5)
    assert list(texts(tmp_path / "out")) == ["0.tar#00000"]
    assert skipped(preparation, tmp_path)[0].startswith("tars/0.tar: the archive is truncated or broken after sample 0")


# Without a header that follows nobody knows whether sample 19 had more files.
@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        (b"x" * 512, 19),
        ({"size": "-99999"}, 20),
        ({"GNU.sparse.map": "x"}, 19),
    ],
)
def test_what_a_broken_tar_has_lost_is_estimated(tmp_path: Path, broken: bytes | dict[str, str], whole: int) -> None:
    tar = tar_of(tmp_path, *range(100))
    middle = tar.index(b"00020.jpg")
    if isinstance(broken, dict):
        header = tarfile.TarInfo("x.jpg")
        header.pax_headers = broken
        broken = header.tobuf(tarfile.PAX_FORMAT)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(tar[:middle] + broken + tar[middle:])
    preparation = prepare(WebDataset(str(tmp_path / "tars")), str(tmp_path / "out"), Settings(max_broken_share=0.9))
    assert len(records(tmp_path / "out")) == whole
    assert preparation.skipped["train"] == pytest.approx(81, abs=8)
    assert "all that follows is lost, about " in preparation.first_skipped[0]
    assert preparation.first_skipped[1].startswith(f"{tmp_path}/tars/0.tar#lost 2 of ")
    assert preparation.first_skipped[1].endswith(": as above")
    with pytest.raises(UserError, match="entries read are unusable"):
        prepared(WebDataset(str(tmp_path / "tars")), tmp_path / "again", 0.5)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    write_tar(tmp_path / "1.tar", sample(0, "一"))
    preparation = prepared(WebDataset(str(tmp_path)), tmp_path / "out", 0.5)
    assert len(records(tmp_path / "out")) == 1
    assert skipped(preparation, tmp_path)[0].startswith("0.tar: the archive is truncated or broken before its fi")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_weights_come_to_the_size_of_the_archive(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "0.tar", [member for n in range(150) for member in sample(n, f"{n}")], mode)
    corpus = WebDataset(str(tmp_path))
    ((piece,),) = corpus.shards(Catalog(tmp_path / "none", create=True), 1)["train"]
    entries = list(corpus.read(piece, Catalog(tmp_path / "none")))
    assert all(isinstance(entry.outcome, Example) for entry in entries)
    assert piece.weight == path.stat().st_size
    assert sum(entry.weight for entry in entries) == pytest.approx(piece.weight, rel=0.05)
    assert sum(entry.weight for entry in entries[:75]) == pytest.approx(piece.weight / 2, rel=0.2)


def test_archive_that_has_gone(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample(0, "一"))
    corpus = WebDataset(str(tmp_path))
    ((piece,),) = corpus.shards(Catalog(tmp_path / "none", create=True), 1)["train"]
    path.unlink()
    with pytest.raises(UserError, match=r"archive .*0.tar has gone; put it back and start again"):
        list(corpus.read(piece, Catalog(tmp_path / "none")))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tar \(.tar, .*expected FOLDER/00000.tar for the training split and"):
        WebDataset(str(tmp_path))
    with pytest.raises(UserError, match="folder .*absent does not exist; set --images to the folder with the archives"):
        WebDataset(str(tmp_path / "absent"))


def test_folder_that_names_no_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "2023-04" / "0.tar", sample(0, "一"))
    with pytest.raises(UserError, match=r"folder .*/2023-04 holds tars, but '2023-04' cannot name a split; use l"):
        WebDataset(str(tmp_path))
