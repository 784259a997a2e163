"""Blocks of an evaluation that are done, so that a kill loses the block at work and no more."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2d2_jax.arrays import Params
from r2d2_jax.atomic import written_whole
from r2d2_jax.errors import UserError, bulleted
from r2d2_jax.lock import LOCK, held
from r2d2_jax.processes import by_first_process, gather_json
from r2d2_jax.sharding import path_name

# Not evaluation.json, which a run writes into its workdir: that is no folder to work in, nor to delete.
_IDENTITY, _SUFFIX = "blocks.json", ".npy"


class FinishedBlocks:
    """Arrays by name, each in a file of its own; without a folder nothing is kept.

    All processes see the same folder; the first one writes.
    """

    def __init__(self, folder: Path | None) -> None:
        """Looks once which blocks there are."""
        self._folder = folder
        self._names = set(gather_json(sorted(_names(folder)))[0]) if folder else set()

    @property
    def lasting(self) -> bool:
        """Whether blocks outlive this process."""
        return self._folder is not None

    def once(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The block of this name, from its file if it is done and computed otherwise.

        Raises:
            UserError: the disk refuses it.
        """
        found = self._read(name)
        if found is not None:
            return found
        block = compute()
        if self._folder is not None:
            path = self._folder / f"{name}{_SUFFIX}"
            by_first_process(lambda: _write(path, block))
        return block

    def _read(self, name: str) -> np.ndarray | None:
        """The block of this name if it is done and every process can read it."""
        if self._folder is None or name not in self._names:
            return None
        try:
            block = np.load(self._folder / f"{name}{_SUFFIX}")
        except (OSError, ValueError, EOFError):  # damaged, or removed by someone: it is computed again
            block = None
        return block if all(gather_json(block is not None)) else None


@contextlib.contextmanager
def finished_blocks(folder: Path | None, identity: Callable[[], dict[str, Any]]) -> Iterator[FinishedBlocks]:
    """Holds the folder for one evaluation; blocks of an earlier one with the same identity are used again.

    Args:
        folder: made if absent; None keeps nothing.
        identity: makes what the blocks depend on, as plain JSON values; only called with a folder.

    Raises:
        UserError: another process is at work there, it holds blocks of another identity or other files, or it cannot be
            written to.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None:
            what = identity()  # on every process: arrays of all of them go into it
            by_first_process(lambda: stack.enter_context(held(folder, "another evaluation", "work folder")))
            by_first_process(lambda: _enter(folder, what))
        yield FinishedBlocks(folder)


def params_checksum(params: Params) -> str:
    """A checksum of every name, dtype and value of a model, wherever its arrays are."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        local = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        values = np.asarray(leaf if local else multihost_utils.process_allgather(leaf, tiled=True))
        digest.update(f"{path_name(path)} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def rows_checksum(*parts: np.ndarray | list[str]) -> str:
    """A checksum of arrays and lists of strings."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(json.dumps(part).encode())
    return digest.hexdigest()


def _names(folder: Path) -> Iterator[str]:
    return (path.stem for path in folder.glob(f"*{_SUFFIX}"))


def _enter(folder: Path, identity: dict[str, Any]) -> None:
    before = _read_identity(folder / _IDENTITY)
    if before is None:
        _refuse_other_files(folder)
    elif keys := [key for key in identity | before if identity.get(key) != before.get(key)]:
        listed = bulleted(f"{key}: {before.get(key)!r}, now {identity.get(key)!r}" for key in keys)
        raise UserError(
            f"{folder} holds blocks of another evaluation; delete it, choose another work folder, or go back to what "
            f"it was begun with. What differs:\n{listed}"
        )
    for path in folder.glob("*.unfinished-*"):  # of a process that was killed
        path.unlink()
    if before is None:
        with written_whole(folder / _IDENTITY) as unfinished:
            unfinished.write_text(json.dumps(identity), encoding="utf-8")


def _refuse_other_files(folder: Path) -> None:
    own = (LOCK, f"{_IDENTITY}.unfinished-")  # all there is if a process was killed before its first block
    if other := sorted(path.name for path in folder.iterdir() if not path.name.startswith(own)):
        raise UserError(
            f"{folder} is no work folder of an evaluation: it holds {other[0]!r}; name an empty or new folder"
        )


def _read_identity(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(path: Path, block: np.ndarray) -> None:
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, block)
