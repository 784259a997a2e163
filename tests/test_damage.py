"""Every file of a checkpoint cut, emptied, removed or changed: it is named, and so is the newest whole checkpoint."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_model import assert_bitwise_equal, named_leaves
from small_states import CONFIG, abstract, saved, state_of, with_memory

from r2d2_jax.config.run import TrainConfig
from r2d2_jax.convert.conversion import open_model
from r2d2_jax.damage import (
    LISTING,
    DamagedError,
    check_whole,
    damage_refused,
    find_damage,
    reading,
    set_aside,
    steps_of,
)
from r2d2_jax.errors import UserError
from r2d2_jax.runs import load_state
from r2d2_jax.train.checkpoint import Checkpoints, _leaves, settle_damage
from r2d2_jax.train.state import TrainState

# Orbax writes these last and reads them never again.
UNREAD = ("_CHECKPOINT_METADATA", "commit_success.txt")


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "removed": lambda data: None,
    "zeroed": lambda data: bytes(len(data)),
    "flipped": flipped,
}


def damage(path: Path, kind: str) -> None:
    after = DAMAGES[kind](path.read_bytes())
    path.unlink()
    if after is not None:
        path.write_bytes(after)


def large(step: int) -> TrainState:
    """Of such a size that its values lie in files of their own."""
    return with_memory(state_of(step), feature_mean=jax.random.normal(jax.random.key(step), (20_000,)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 3 and 7, which tests only look at."""
    workdir = tmp_path_factory.mktemp("damage") / "run"
    saved(workdir, {3: None, 7: 1.0}, state=large, keep_last=2).close()
    return workdir


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def unlisted(copy: Path) -> Path:
    """As versions before the listing wrote them."""
    for listing in copy.rglob(LISTING):
        listing.unlink()
    return copy


def files_of(checkpoint: Path) -> Iterator[str]:
    yield from sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def restored(workdir: Path) -> dict[str, np.ndarray]:
    settle_damage(workdir, skip=False)
    checkpoints = Checkpoints(workdir, CONFIG.train)
    try:
        state, progress = checkpoints.restore(abstract(large(0)), CONFIG)
    finally:
        checkpoints.close()
    return named_leaves(state) | {"progress": np.array(progress["pairs"])}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damaged_file_is_named(kind: str, copy: Path) -> None:
    checkpoint = copy / "checkpoints" / "7"
    names = list(files_of(checkpoint))
    assert len(names) > 15
    for name in names:
        kept = (checkpoint / name).read_bytes()
        damage(checkpoint / name, kind)
        damaged, whole = find_damage(copy / "checkpoints")
        if name.endswith(UNREAD) or (name == LISTING and kind == "removed"):
            assert (damaged, whole) == ({}, 7), name
        else:
            assert (list(damaged), whole) == ([7], 3), name
            assert str(checkpoint / name) in str(damaged[7])
        (checkpoint / name).write_bytes(kept)


@pytest.mark.parametrize("kind", ["cut", "emptied", "removed", "zeroed"])
def test_without_a_listing_damage_is_refused_or_changes_nothing(kind: str, unlisted: Path, tmp_path: Path) -> None:
    """What an earlier version saved; bytes that changed in the values alone cannot be found there."""
    checkpoint = unlisted / "checkpoints" / "7"
    refused: dict[str, str] = {}
    expected = named_leaves(large(7)) | {"progress": np.array(7)}
    for name in files_of(checkpoint):
        if name.endswith(UNREAD):
            continue
        kept = (checkpoint / name).read_bytes()
        damage(checkpoint / name, kind)
        try:
            found = restored(unlisted)
        except UserError as error:
            refused[name] = str(error)
        else:
            assert_bitwise_equal(found, expected)
        (checkpoint / name).write_bytes(kept)
    assert {"config/metadata", "progress/metadata", "state/_METADATA", "state/manifest.ocdbt"} <= set(refused)
    assert any("ocdbt.process_0/d/" in name for name in refused), "a file of values is among them"
    rest = (
        f"the newest whole checkpoint is that of step 3. Copy the file back, or rename {checkpoint} to 7.damaged to go"
    )
    assert all(said.startswith("the checkpoint of step 7 is damaged: ") and rest in said for said in refused.values())


MESSAGE = (
    "the checkpoint of step 7 is damaged: {folder}/7/progress/metadata has 0 bytes of 12; the newest whole checkpoint "
    "is that of step 3. Copy the file back, or rename {folder}/7 to 7.damaged to go on from step 3; launch/main.py "
    "does so with --skip_damaged"
)


@pytest.mark.parametrize("read", [load_state, open_model, lambda workdir: settle_damage(workdir, skip=False)])
def test_every_reader_of_a_run_says_the_same(read: Callable[[Path], Any], copy: Path) -> None:
    folder = copy / "checkpoints"
    damage(folder / "7" / "progress" / "metadata", "emptied")
    with pytest.raises(UserError) as refused:
        read(copy)
    assert str(refused.value) == MESSAGE.format(folder=folder)
    (folder / "7").rename(folder / "7.damaged")
    assert int(load_state(copy)[0]["step"]) == 3


def test_what_is_damaged_is_renamed_when_told_to(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = copy / "checkpoints"
    damage(folder / "7" / "config" / "metadata", "cut")
    (folder / "7.damaged").mkdir()
    settle_damage(copy, skip=True)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "7.damaged", "7.damaged1"]
    assert f"the checkpoint of step 7 is damaged: {folder}/7/config/metadata has " in caplog.text
    assert caplog.text.strip().endswith("it is renamed to 7.damaged1")
    assert restored(copy)["progress"] == 3
    settle_damage(copy, skip=True)
    assert steps_of(folder) == [3]


def test_no_whole_checkpoint_is_left(copy: Path) -> None:
    """Then nothing is renamed, and no run starts anew beside what may be mended."""
    folder = copy / "checkpoints"
    shutil.rmtree(folder / "3" / "config")
    damage(folder / "7" / "state" / "manifest.ocdbt", "removed")
    message = (
        f"the checkpoint of step 7 is damaged: {folder}/7/state/manifest.ocdbt is absent; the checkpoint of step 3 is "
        f"damaged: {folder}/3/config/metadata is absent; there is no whole one. Copy the file back, or start anew in "
        "an empty --workdir"
    )
    with pytest.raises(UserError) as refused:
        settle_damage(copy, skip=True)
    assert str(refused.value) == message
    assert steps_of(folder) == [3, 7]


def test_an_empty_folder_is_no_checkpoint(copy: Path) -> None:
    (copy / "checkpoints" / "9").mkdir()
    (copy / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(UserError, match=r"step 9 is damaged: .*/9/config/metadata is absent; the newest .* step 7"):
        load_state(copy)


@pytest.mark.parametrize("name", ["007", "08", "９", "7.damaged", "7 (copy)"])
def test_a_folder_that_orbax_would_not_have_named_so_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    for step in ("7", name):
        (tmp_path / step).mkdir()
    assert steps_of(tmp_path) == [7]


def test_metrics_of_an_older_checkpoint(copy: Path, tmp_path: Path) -> None:
    """Orbax reads those of all; other damage of an older checkpoint stops nothing."""
    saved(copy, {9: 2.0}, state=large, keep_last=3).close()
    damage(copy / "checkpoints" / "7" / "config" / "metadata", "cut")
    settle_damage(copy, skip=False)
    damage(copy / "checkpoints" / "7" / "metrics" / "metrics", "zeroed")
    with pytest.raises(UserError, match=r"step 7 is damaged: .*/7/metrics/metrics .* the newest .* of step 9. Copy"):
        settle_damage(copy, skip=False)
    settle_damage(copy, skip=True)
    assert restored(copy)["progress"] == 9


def test_a_run_that_saves_while_others_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it removes is not called damaged: the reader takes the newer one, or says what happened."""
    folder = copy / "checkpoints"
    shutil.copytree(folder / "7", copy / "next")

    def save_and_remove() -> None:
        (copy / "next").rename(folder / "9")
        shutil.rmtree(folder / "7")

    def removed(checkpoint: Path) -> None:
        if checkpoint.name == "7":
            save_and_remove()
        check_whole(checkpoint)

    def save_and_read() -> None:
        with damage_refused(folder, 7):
            save_and_remove()
            (folder / "7" / "config" / "metadata").read_text()

    with monkeypatch.context() as patch:
        patch.setattr("r2d2_jax.damage.check_whole", removed)
        assert find_damage(folder) == ({}, 9)
    shutil.copytree(folder / "9", copy / "next")
    (folder / "9").rename(folder / "7")
    with pytest.raises(UserError, match=f"the run in {copy} has saved step 9 while step 7 was read; start again"):
        save_and_read()


def test_a_file_that_the_disk_does_not_give(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(DamagedError, match=r"/7/.* cannot be read: Input/output error"):
        check_whole(copy / "checkpoints" / "7")


def test_a_bug_stays_what_it_is(tmp_path: Path) -> None:
    for bug in (
        ValueError("operands could not be broadcast"),
        TypeError("no"),
        AttributeError("x"),
        KeyError("records"),
    ):
        with pytest.raises(type(bug)), reading(tmp_path):
            raise bug


def test_set_aside_takes_the_first_free_name(tmp_path: Path) -> None:
    for expected in ("5.damaged", "5.damaged1", "5.damaged2"):
        (tmp_path / "5").mkdir()
        assert set_aside(tmp_path / "5").name == expected


def test_a_checkpoint_that_cannot_be_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the arrays had not been merged; the checkpoint before it stays, though only one is kept."""
    checkpoints = saved(tmp_path, {3: None}, keep_last=1)
    original = Checkpoints._read_back

    def unmerged(self: Checkpoints) -> None:
        next(self.directory.glob("4*/state/manifest.ocdbt")).unlink()
        original(self)

    monkeypatch.setattr(Checkpoints, "_read_back", unmerged)
    checkpoints = Checkpoints(tmp_path, TrainConfig(batch_size=8, epochs=1.0, keep_last=1))
    checkpoints.save(state_of(4), CONFIG, {"pairs": 4})
    with pytest.raises(UserError) as stopped:
        checkpoints.wait()
    checkpoints.close()
    said = str(stopped.value)
    assert said.startswith(
        f"a checkpoint was written and cannot be read back: {tmp_path}/checkpoints/4.orbax-checkpoint-"
    )
    assert f"it is not kept, and the last good checkpoint is step 3 in {tmp_path}/checkpoints; check the disk" in said
    assert steps_of(tmp_path / "checkpoints") == [3]
    assert find_damage(tmp_path / "checkpoints") == ({}, 3)


def test_a_checkpoint_that_lacks_an_array_is_not_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    checkpoints._saving = (4, {**_leaves(state_of(4)), "params/more": "float32[2]"})
    (tmp_path / "checkpoints" / "4").mkdir()
    saved(tmp_path / "other", {4: None}).close()
    shutil.copytree(tmp_path / "other" / "checkpoints" / "4", tmp_path / "checkpoints" / "4", dirs_exist_ok=True)
    with pytest.raises(DamagedError, match=r"checkpoints/4 lacks what was saved: params/more$"):
        checkpoints._read_back()
    checkpoints.close()
