"""Whether a checkpoint is whole: every file of it is as it was when it was written and read back."""

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orbax.checkpoint as ocp

from r2d2_jax.atomic import written_whole
from r2d2_jax.buckets.path import COMMITTED, BucketPath
from r2d2_jax.buckets.transfer import crc32c, measured_there, move
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.paths import literal_path

LISTING = "files.json"  # in a checkpoint: size and checksum of each of its files
SET_ASIDE = "damaged"  # ends the name of a folder that is no longer looked at
# Orbax writes some of these after the listing and reads none of them again.
_UNLISTED = (LISTING, "_CHECKPOINT_METADATA", COMMITTED)
# What every checkpoint has, and is JSON; metrics only if it was evaluated.
_JSON_FILES, METRICS = ("config/metadata", "progress/metadata", "state/_METADATA"), "metrics/metrics"
_STEP = re.compile(r"0|[1-9][0-9]*")  # as they are written: "08" is not read as a checkpoint, nor "９"
_PIECE = 1 << 24  # bytes that are read at once
# What TensorStore's messages begin with where a file is absent, too short, or cannot be decoded.
_STATUS = re.compile(r"(DATA_LOSS|NOT_FOUND|FAILED_PRECONDITION|OUT_OF_RANGE|INVALID_ARGUMENT): ")
_DETAILS = re.compile(r" \[(?:tensorstore_spec|source locations)|\n")  # hundreds of characters
_QUOTED_PATH = re.compile(r'local file "([^"]+)"')


class DamagedError(Exception):
    """A checkpoint cannot be read. The message names the file, and what is wrong with it."""


def list_files(checkpoint: Path) -> None:
    """Writes the listing of a checkpoint that has just been read back.

    Raises:
        UserError: the disk refuses it.
    """
    text = json.dumps(_measured(checkpoint), sort_keys=True)
    with written_whole(checkpoint / LISTING) as unfinished:
        unfinished.write_text(f"{text}\n{zlib.crc32(text.encode())}\n", encoding="utf-8")


def find_damage(
    checkpoints: Path, known: Mapping[int, DamagedError] = MappingProxyType({})
) -> tuple[dict[int, DamagedError], int | None]:
    """Looks for the newest whole checkpoint of a folder; `known` is damage that was found otherwise.

    Returns:
        What is damaged, by step: every checkpoint that is newer, and older ones whose metrics cannot be read, since
        Orbax reads those of all. And the step of the newest whole checkpoint, None if there is none.
    """
    damaged, whole = dict(known), None
    steps = steps_of(checkpoints)
    for step in reversed([step for step in steps if step not in known]):
        try:
            if whole is None:
                check_whole(checkpoints / str(step))
                whole = step
            else:
                _check_json(checkpoints / str(step), METRICS)
        except DamagedError as damage:
            damaged[step] = damage
    if damaged and steps_of(checkpoints)[-1:] != steps[-1:]:  # a run at work there has saved, and may have removed some
        return find_damage(checkpoints)
    return damaged, whole


def check_whole(checkpoint: Path) -> None:
    """Checks every byte of a checkpoint against its listing, and without a listing whatever has a form.

    Raises:
        DamagedError: a file is absent or not as it was written.
    """
    if (checkpoint / LISTING).exists():
        _check_listed(checkpoint)
    else:  # of an earlier version
        read_metadata(checkpoint)


def read_metadata(checkpoint: Path) -> Any:
    """Reads everything but the values; returns the tree of the state, with the shape and dtype of each array.

    Raises:
        DamagedError: a file of it cannot be read.
    """
    per_process = (path.relative_to(checkpoint) for path in (checkpoint / "state").glob("array_metadatas/*"))
    _check_json(checkpoint, *_JSON_FILES, METRICS, "state/_sharding", *map(str, per_process))
    with reading(checkpoint):
        return ocp.StandardCheckpointHandler().metadata(literal_path(checkpoint, "the checkpoint") / "state").tree


@contextlib.contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise inside for a damaged file into DamagedError; all else goes through."""
    try:
        yield
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"a file of {checkpoint} is absent or cut short: {first_line(error)}") from error
    except Exception as error:  # Orbax wraps TensorStore's errors in plain Exceptions
        status = next((said for said in map(str, (error, error.__cause__)) if _STATUS.match(said)), None)
        if status is None:
            raise
        named = _QUOTED_PATH.search(status)
        raise DamagedError(f"{named.group(1) if named else checkpoint}: {_DETAILS.split(status)[0]}") from error


@contextlib.contextmanager
def damage_refused(checkpoints: Path, step: int) -> Iterator[None]:
    """Turns damage that shows only when the values of a checkpoint are read into the one message.

    Raises:
        UserError: there is such damage, which only a checkpoint without a listing can have; or a run at work there has
            removed the checkpoint meanwhile.
    """
    try:
        with reading(checkpoints / str(step)):
            yield
    except DamagedError as damage:
        if (newest := steps_of(checkpoints)[-1]) > step:
            raise UserError(
                f"the run in {checkpoints.parent} has saved step {newest} while step {step} was read; start again"
            ) from damage
        raise refusal(checkpoints, *find_damage(checkpoints, {step: damage}), by_hand=True) from damage


def steps_of(checkpoints: Path) -> list[int]:
    """The steps of all checkpoints in a folder, whole or not, in order."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if _STEP.fullmatch(path.name) and _is_there(path))


def _is_there(checkpoint: Path) -> bool:
    """Whether a folder is a checkpoint, and in a bucket one that was written to its end."""
    return (checkpoint / COMMITTED).exists() if isinstance(checkpoint, BucketPath) else checkpoint.is_dir()


def refusal(
    checkpoints: Path, damaged: dict[int, DamagedError], whole: int | None, *, by_hand: bool = False
) -> UserError:
    """The one message about damaged checkpoints: what is damaged, what is whole, and how to go on.

    `by_hand` leaves out the flag, which sees only damage that shows before the values are read.
    """
    said = "; ".join(f"the checkpoint of step {step} is damaged: {damage}" for step, damage in damaged.items())
    if whole is None:
        return UserError(f"{said}; there is no whole one. Copy the file back, or start anew in an empty --workdir")
    folders = " and ".join(f"{checkpoints / str(step)} to {step}.{SET_ASIDE}" for step in damaged)
    flag = "" if by_hand else "; launch/main.py does so with --skip_damaged"
    return UserError(
        f"{said}; the newest whole checkpoint is that of step {whole}. Copy the file back, or rename {folders} to go "
        f"on from step {whole}{flag}"
    )


def set_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint so that nothing reads it any more; returns its new path."""
    names = (f"{checkpoint.name}.{SET_ASIDE}{number or ''}" for number in range(10**6))
    aside = next(path for path in map(checkpoint.with_name, names) if not path.exists())
    if isinstance(checkpoint, BucketPath) and isinstance(aside, BucketPath):
        move(checkpoint, aside)
    else:
        checkpoint.rename(aside)
    return aside


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = f"{error.filename} cannot be read: " if error.filename else ""  # a bucket names it in the message
        raise DamagedError(f"{named}{error.strerror or first_line(error)}") from error


@_readable()
def _check_listed(checkpoint: Path) -> None:
    try:
        text, own = (checkpoint / LISTING).read_text(encoding="utf-8").splitlines()
        files = json.loads(text)
        sound = zlib.crc32(text.encode()) == int(own)
    except ValueError:
        sound = False
    if not sound:
        raise DamagedError(f"{checkpoint / LISTING} is not as it was written")
    there = measured_there(checkpoint) if isinstance(checkpoint, BucketPath) else {}
    for name, (size, _) in files.items():  # sizes first: that is quick, and what is cut short is said to be
        found = there[name][0] if name in there else _size(checkpoint / name)
        if found is None:
            raise DamagedError(f"{checkpoint / name} is absent")
        if found != size:
            raise DamagedError(f"{checkpoint / name} has {found:,} bytes of {size:,}")

    def is_as_listed(name: str) -> bool:
        checksum = files[name][1]
        if isinstance(checksum, int):  # of a checkpoint that was written on a disk, wherever it is now
            return _read_through(checkpoint / name)[1] == checksum
        return (there[name][1] if name in there else crc32c(checkpoint / name)) == checksum

    with ThreadPoolExecutor(4) as pool:
        for name, sound in zip(files, pool.map(is_as_listed, files), strict=True):
            if not sound:
                raise DamagedError(f"{checkpoint / name} has other bytes than were written")


@_readable()
def _check_json(checkpoint: Path, *names: str) -> None:
    for name in names:
        try:
            sound = isinstance(json.loads((checkpoint / name).read_text(encoding="utf-8")), dict)
        except FileNotFoundError as error:
            if name not in _JSON_FILES:
                continue
            raise DamagedError(f"{checkpoint / name} is absent") from error
        except ValueError:
            sound = False
        if not sound:
            raise DamagedError(f"{checkpoint / name} is cut short or has other bytes than were written")


def _measured(checkpoint: Path) -> dict[str, tuple[int, int | str]]:
    """Size and checksum of each file: the CRC-32 of those on a disk, the CRC-32C that a bucket keeps with objects."""
    if isinstance(checkpoint, BucketPath):
        return {name: found for name, found in measured_there(checkpoint).items() if _is_listed(name)}
    files = (path for path in checkpoint.rglob("*") if path.is_file() and _is_listed(path.name))
    return {path.relative_to(checkpoint).as_posix(): _read_through(path) for path in files}


def _is_listed(name: str) -> bool:
    return name.rpartition("/")[2] not in _UNLISTED


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _read_through(path: Path) -> tuple[int, int]:
    size, checksum = 0, 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum
