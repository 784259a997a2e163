"""Folders of small photographs, and what an index of them must hold."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from random_models import VOCABULARY, random_model

from r2d2_jax.inference import Ranker
from r2d2_jax.search.catalog import Catalog
from r2d2_jax.search.index import embeddings_file

BATCH = 4


def small_ranker(**changes: int) -> Ranker:
    """A random model with a vocabulary, in batches of `BATCH`."""
    return Ranker(random_model(tokens=VOCABULARY, **changes), batch_size=BATCH)


def picture(path: Path, seed: int) -> Path:
    """Writes a picture of noise, of which no two seeds are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return path


def photographs(folder: Path, count: int = 10) -> Path:
    """A folder of so many pictures, half of them in a folder below."""
    for number in range(count):
        picture(folder / ("below" if number % 2 else "") / f"{number:02d}.png", number)
    return folder


def indexed(folder: Path) -> dict[str, np.ndarray]:
    """The embedding [e] of each file of an index; each row is that of exactly one content."""
    with Catalog(folder) as catalog:
        width = catalog.fact("model")["sizes"]["embed_size"]
        rows = catalog.live_rows().tolist()
        embeddings = embeddings_file(folder, catalog.fact("generation"), width).rows(catalog.rows())
        paths = {row: paths for row, (_, paths) in catalog.files_in(rows).items()}
    listed = [os.fsdecode(path) for row in rows for path in paths[row]]
    assert len(listed) == len(set(listed))
    return {os.fsdecode(path): np.array(embeddings[row]) for row in rows for path in paths[row]}


def assert_holds(model: Ranker, photos: Path, folder: Path, names: list[str]) -> None:
    """The index has these files, no other, and each with the embedding of the picture that it shows."""
    found = indexed(folder)
    assert sorted(found) == sorted(names)
    wanted = model.encode_image([photos / name for name in names]).embed
    np.testing.assert_allclose(np.stack([found[name] for name in names]), wanted, atol=1e-5)
