"""The shards that img2dataset wrote, and their numbers.

For every shard it writes NAME_stats.json last, so a shard without that file is unfinished:

    00000.tar  00000.parquet  00000_stats.json      output_format webdataset; the .parquet has no images
    00000/     00000.parquet  00000_stats.json      output_format files
               00000.parquet  00000_stats.json      output_format parquet; the images are in the .parquet
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted, first_line

STATS = "_stats.json"
_SHARD_SUFFIXES = (".tar", ".parquet")


@dataclass(frozen=True)
class Shard:
    """A finished shard: its tar, Parquet file or folder, and its numbers."""

    archive: Path
    stats: Path


@dataclass(frozen=True)
class Downloads:
    """How many links a shard had, and how many of them led to an image."""

    links: int
    successes: int

    @property
    def dead(self) -> int:
        """Links that led to no image."""
        return self.links - self.successes


def finished_shards(root: Path) -> list[Shard]:
    """All shards in a folder and its subfolders, in the order of their paths.

    Raises:
        UserError: there is no shard, or some are unfinished.
    """
    shards: list[Shard] = []
    unfinished: list[str] = []
    for folder, files, shard_folders in _folders(root):
        finished = {name.removesuffix(STATS) for name in files if name.endswith(STATS)}
        started = {Path(name).stem for name in files if name.endswith(_SHARD_SUFFIXES)} | shard_folders
        shards += [_shard(folder, name, files | shard_folders) for name in sorted(finished)]
        unfinished += [str(folder / name) for name in sorted(started - finished)]
    if unfinished:
        raise UserError(
            f"{len(unfinished)} of the shards in {root} have no NAME{STATS}, so img2dataset has not "
            "finished them; let it finish (--incremental_mode=incremental), or move them away. If the tars "
            "were not made by img2dataset, use --corpus=webdataset; for Parquet files of a Hugging Face dataset, "
            f"--corpus=huggingface. The first:\n"
            f"{bulleted(unfinished[:FIRST_NAMES])}"
        )
    if not shards:
        raise UserError(
            f"{root} holds no shard of img2dataset; expected 00000.tar, 00000.parquet or a folder 00000, "
            f"with 00000{STATS} beside it"
        )
    return shards


def downloads(stats: Path) -> Downloads:
    """Reads a shard's numbers; raises UserError if they cannot be read."""
    try:
        numbers = json.loads(stats.read_bytes())
        return Downloads(int(numbers["count"]), int(numbers["successes"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{stats} cannot be read ({first_line(error)}); expected what img2dataset writes, with count "
            "and successes. Let img2dataset make that shard again"
        ) from error


def _folders(root: Path) -> Iterator[tuple[Path, set[str], set[str]]]:
    """The folder and those below it, in order, each with the names of its files and of the shards below it."""
    with os.scandir(root) as entries:
        visible = [entry for entry in entries if not entry.name.startswith((".", "_"))]
    files = {entry.name for entry in visible if entry.is_file()}
    folders = {entry.name for entry in visible if entry.is_dir()}
    shards = {name for name in folders if f"{name}{STATS}" in files or _unfinished_shard(root / name)}
    yield root, files, shards
    for name in sorted(folders - shards):
        yield from _folders(root / name)


def _unfinished_shard(folder: Path) -> bool:
    """Whether a folder has a shard's name, and holds no shard itself."""
    return folder.name.isdigit() and next(folder.glob(f"*{STATS}"), None) is None


def _shard(folder: Path, name: str, names: set[str]) -> Shard:
    for form in (f"{name}.tar", name, f"{name}.parquet"):
        if form in names:
            return Shard(folder / form, folder / f"{name}{STATS}")
    raise UserError(
        f"{folder / name}{STATS} is there, but neither {name}.tar nor {name}.parquet nor a folder {name}; "
        f"copy the shard again, or delete {name}{STATS}"
    )
