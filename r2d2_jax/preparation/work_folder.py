"""The working folder of a preparation: lock, identity check, cleanup."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2d2_jax.atomic import written_whole
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted
from r2d2_jax.lock import LOCK, held
from r2d2_jax.preparation.writer import check_absent

_IDENTITY = "preparation.json"


@contextlib.contextmanager
def unfinished_work(folder: Path, dataset: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Holds the folder for one preparation; removes it on success and keeps it otherwise.

    Args:
        folder: where the work is; made if absent.
        dataset: where the finished dataset will be.
        identity: what the preparation depends on, as plain JSON values; work of the same identity is continued.

    Raises:
        UserError: the dataset exists already, another preparation is running, the folder holds finished shards
            of another identity, or it cannot be written to.
    """
    with held(folder, "another preparation", "--output"):
        if dataset.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a preparation that was killed after it made the dataset
        check_absent(dataset)
        _enter(folder, dataset, identity)
        yield
        (folder / _IDENTITY).unlink()  # first: without it, whatever an interrupted removal leaves is ignored
        shutil.rmtree(folder)


def remove_half_written(folder: Path, name: str = "*") -> None:
    """Removes what killed processes were writing with `written_whole`: files and folders of this name, or of any."""
    _remove(folder.glob(f"{name}.unfinished-*"))


def _enter(folder: Path, dataset: Path, identity: dict[str, Any]) -> None:
    before = _read_identity(folder / _IDENTITY)
    differing = list(_differences(before, identity)) if before else []
    if differing and not any(folder.glob("*-[0-9]*.json")):
        before = {}  # no shard was finished, so nothing is lost, after a wrong path for example
    elif differing:
        raise UserError(
            f"{folder} was left over by a preparation with other settings or files; delete it, or go back "
            f"to them. {len(differing):,} differences, the first:\n{bulleted(differing[:FIRST_NAMES])}"
        )
    if before:
        remove_half_written(folder)
    else:
        _remove(folder.iterdir())  # of unknown origin, or of no use
    remove_half_written(dataset.parent, dataset.name)
    if not before:
        with written_whole(folder / _IDENTITY) as unfinished:
            unfinished.write_text(json.dumps(identity, ensure_ascii=False), encoding="utf-8")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """One line for each setting that differs, and for each file of the corpus that does."""
    for key in now | before:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            yield from (f"{key}: {name}: {old.get(name, 'absent')}, now {new.get(name, 'absent')}" for name in names)
        elif old != new:
            yield f"{key}: {old!r}, now {new!r}"


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent, or cut short when the machine lost power
        return {}


def _remove(paths: Iterator[Path]) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
