"""Parquet files of Hugging Face datasets become a dataset; whatever in them does not is named."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_corpora import prepared, records, skipped, texts, write_images
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.huggingface import HuggingFace
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.corpora.webdataset import WebDataset
from r2d2_jax.preparation.corpora.zero import Zero
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.prepare import Settings, prepare

TRAIN = "data/train-00000-of-00001.parquet"


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"bytes": encode(seed=number), "path": f"{number}.jpg"} | changes


def row(number: int, text: Any = "一只狗", **columns: Any) -> dict[str, Any]:
    return {"image": image(number), "text": text} | columns


def write_parquet(
    path: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None, **settings: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, **settings)
    return path


def test_splits_texts_and_identities(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "data"
    write_parquet(data / "train-00000-of-00002.parquet", [row(0, "一", image_id=None), row(1, "二", image_id=42)])
    write_parquet(data / "train-00001-of-00002-0123abcd.parquet", [row(2, "三")])
    write_parquet(data / "valid-00000-of-00001.parquet", [{"img": encode(seed=3), "captions": ["四", "五", "四", ""]}])
    write_parquet(tmp_path / "hub" / "default" / "test" / "0000.parquet", [row(4, "六", caption="七", label=3)])
    write_parquet(tmp_path / "hub" / ".cache" / "train-00000-of-00001.parquet", [row(5)])
    prepared(HuggingFace(str(tmp_path / "hub")), tmp_path / "out")
    assert texts(tmp_path / "out") == {
        "data/train-00000-of-00002.parquet#1": ("一",),
        "42": ("二",),
        "data/train-00001-of-00002-0123abcd.parquet#1": ("三",),
    }
    assert texts(tmp_path / "out", "validation") == {"data/valid-00000-of-00001.parquet#1": ("四", "五")}
    assert texts(tmp_path / "out", "test") == {"default/test/0000.parquet#1": ("六", "七")}
    assert records(tmp_path / "out")[0].image == encode(seed=0)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/unsplash_zh-00000-of-00001.parquet", "unsplash_zh"),
        ("data/dev-00000-of-00001.parquet", "validation"),
        ("zh/eval-00000-of-00001.parquet", "test"),
        ("part-00000-of-00010.parquet", "train"),
        ("0001.parquet", "train"),
        ("my_val_0.parquet", "validation"),
        ("Test.parquet", "test"),
        ("partial-train/0000.parquet", "train"),
        ("validation/zh/0000.parquet", "validation"),
        ("latest/contest.parquet", "train"),
    ],
)
def test_names_of_splits(tmp_path: Path, name: str, split: str) -> None:
    path = write_parquet(tmp_path / name, [row(0)])
    assert HuggingFace(str(tmp_path)).archives() == {split: [path]}


def test_a_name_that_is_no_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "中文-00000-of-00001.parquet", [row(0)])
    with pytest.raises(
        UserError, match="中文-00000-of-00001.parquet is of split '中文', but '中文' cannot name a split; use"
    ):
        HuggingFace(str(tmp_path))


def test_other_columns_by_flag(tmp_path: Path) -> None:
    rows = [{"photo": image(0, height=30), "标题": "一只狗", "Query": ["红球", None], "audio": 1.5}]
    write_parquet(tmp_path / TRAIN, rows)
    prepared(HuggingFace(str(tmp_path), text_fields=["标题", "Query"]), tmp_path / "out")
    assert list(texts(tmp_path / "out").values()) == [("一只狗", "红球")]


@pytest.mark.parametrize(
    "images",
    [
        pyarrow.array([encode()], pyarrow.large_binary()),
        pyarrow.array([encode()], pyarrow.binary_view()),
        pyarrow.array([encode()]).dictionary_encode(),
        pyarrow.array([{"bytes": encode()}]),
    ],
)
def test_every_kind_of_bytes(tmp_path: Path, images: pyarrow.Array) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "text": ["一"]}), tmp_path / "0.parquet")
    prepared(HuggingFace(str(tmp_path)), tmp_path / "out")
    assert records(tmp_path / "out")[0].image == encode()


def test_a_number_of_rows_that_cannot_be_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("broken")

    path = write_parquet(tmp_path / "0.parquet", [row(0)])
    corpus = HuggingFace(str(tmp_path))
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", broken)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "metadata", SimpleNamespace(num_rows=2**60))
    (found,) = corpus.samples(path)
    assert found.lost == path.stat().st_size // 100


def test_images_beside_the_file(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    write_images(hub, "images/0.jpg", "data/1.jpg")
    write_images(tmp_path, "secret.jpg")
    (hub / "link.jpg").symlink_to(tmp_path / "secret.jpg")  # as in the hub's cache
    paths = [
        "images/0.jpg",
        "1.jpg",
        "../link.jpg",
        "absent.jpg",
        "../../secret.jpg",
        str(tmp_path / "secret.jpg"),
        None,
    ]
    paths += ["data", "a\0b", "a" * 5000]
    write_parquet(hub / TRAIN, [row(0, image={"bytes": None, "path": path}) for path in paths] + [row(0, image=None)])
    preparation = prepared(HuggingFace(str(hub)), tmp_path / "out", 1.0)
    assert [record.image for record in records(tmp_path / "out")] == [encode(seed=0), encode(seed=1), encode(seed=0)]
    named = [line.removeprefix(f"hub/{TRAIN}#") for line in skipped(preparation, tmp_path)]
    assert [line.split(":")[0] for line in named] == ["4", "5", "6", "7", "8", "9", "10", "11"]
    assert named[0] == (
        "4: the image has no bytes, and its path absent.jpg is no file in hub; put it there, or write the dataset "
        "again with the images embedded"
    )
    assert "secret.jpg is no file in " in named[1]
    assert "secret.jpg is no file in " in named[2]
    assert [line for line in named if "null" in line] == ["7: the image is null", "11: the image is null"]
    assert all(" is no file in " in line for line in named[4:7])


def test_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [row(0), row(1, None), row(2, " "), row(3, image=image(0, bytes=b"")), row(4, "狗\0猫"), row(5)]
    write_parquet(tmp_path / TRAIN, rows)
    preparation = prepared(HuggingFace(str(tmp_path)), tmp_path / "out", 1.0)
    assert list(texts(tmp_path / "out")) == [f"{TRAIN}#1", f"{TRAIN}#6"]
    reasons = [line.removeprefix(f"{TRAIN}#") for line in skipped(preparation, tmp_path)]
    assert [reason[:20] for reason in reasons] == [
        "2: no text in text, ",
        "3: no text in text, ",
        f"4: image {TRAIN}"[:20],
        '5: "text" has half a',
    ]


def test_a_text_that_is_no_utf_8(tmp_path: Path) -> None:
    column = pyarrow.array(["狗".encode("gbk"), "一只狗".encode()]).view(pyarrow.string())
    table = pyarrow.table({"image": [encode(seed=0), encode(seed=1)], "text": column})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    preparation = prepared(HuggingFace(str(tmp_path)), tmp_path / "out", 0.5)
    assert skipped(preparation, tmp_path) == ["train.parquet#1: a text of it is invalid UTF-8 at byte 0"]
    assert list(texts(tmp_path / "out")) == ["train.parquet#2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["一"]},
            r"no column holds one image a row; there is text \(string\)\. Expected image \(struct<bytes",
        ),
        ({"image": ["a.jpg"], "text": ["一"]}, r"no column holds one image a row; there is image \(string\), text"),
        ({"image": [[{"bytes": b"", "path": ""}]], "text": ["一"]}, r"no column holds one image a row; .*list<"),
        ({"image": [{"path": "a"}], "text": ["一"]}, r"no column holds one image a row; .*struct<path: string>"),
        ({"image": [[[1, 2]]], "text": ["一"]}, "no column holds one image a row; .*list<"),
        (
            {"a": [b""], "b": [b""], "text": ["一"]},
            "several columns hold bytes: a, b; call the one with the images image",
        ),
        (
            {"image": [b""], "sentence": ["一"]},
            r"no column text, caption, captions, txt for the texts; there is image \(binary\), sentence \(string\)\. "
            "Name the columns with --text_fields",
        ),
    ],
)
def test_another_layout_is_refused_at_once(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"train.parquet: {message}"):
        HuggingFace(str(tmp_path))


def test_a_later_file_of_another_layout_counts_its_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", [row(0)])
    write_parquet(tmp_path / "1.parquet", [{"text": "一"}] * 3)
    preparation = prepared(HuggingFace(str(tmp_path)), tmp_path / "out", 0.9)
    named = skipped(preparation, tmp_path)
    assert named[0].startswith("1.parquet: no column holds one image a row; there is text (string)")
    assert named[1:] == ["1.parquet#lost 2 of 3: as above", "1.parquet#lost 3 of 3: as above"]


def test_a_damaged_file_gives_what_comes_before(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "0.parquet", [row(number) for number in range(40)], row_group_size=10)
    content = bytearray(path.read_bytes())
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    preparation = prepared(HuggingFace(str(tmp_path)), tmp_path / "out", 0.9)
    assert len(records(tmp_path / "out")) == 20
    assert preparation.skipped["train"] == 20
    assert preparation.first_skipped[0].startswith(f"{path}: cannot be read as Parquet after row 20: ")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text " * 100])
def test_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    write_parquet(tmp_path / "0.parquet", [row(0)])
    (tmp_path / "1.parquet").write_bytes(content)
    preparation = prepared(HuggingFace(str(tmp_path)), tmp_path / "out", 0.5)
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith("1.parquet: cannot be read as Parquet: ")


def test_no_row_at_all(tmp_path: Path) -> None:
    schema = pyarrow.schema({"image": pyarrow.binary(), "text": pyarrow.string()})
    write_parquet(tmp_path / "0.parquet", [], schema)
    with pytest.raises(UserError, match="split 'train' has no usable record"):
        prepared(HuggingFace(str(tmp_path)), tmp_path / "out")


def test_a_file_in_place_of_its_folder(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "0.parquet", [row(0)])
    with pytest.raises(UserError, match="0.parquet is a file; set --images to the folder with the archives$"):
        HuggingFace(str(path))


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="0.parquet is a Git LFS pointer, not the file .*; run `git lfs pull`"):
        HuggingFace(str(tmp_path))


def test_a_folder_of_arrow_files_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match=r"holds Arrow files, such as .*as `save_to_disk` .* rows.to_parquet\("):
        HuggingFace(str(tmp_path))


def test_other_corpora_name_the_way(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / TRAIN, [row(0)])
    with pytest.raises(UserError, match="has not finished them.*Hugging Face dataset, --corpus=huggingface"):
        Zero(str(tmp_path))
    with pytest.raises(UserError, match="holds no tar .*For its Parquet files use --corpus=huggingface$"):
        WebDataset(str(tmp_path))
    with pytest.raises(
        UserError, match="is a Parquet file; expected one object a line.* use --corpus=huggingface with"
    ):
        JsonLines(str(tmp_path), str(path))


def test_the_same_with_any_number_of_processes(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / "in" / f"{number}.parquet", [row(10 * number + n) for n in range(5)])
    corpus = pickle.loads(pickle.dumps(HuggingFace(str(tmp_path / "in"))))
    for count in (1, 2):
        prepare(corpus, str(tmp_path / str(count)), Settings(shards=2), run=in_processes(count))
    one, two = (sorted((tmp_path / str(count)).rglob("*array_record*")) for count in (1, 2))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert len(one) == 2


def test_a_row_group_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    images = [{"bytes": np.random.default_rng(number).bytes(2_000), "path": "a"} for number in range(8000)]
    path = write_parquet(tmp_path / "0.parquet", [{"image": one, "text": "狗"} for one in images])
    del images
    before = pyarrow.total_allocated_bytes()
    held = [pyarrow.total_allocated_bytes() - before for _ in HuggingFace(str(tmp_path)).samples(path)]
    assert len(held) == 8000
    assert max(held) < path.stat().st_size / 3
