"""Folders of any name: a run lives in them, or they are refused with the character that stands in the way."""

import os
from pathlib import Path

import pytest
from small_data import example
from small_states import CONFIG, abstract, saved, state_of

from r2d2_jax.data.records import RecordSource
from r2d2_jax.errors import UserError
from r2d2_jax.paths import LiteralPath, check_utf8, literal_path, user_path
from r2d2_jax.preparation.demonstration import write_demonstration
from r2d2_jax.preparation.writer import write_dataset
from r2d2_jax.runs import load_state
from r2d2_jax.train.checkpoint import Checkpoints

# What patterns, addresses, shells, formats and TensorStore give a meaning to.
NAMES = (
    *("bs[16]", "[!x]", "[a-z]", "[", "a]", "*", "**", "a?b", "{a,b}", "{name}", "a@8"),
    *("a b", " a", "a ", "红蓝", "😍", "50%", "%41", "%s", "a#b", "k=v", "a,b", "a:b", "gs:a", "$HOME", "~", "~nobody"),
    *("-dash", "a\nb", "a'b", 'a"b', "a|b;c&d", "<a>", ".hidden", "...", "7", "7.orbax-checkpoint-tmp", "x" * 255),
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_lives_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    """Written, restored and read by others; what is beside it, and what its name would match, stays as it was."""
    for beside in ("bs1", "a", "x"):
        (tmp_path / beside).mkdir()
    workdir = tmp_path / name / "run"
    saved(workdir, {3: None, 7: 1.0}, keep_last=2).close()
    checkpoints = Checkpoints(workdir, CONFIG.train)
    state, progress = checkpoints.restore(abstract(state_of(0)), CONFIG)
    checkpoints.close()
    assert (int(state.step), progress) == (7, {"pairs": 7})
    assert int(load_state(workdir)[0]["step"]) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"bs1", "a", "x", name}
    assert not any(any((tmp_path / beside).iterdir()) for beside in ("bs1", "a", "x"))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_dataset_lies_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / name, {"train": map(example, range(4))}, shards=2)
    source = RecordSource(tmp_path / name, "train")
    assert [source[number].image_id for number in range(4)] == [
        source[number].image_id for number in range(len(source))
    ]


@pytest.mark.parametrize(
    "path, message",
    [
        ("/gs/runs/one", "--workdir /gs/runs/one lies in the bucket gs:// to Orbax; choose another folder"),
        ("/s3/x", "--workdir /s3/x lies in the bucket s3:// to Orbax; choose another folder"),
        (
            "/logs:/run",
            "--workdir /logs:/run has a folder that ends in gs:, a bucket to Orbax; choose another name",
        ),
        ("/runs/gs:", "--workdir /runs/gs: has a folder that ends in gs:, a bucket to Orbax; choose another name"),
        ("/runs/a\\b", "--workdir /runs/a\\b has a backslash, a slash to TensorStore; choose a path without it"),
        (
            "/runs/b\udcff",
            "--workdir '/runs/b\\udcff' has '\\udcff', which is no UTF-8 on disk, and so TensorStore and ArrayRecord "
            "cannot open it; choose a path of plain letters and digits, or a UTF-8 locale such as LC_ALL=C.UTF-8",
        ),
    ],
)
def test_what_would_be_another_place(path: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        literal_path(Path(path), "--workdir")
    assert str(refused.value) == message


@pytest.mark.parametrize("path", ["/gsx/run", "/data/gs/run", "/runs/s3"])
def test_what_only_looks_like_a_bucket(path: str) -> None:
    assert literal_path(Path(path), "--workdir") == LiteralPath(path)


def test_a_locale_of_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python writes the bytes of the locale, TensorStore UTF-8: the two would not see each other's files."""
    monkeypatch.setattr(os, "fsencode", lambda path: os.fspath(path).encode("gbk", errors="surrogateescape"))
    check_utf8(Path("/runs/plain"), "--workdir")
    with pytest.raises(UserError, match="--workdir '/runs/数据' has '数', which is no UTF-8 on disk"):
        literal_path(Path("/runs/数据"), "--workdir")
    with pytest.raises(UserError, match="data folder '.*数据' has '数', which is no UTF-8 on disk"):
        RecordSource(tmp_path / "数据", "train")
    with pytest.raises(UserError, match="--output '.*数据' has '数', which is no UTF-8 on disk"):
        write_demonstration(tmp_path / "数据")
    assert not list(tmp_path.iterdir())


def test_home_is_meant_by_its_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs") == tmp_path / "runs"
    assert user_path("~no_such_user/runs") == Path("~no_such_user/runs")
    assert user_path(Path("a/~")) == Path("a/~")


def test_a_pattern_below_a_literal_path(tmp_path: Path) -> None:
    folder = tmp_path / "bs[16]" / "**"
    folder.mkdir(parents=True)
    (tmp_path / "bs1" / "**").mkdir(parents=True)
    for parent in (folder, tmp_path / "bs1" / "**"):
        (parent / "process_0").touch()
    found = list((LiteralPath(tmp_path) / "bs[16]" / "**").glob("process_*"))
    assert [str(path) for path in found] == [str(folder / "process_0")]
    assert all(isinstance(path, LiteralPath) for path in found)
