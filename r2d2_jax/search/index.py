"""An index of a folder of photographs: bring it up to date, and look at it as it is."""

import hashlib
import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from r2d2_jax.atomic import written_whole
from r2d2_jax.data.image.transforms import map_ahead
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted
from r2d2_jax.evaluation.finished import params_checksum, rows_checksum
from r2d2_jax.evaluation.progress import Progress
from r2d2_jax.extras import USEARCH, require
from r2d2_jax.inference import Ranker
from r2d2_jax.lock import held
from r2d2_jax.models.store import Model
from r2d2_jax.search.catalog import Catalog, Changes
from r2d2_jax.search.files import Content, decoded, found_files, read_content, shown
from r2d2_jax.search.nearest import Rounding, measured_recall
from r2d2_jax.search.store import RowFile, blocks

logger = logging.getLogger(__name__)

BROKEN = "broken.txt"
# Above so many pictures, the scan of all float32 rows takes longer than a person notices.
APPROXIMATE_ABOVE = 100_000
_WORK = "another indexing (--no_update searches meanwhile)"
_FILES_AT_ONCE = 4096  # of a transaction whose files need no encoding
# Rows of removed pictures stay, in case a file returns, until they are more than this share of the others.
_REMOVED_SHARE, _REMOVED_ROWS = 0.25, 1024


@dataclass(frozen=True)
class Update:
    """What bringing an index up to date has done.

    pictures: files with an embedding. encoded: pictures that passed the model now; the rest of the new and changed
    files had a content that was known. broken: files that are listed as no picture. changes: see `Changes`.
    seconds: of the whole update. recall: of the approximate index; None where the exact scan is used.
    """

    pictures: int
    encoded: int
    broken: int
    changes: Changes
    seconds: float
    recall: float | None

    def described(self, folder: Path) -> str:
        """One line or two for people."""
        changes, rate = self.changes, self.encoded / self.seconds if self.seconds else 0.0
        line = (
            f"{self.pictures:,} pictures in the index: {changes.new:,} files new, {changes.changed:,} changed, "
            f"{changes.removed:,} removed; {self.encoded:,} pictures encoded in {self.seconds:,.1f} s"
            f"{f', {rate:,.1f} a second' if self.encoded else ''}"
        )
        if self.recall is not None:
            line += f"\napproximate index: recall at 10 is {self.recall:.3f} of the exact scan's, on a sample"
        if self.broken:
            line += f"\n{self.broken:,} files are broken, listed in {folder / BROKEN}"
        return line


def default_folder(photos: Path) -> Path:
    """Where the index of a folder lies unless it is said: in the user's cache, since photographs may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = os.path.realpath(photos)
    mark = hashlib.blake2b(os.fsencode(place), digest_size=6).hexdigest()
    return cache / "r2d2_jax" / "search" / f"{Path(place).name}-{mark}"


def model_identity(model: Model) -> dict[str, Any]:
    """What embeddings depend on, as plain JSON values; the vocabulary only as far as a model has one."""
    sizes: dict[str, Any] = json.loads(json.dumps(model.config.described()))  # as they are read back: tuples are lists
    dtype = sizes.pop("dtype")
    vocabulary = None if model.vocabulary is None else rows_checksum([*model.vocabulary])
    return {"weights": params_checksum(model.params), "sizes": sizes, "dtype": dtype, "vocabulary": vocabulary}


def bring_up_to_date(
    model: Ranker, photos: Path, folder: Path, *, approximate_above: int = APPROXIMATE_ABOVE
) -> Update:
    """Makes the index of a folder of photographs, or follows what has changed there.

    Files whose size and time of change are as before are not read. Others are, and only contents that the index does
    not know are decoded and encoded. What was done before a kill is kept.

    Args:
        model: encodes the pictures, in batches of its size, on all its devices.
        photos: the folder, which is only read.
        folder: of the index; made if absent.
        approximate_above: from one picture more on, an approximate index is made as well.

    Raises:
        UserError: the folder has no file or no readable picture, another process is at work on the index, it is of
            another model, the disk refuses it, or a package is not installed.
    """
    start = time.monotonic()
    _check_photos(photos)
    with held(folder, _WORK, "--index"), Catalog(folder, create=True) as catalog:
        _enter(catalog, folder, model.model, photos)
        changes = catalog.compare(found_files(photos))
        if changes.files > approximate_above:
            require(USEARCH, f"an index of more than {approximate_above:,} files (--approximate_above)", "search")
        encoded = _follow(catalog, model, photos, folder, changes)
        catalog.remove_absent()
        pictures, broken = catalog.pictures(), _list_broken(catalog, folder)
        if not pictures:
            raise UserError(_nothing_readable(catalog, photos, broken))
        _leave_out_removed(catalog, folder)
        recall = approximate_rows(catalog, folder, above=approximate_above)
        with catalog.transaction():
            catalog.set_fact("complete", True)
    return Update(pictures, encoded, broken, changes, time.monotonic() - start, recall)


def check_model(catalog: Catalog, folder: Path, model: Model) -> None:
    """Raises UserError if an index was made with another model."""
    before = catalog.fact("model")
    if before is None:
        raise UserError(f"the index in {folder} was never begun; index the photographs first, without --no_update")
    _check_identity(before, model_identity(model), folder)


def _check_identity(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    # Older indexes also hold `remat`, which is no part of a model's identity.
    before = before | {"sizes": {name: before["sizes"].get(name) for name in now["sizes"]}}
    either = before["vocabulary"] is None or now["vocabulary"] is None
    differing = [name for name in now if before[name] != now[name] and not (name == "vocabulary" and either)]
    if differing:
        raise UserError(
            f"the index in {folder} was made with another model; name that one, choose another --index, or delete "
            f"that folder. What differs: {', '.join(differing)}"
        )


def embeddings_file(folder: Path, generation: int, width: int) -> RowFile:
    """The rows of an index; each time rows of removed pictures are left out begins a generation."""
    return RowFile(folder / f"embeddings-{generation}.f32", width)


def rounded_file(folder: Path, generation: int, width: int) -> RowFile:
    """The same rows as bytes, see `Rounding`."""
    return RowFile(folder / f"rounded-{generation}.i8", width, np.int8)


def rounding_of(fact: dict[str, Any]) -> Rounding:
    """The rounding that the catalogue's fact "rounded" records."""
    return Rounding(np.array(fact["mean"], np.float32), fact["scale"])


def approximate_rows(catalog: Catalog, folder: Path, *, above: int) -> float | None:
    """Brings the approximate index up to date where there are more pictures than `above`.

    Returns:
        Its recall at 10 on a sample; None where the exact scan is used.

    Raises:
        UserError: usearch is not installed, or the disk refuses the rows.
    """
    live = catalog.live_rows()
    generation, width, count = catalog.fact("generation"), catalog.fact("model")["sizes"]["embed_size"], catalog.rows()
    if len(live) <= above:
        with catalog.transaction():
            catalog.set_fact("rounded", None)
        return None
    fact, file = catalog.fact("rounded"), rounded_file(folder, generation, width)
    embeddings = embeddings_file(folder, generation, width).rows(count)
    usable = fact is not None and fact["generation"] == generation
    if usable and fact["rows"] == count:
        return float(fact["recall"])
    logger.info("rounding %s embeddings for the approximate index, and measuring its recall", f"{count:,}")
    rounding, done = (rounding_of(fact), fact["rows"]) if usable else (Rounding.of(embeddings), 0)
    for start, block in blocks(embeddings[done:]):
        file.write(done + start, rounding.rounded(block))
    mask = np.zeros(count, bool)
    mask[live] = True
    recall = measured_recall(file.rows(count), embeddings, mask)
    made = {"generation": generation, "rows": count, "recall": recall}
    with catalog.transaction():
        catalog.set_fact("rounded", {**made, "mean": rounding.mean.tolist(), "scale": rounding.scale})
    return recall


def _check_photos(photos: Path) -> None:
    try:
        if next(found_files(photos), None) is not None:
            return
    except OSError as error:
        raise UserError(
            f"--photos={photos} cannot be listed: {error.strerror}; name a folder of photographs"
        ) from error
    raise UserError(
        f"--photos={photos} is empty: neither there nor below is a file whose name ends like that of a picture, such "
        "as .jpg or .png; name a folder of photographs"
    )


def _enter(catalog: Catalog, folder: Path, model: Model, photos: Path) -> None:
    """Checks that the index is this model's, and removes what a killed process left."""
    place, now = shown(os.path.realpath(photos)), model_identity(model)
    before, place_before = catalog.fact("model", now), catalog.fact("photos", place)
    _check_identity(before, now, folder)
    if place_before != place:
        logger.info("the index was made of %s; from now on it is that of %s", place_before, place)
    with catalog.transaction():
        catalog.set_fact("model", now | {"vocabulary": now["vocabulary"] or before["vocabulary"]})
        catalog.set_fact("photos", place)
        catalog.set_fact("complete", False)
        catalog.set_fact("generation", catalog.fact("generation", 0))
    _remove_old_files(catalog, folder)


def _remove_old_files(catalog: Catalog, folder: Path) -> None:
    """Files of earlier generations, and half-written ones. Who has them open keeps them."""
    generation = catalog.fact("generation")
    current = {embeddings_file(folder, generation, 1).path, rounded_file(folder, generation, 1).path}
    for pattern in ("embeddings-*", "rounded-*", f"{BROKEN}.unfinished-*"):
        for path in folder.glob(pattern):
            if path not in current:
                path.unlink(missing_ok=True)


def _follow(catalog: Catalog, model: Ranker, photos: Path, folder: Path, changes: Changes) -> int:
    """Reads what is new or changed, and encodes what is unknown; returns how many pictures that were."""
    store = embeddings_file(folder, catalog.fact("generation"), model.config.embed_size)
    begun: set[bytes] = set()  # contents on their way, which the catalogue does not know yet
    read = map_ahead(partial(read_content, photos), catalog.unread())
    needed = (_without_known(content, catalog, begun) for content in read)
    side, encoded = model.config.image.image_size, 0
    contents = map_ahead(partial(decoded, side=side), needed)
    with Progress("files", changes.new + changes.changed) as progress:
        chunks = progress.over(_chunks(contents, model.batch_size))
        for chunk, embed in _encoded(model, chunks):
            if len(embed):
                store.write(catalog.rows(), embed)
            catalog.add(chunk)
            begun.difference_update(content.digest for content in chunk if content.digest is not None)
            encoded += len(embed)
    return encoded


def _without_known(content: Content, catalog: Catalog, begun: set[bytes]) -> Content:
    """The content without its bytes if it need not be decoded: it is known, or on its way."""
    if content.digest is None:
        return content
    if content.digest in begun or catalog.knows(content.digest):
        return Content(content.file, content.digest)
    begun.add(content.digest)
    return content


def _chunks(contents: Iterable[Content], pictures: int) -> Iterator[list[Content]]:
    """Contents in lists that end with so many pictures, or where few have one, with so many files."""
    chunk: list[Content] = []
    count = 0
    for content in contents:
        chunk.append(content)
        count += content.pixels is not None
        if count == pictures or len(chunk) == _FILES_AT_ONCE:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk


def _encoded(model: Ranker, chunks: Iterable[list[Content]]) -> Iterator[tuple[list[Content], np.ndarray]]:
    """Yields each chunk with the embeddings float32 [p e] of its pictures, while the devices encode the next."""
    waiting: deque[list[Content]] = deque()
    nothing = np.zeros((0, model.config.embed_size), np.float32)

    def batches() -> Iterator[np.ndarray]:
        for chunk in chunks:
            waiting.append(chunk)
            pixels = [content.pixels for content in chunk if content.pixels is not None]
            if pixels:
                yield np.stack(pixels)

    for embed in model.embed_pixels(batches()):
        while not any(content.pixels is not None for content in waiting[0]):
            yield waiting.popleft(), nothing
        yield waiting.popleft(), embed
    while waiting:
        yield waiting.popleft(), nothing


def _list_broken(catalog: Catalog, folder: Path) -> int:
    """Writes the list of broken files, a line for each, if there are any; returns their number."""
    count, path = 0, folder / BROKEN
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for broken, reason in catalog.broken():
            file.write(f"{shown(broken)}\t{shown(reason)}\n")
            count += 1
    if not count:
        path.unlink()
    return count


def _nothing_readable(catalog: Catalog, photos: Path, broken: int) -> str:
    first = [f"{shown(path)}: {reason}" for path, reason in itertools.islice(catalog.broken(), FIRST_NAMES)]
    return f"none of the {broken:,} files in --photos={photos} is a readable picture. The first:\n{bulleted(first)}"


def _leave_out_removed(catalog: Catalog, folder: Path) -> None:
    """Begins a generation without the rows of removed pictures once there are many of them."""
    live, generation = catalog.live_rows(), catalog.fact("generation")
    if catalog.rows() - len(live) <= max(_REMOVED_ROWS, _REMOVED_SHARE * len(live)):
        return
    width = catalog.fact("model")["sizes"]["embed_size"]
    before = embeddings_file(folder, generation, width).rows(catalog.rows())
    embeddings_file(folder, generation + 1, width).write_chosen(before, live)
    catalog.renumber(live, generation + 1)
    _remove_old_files(catalog, folder)
