"""What img2dataset makes of Zero's links becomes a dataset, in each of its formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_corpora import prepared, records, skipped, texts, write, write_tar
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.zero import Zero
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.prepare import Settings, prepare

FORMATS = ("webdataset", "parquet", "files")
PUBLISHED = {"ImageKey": "k0", "Title": "网页标题", "ImageQuery": "搜索词", "Content": "上下文"}


def row(number: int, **columns: Any) -> dict[str, Any]:
    """A link that led to an image, as img2dataset describes it after the columns that it was told to keep."""
    return columns | {
        "url": f"http://img/{number}.jpg",
        "key": f"{number:09d}",
        "status": "success",
        "error_message": None,
        "width": 40,
        "height": 30,
        "original_width": 40,
        "original_height": 30,
        "sha256": f"{number:064x}",
    }


def dead(number: int, **columns: Any) -> dict[str, Any]:
    return row(number, **columns) | {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}


def shard(folder: Path, name: str, form: str, *rows: dict[str, Any], stats: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    alive = [entry for entry in rows if entry["status"] == "success"]
    members = [member for entry in alive for member in files_of(entry)]
    table = [dict(entry) for entry in rows]
    if form == "webdataset":
        write_tar(folder / f"{name}.tar", members)
    elif form == "files":
        for file, content in members:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / file).write_bytes(content)
    else:
        for entry in table:
            entry["jpg"] = image_of(entry) if entry["status"] == "success" else None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / f"{name}.parquet", row_group_size=2)
    if stats:
        numbers = {"count": len(rows), "successes": len(alive), "failed_to_download": len(rows) - len(alive)}
        write(folder / f"{name}_stats.json", json.dumps(numbers))


def image_of(entry: dict[str, Any]) -> bytes:
    return encode(seed=int(entry["key"]))


def files_of(entry: dict[str, Any]) -> list[tuple[str, bytes]]:
    files = [("jpg", image_of(entry)), ("json", json.dumps(entry, indent=4).encode())]
    files += [("txt", (entry["caption"] or "").encode())] if "caption" in entry else []
    return [(f"{entry['key']}.{extension}", content) for extension, content in files]


@pytest.mark.parametrize("form", FORMATS)
def test_each_format(tmp_path: Path, form: str) -> None:
    zero = tmp_path / "zero"
    shard(zero, "00000", form, row(1, **PUBLISHED), dead(0, **PUBLISHED), row(2, **PUBLISHED | {"ImageKey": "k2"}))
    shard(zero, "00001", form, row(10, **PUBLISHED | {"ImageKey": "k10", "Title": "", "Content": None}))
    shard(zero / "part1", "00000", form, row(0, **PUBLISHED | {"ImageKey": "k100", "Content": "网页标题"}))
    (zero / "_tmp").mkdir()
    preparation = prepared(Zero(str(zero)), tmp_path / "out")
    assert texts(tmp_path / "out") == {
        "k0": ("网页标题", "搜索词", "上下文"),
        "k2": ("网页标题", "搜索词", "上下文"),
        "k10": ("搜索词",),
        "k100": ("网页标题", "搜索词"),
    }
    assert [record.image for record in records(tmp_path / "out")] == [encode(seed=seed) for seed in (1, 2, 10, 0)]
    archive = {"webdataset": "00000.tar", "parquet": "00000.parquet", "files": "00000"}[form]
    assert preparation.remarks == (f"1 of 5 links were dead (20.0%) and are no entries; most in {archive}: 1 of 3",)
    assert preparation.remarks[0] in preparation.table()


def test_several_processes_write_the_same(tmp_path: Path) -> None:
    for number, form in enumerate(FORMATS):
        shard(tmp_path / "zero" / form, f"{number:05d}", form, *(row(10 * number + n, Title="标题") for n in range(9)))
    found = []
    for count in (1, 2):
        output = tmp_path / f"out{count}"
        prepare(Zero(str(tmp_path / "zero")), str(output), run=in_processes(count))
        found.append({path.name: path.read_bytes() for path in output.rglob("*.array_record*")})
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_fields_that_were_renamed_or_kept_as_the_caption(tmp_path: Path) -> None:
    shard(tmp_path, "00000", "webdataset", row(0, caption="标题", imagequery="搜索词", imagekey="k0"))
    shard(tmp_path, "00001", "webdataset", row(1, caption="标题", Title="标题"))
    prepared(Zero(str(tmp_path)), tmp_path / "out")
    assert texts(tmp_path / "out") == {"k0": ("搜索词", "标题"), "http://img/1.jpg": ("标题",)}


def test_text_fields(tmp_path: Path) -> None:
    shard(tmp_path, "00000", "webdataset", row(0, **PUBLISHED, Keywords=["甲", "乙", "甲"]))
    prepared(Zero(str(tmp_path), text_fields=["Keywords", "Content"]), tmp_path / "out")
    assert texts(tmp_path / "out") == {"k0": ("甲", "乙", "上下文")}


def test_identity_where_there_is_no_other(tmp_path: Path) -> None:
    for part in ("a", "b"):
        shard(tmp_path / part, "00000", "webdataset", row(0, Title=part) | {"url": None})
    prepared(Zero(str(tmp_path)), tmp_path / "out")
    assert texts(tmp_path / "out") == {"a/00000.tar#000000000": ("a",), "b/00000.tar#000000000": ("b",)}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"Title": " "}, "no text in Title, ImageQuery, Content, caption, txt; there is Title, "),
        ({}, "no text in Title, ImageQuery, Content, caption, txt; there is url, key, status, "),
        ({"Title": 1.5}, '"Title" is not a text'),
    ],
)
def test_sample_without_a_text(tmp_path: Path, form: str, columns: dict[str, Any], reason: str) -> None:
    shard(tmp_path / "zero", "00000", form, row(7, **columns))
    shard(tmp_path / "zero", "00001", form, row(8, Title="标题"))
    preparation = prepared(Zero(str(tmp_path / "zero")), tmp_path / "out", 0.5)
    assert len(records(tmp_path / "out")) == 1
    archive = {"webdataset": "00000.tar", "parquet": "00000.parquet", "files": "00000"}[form]
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"zero/{archive}#000000007: {reason}")


def test_too_many_without_a_text(tmp_path: Path) -> None:
    shard(tmp_path, "00000", "parquet", row(0, Title="标题"), row(1, Title=None))
    with pytest.raises(UserError, match="1 of the 2 entries read are unusable so far"):
        prepared(Zero(str(tmp_path)), tmp_path / "out")


@pytest.mark.parametrize("form", FORMATS)
def test_unfinished_shard_is_refused(tmp_path: Path, form: str) -> None:
    shard(tmp_path, "00000", form, row(0, Title="标题"))
    shard(tmp_path, "00001", form, row(1, Title="标题"), stats=False)
    if form == "files":
        (tmp_path / "00001.parquet").unlink()  # it comes last
    with pytest.raises(UserError, match="1 of the shards in .* have no NAME_stats.json, so img2dataset") as raised:
        Zero(str(tmp_path))
    assert str(raised.value).endswith(f"  - {tmp_path}/00001")


def test_numbers_without_a_shard(tmp_path: Path) -> None:
    write(tmp_path / "00000_stats.json", "{}")
    with pytest.raises(UserError, match="00000_stats.json is there, but neither 00000.tar nor 00000.parquet nor a"):
        Zero(str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", '{"count": 3}', '{"count": "?", "successes": 1}'])
def test_broken_numbers(tmp_path: Path, content: str) -> None:
    shard(tmp_path, "00000", "webdataset", row(0, Title="标题"))
    write(tmp_path / "00000_stats.json", content)
    with pytest.raises(UserError, match=r"00000_stats.json cannot be read \(.*\); expected what img2dataset writes"):
        prepared(Zero(str(tmp_path)), tmp_path / "out")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no shard of img2dataset; expected 00000.tar, 00000.parquet or a folder"):
        Zero(str(tmp_path))


def test_parquet_that_is_cut_short(tmp_path: Path) -> None:
    shard(tmp_path, "00000", "parquet", row(0, Title="标题"))
    shard(tmp_path, "00001", "parquet", row(1, Title="标题"))
    path = tmp_path / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    preparation = prepared(Zero(str(tmp_path)), tmp_path / "out", 0.5)
    assert skipped(preparation, tmp_path)[0].startswith("00000.parquet: cannot be read as Parquet: ")


def test_parquet_without_images(tmp_path: Path) -> None:
    shard(tmp_path, "00000", "webdataset", row(0, Title="标题"))
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(UserError, match="00000.parquet: no column jpg, png, webp; there is Title, url, key, status, "):
        prepared(Zero(str(tmp_path)), tmp_path / "out")


def test_parquet_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    images = [np.random.default_rng(n).bytes(20_000) for n in range(1000)]
    pyarrow.parquet.write_table(pyarrow.table({"jpg": images}), path, row_group_size=100)
    del images
    before = pyarrow.total_allocated_bytes()
    write(tmp_path / "00000_stats.json", json.dumps({"count": 1000, "successes": 1000}))
    held = [pyarrow.total_allocated_bytes() - before for _ in Zero(str(tmp_path)).samples(path)]
    assert len(held) == 1000
    assert max(held) < path.stat().st_size / 3


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    shard(tmp_path, "00000", "files", row(0, Title="标题"), row(1, Title="标题"), row(2, Title="标题"))
    broken = tmp_path / "00000" / "000000001.json"
    broken.unlink()
    broken.symlink_to("/proc/self/mem")
    preparation = prepared(Zero(str(tmp_path)), tmp_path / "out", 0.5)
    assert list(texts(tmp_path / "out")) == ["http://img/0.jpg", "http://img/2.jpg"]
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith("00000#000000001: 00000/000000001.json cannot be read: ")


@pytest.mark.parametrize("form", FORMATS)
def test_every_lost_sample_counts(tmp_path: Path, form: str) -> None:
    rows = [row(number, Title="标题") for number in range(40)]
    shard(tmp_path / "zero", "00000", form, *rows, dead(40))
    shard(tmp_path / "zero", "00001", form, *rows)
    if form == "webdataset":
        tar = tmp_path / "zero" / "00000.tar"
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 10])
    elif form == "files":
        for path in (tmp_path / "zero" / "00000").glob("*[4-9].*"):
            path.unlink()
    else:
        with (tmp_path / "zero" / "00000.parquet").open("r+b") as file:
            file.seek(5_000)
            file.write(b"\xff" * 30_000)
    with pytest.raises(UserError, match="entries read are unusable"):
        prepared(Zero(str(tmp_path / "zero")), tmp_path / "again", 0.1)
    preparation = prepare(Zero(str(tmp_path / "zero")), str(tmp_path / "out"), Settings(max_broken_share=0.5))
    assert 40 <= len(records(tmp_path / "out")) < 70
    assert preparation.skipped == {"train": 80 - len(records(tmp_path / "out"))}
    lost = preparation.skipped["train"]
    assert preparation.first_skipped[1].split(": ")[0].endswith(f"#lost 2 of {lost}")


def test_samples_that_are_gone_without_a_trace(tmp_path: Path) -> None:
    shard(tmp_path, "00000", "webdataset", row(0, Title="标题"))
    write(tmp_path / "00000_stats.json", '{"count": 5, "successes": 3}')
    preparation = prepared(Zero(str(tmp_path)), tmp_path / "out", 0.9)
    reason = "2 of the 3 samples that its _stats.json counts are not there"
    assert skipped(preparation, tmp_path) == [f"00000.tar: {reason}", "00000.tar#lost 2 of 2: as above"]


@pytest.mark.parametrize("form", FORMATS)
def test_weights_come_to_the_size(tmp_path: Path, form: str) -> None:
    shard(tmp_path, "00000", form, *(row(n, Title="标题") for n in range(50)), dead(50))
    catalog, corpus = Catalog(tmp_path / "none", create=True), Zero(str(tmp_path))
    ((piece,),) = corpus.shards(catalog, 1)["train"]
    entries = list(corpus.read(piece, catalog))
    assert len(entries) == 50
    assert sum(entry.weight for entry in entries) == pytest.approx(piece.weight, rel=0.1)
    assert sum(entry.weight for entry in entries[:25]) == pytest.approx(piece.weight / 2, rel=0.2)
