"""Blocks that are done stay done, in a folder of one evaluation alone."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.finished import FinishedBlocks, finished_blocks, params_checksum, rows_checksum

IDENTITY = {"weights": "a", "batch size": 8}


def filled(folder: Path | None, value: float = 1.0, name: str = "pairs-0") -> np.ndarray:
    with finished_blocks(folder, lambda: IDENTITY) as finished:
        return finished.once(name, lambda: np.full(3, value, np.float32))


def test_a_block_is_computed_once(tmp_path: Path) -> None:
    assert filled(tmp_path, 1.0).tolist() == [1.0] * 3
    assert filled(tmp_path, 2.0).tolist() == [1.0] * 3
    assert filled(tmp_path, 2.0, "pairs-1").tolist() == [2.0] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks.json", "pairs-0.npy", "pairs-1.npy"]


def test_without_a_folder_nothing_is_kept() -> None:
    assert filled(None, 1.0).tolist() == [1.0] * 3
    assert filled(None, 2.0).tolist() == [2.0] * 3
    assert not FinishedBlocks(None).lasting


@pytest.mark.parametrize("cut", [0, 60, 130])
def test_a_damaged_block_is_computed_again(cut: int, tmp_path: Path) -> None:
    filled(tmp_path, 1.0)
    block = tmp_path / "pairs-0.npy"
    block.write_bytes(block.read_bytes()[:cut])
    assert filled(tmp_path, 2.0).tolist() == [2.0] * 3
    assert filled(tmp_path, 3.0).tolist() == [2.0] * 3


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "pairs-1.npy.unfinished-abc").write_bytes(b"half")
    filled(tmp_path)
    assert not list(tmp_path.glob("*unfinished*"))


def test_blocks_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    message = r"holds blocks of another evaluation; delete it, (.|\n)*- weights: 'a', now 'b'\n  - more: None, now 1$"
    other = {**IDENTITY, "weights": "b", "more": 1}
    with pytest.raises(UserError, match=message), finished_blocks(tmp_path, lambda: other):
        pass
    assert json.loads((tmp_path / "blocks.json").read_text()) == IDENTITY


def test_what_was_killed_before_its_first_block_begins_again(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "blocks.json.unfinished-abc").write_text("{")
    assert filled(tmp_path).tolist() == [1.0] * 3
    assert not list(tmp_path.glob("*unfinished*"))


def test_the_workdir_of_a_run_is_nothing_to_delete(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"step": 3}')
    with pytest.raises(UserError, match="is no work folder of an evaluation: it holds 'evaluation.json'"):
        filled(tmp_path)


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "other.json.unfinished-abc").touch()
    with pytest.raises(UserError, match=r"is no work folder of an evaluation: it holds 'notes.txt'"):
        filled(tmp_path)
    assert (tmp_path / "other.json.unfinished-abc").exists()


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    with (
        finished_blocks(tmp_path, lambda: IDENTITY),
        pytest.raises(UserError, match="another evaluation is at work in"),
        finished_blocks(tmp_path, lambda: IDENTITY),
    ):
        pass


def test_the_checksum_of_a_model_tells_every_value_apart() -> None:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    params = {"a": {"kernel": kernel}, "b": np.zeros(2, np.float32)}
    same = {"b": np.zeros(2, np.float32), "a": {"kernel": jnp.asarray(kernel)}}
    changed = [
        {**params, "b": np.array([0, 1e-30], np.float32)},
        {**params, "b": np.zeros(2, np.float16)},
        {**params, "a": {"kernel": kernel.reshape(3, 2)}},
        {**params, "a": {"bias": kernel}},
    ]
    assert params_checksum(same) == params_checksum(params)
    assert len({params_checksum(each) for each in [params, *changed]}) == 5


def test_the_checksum_of_a_split_tells_texts_and_rows_apart() -> None:
    rows = np.arange(4)
    found = [
        rows_checksum(["红", "蓝"], rows),
        rows_checksum(["红蓝"], rows),
        rows_checksum(["红", "蓝"], rows[::-1]),
        rows_checksum(["红", "蓝"], rows.reshape(2, 2)),
    ]
    assert len(set(found)) == 4
    assert rows_checksum(["红", "蓝"], np.arange(4)) == found[0]
