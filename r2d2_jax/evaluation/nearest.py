"""Cosines of two galleries in blocks of queries, and what is kept of them: ranks and the best candidates."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r2d2_jax.encoder import fetched
from r2d2_jax.evaluation.ground_truth import I2T, GroundTruth
from r2d2_jax.evaluation.ranks import best_ranks, top_candidates
from r2d2_jax.sharding import batch_sharding, replicated

# Queries of a block on each device. Constant, so that a cosine is the same bit by bit whatever the number of devices
# and the batch size of the towers are: a product of another shape may add in another order, which makes or breaks ties.
QUERIES_PER_DEVICE = 32
# Galleries are filled up to a multiple, so that no candidate falls into the last part of a product, which may add in
# another order.
CANDIDATE_MULTIPLE = 128


@dataclass(frozen=True)
class Nearest:
    """What one direction's queries find by cosine.

    queries: int [q], their positions. ranks: int [q] among all candidates, see `best_ranks`.
    candidates: int32 [q r], the best first. cosine: float32 [q r] and answers: bool [q r], of these. r is 0 if no
    candidates were asked for.
    """

    queries: np.ndarray
    ranks: np.ndarray
    candidates: np.ndarray
    cosine: np.ndarray
    answers: np.ndarray


def nearest(
    direction: str, truth: GroundTruth, image_embed: np.ndarray, text_embed: np.ndarray, count: int, mesh: Mesh
) -> Nearest:
    """Ranks and the `count` best candidates, fewer in a smaller gallery, of every query of a direction.

    Args:
        direction: "i2t" or "t2i".
        truth: the right answers.
        image_embed, text_embed: float32 [i e] and [t e] of unit norm.
        count: candidates per query.
        mesh: the devices; each multiplies its queries of a block by all candidates.
    """
    of_queries, of_candidates = (image_embed, text_embed) if direction == I2T else (text_embed, image_embed)
    queries = truth.queries(direction)
    parts = []
    for rows, cosine in cosine_blocks(of_queries[queries], of_candidates, mesh):
        positive = truth.positives(direction, queries[rows])
        best = top_candidates(cosine, positive, count) if count else np.zeros((len(cosine), 0), np.int32)
        taken = (np.take_along_axis(each, best, axis=1) for each in (cosine, positive))
        parts.append((best_ranks(cosine, positive), best, *taken))
    return Nearest(queries, *map(np.concatenate, zip(*parts, strict=True)))


def cosine_blocks(queries: np.ndarray, candidates: np.ndarray, mesh: Mesh) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields float32 [rows c], the same on every process, and which queries these are.

    Args:
        queries: float32 [q e]. candidates: float32 [c e].
        mesh: the devices.
    """
    size = QUERIES_PER_DEVICE * mesh.size
    columns = _filled(candidates, -(-len(candidates) // CANDIDATE_MULTIPLE) * CANDIDATE_MULTIPLE)
    on_devices = jax.make_array_from_callback(columns.shape, replicated(mesh), lambda index: columns[index])
    product = _product(mesh)

    def dispatched() -> Iterator[jax.Array]:
        for start in range(0, len(queries), size):
            rows = _filled(queries[start : start + size], size)
            yield product(jax.make_array_from_callback(rows.shape, batch_sharding(mesh), rows.__getitem__), on_devices)

    for number, block in enumerate(fetched(dispatched())):
        rows = slice(number * size, min((number + 1) * size, len(queries)))
        yield rows, block[: rows.stop - rows.start, : len(candidates)]


@functools.lru_cache(maxsize=8)
def _product(mesh: Mesh) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Compiled `queries @ candidates.T`, float32 throughout; rows stay split where one process sees all devices."""
    placement = batch_sharding(mesh) if jax.process_count() == 1 else replicated(mesh)
    return jax.jit(lambda q, c: jnp.matmul(q, c.T, precision=jax.lax.Precision.HIGHEST), out_shardings=placement)


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    return np.pad(rows.astype(np.float32, copy=False), ((0, count - len(rows)), (0, 0)))
