"""Tokens that are kept, or made again block by block: the same figures, each image twice, a kill loses one block."""

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from encoder_cases import MODEL
from retrieval_cases import SmallSplit, evaluated, one_device

from r2d2_jax.arrays import Params
from r2d2_jax.encoder import Encoder, Keep, PairBatch
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation import gallery as module
from r2d2_jax.evaluation.finished import FinishedBlocks, finished_blocks
from r2d2_jax.evaluation.gallery import Gallery, distinct_texts
from r2d2_jax.evaluation.memory import Plan, retrieval_needs, smallest_limit

BATCH = 8
WHOLE = Plan(Keep.ON_DEVICES, 21, 37, whole=True)
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(MODEL.module, one_device(), BATCH)


@pytest.fixture(scope="module")
def params(encoder: Encoder) -> Params:
    return encoder.placed(MODEL.params)


@pytest.fixture
def made(encoder: Encoder, params: Params) -> Callable[..., Gallery]:
    def make(plan: Plan = WHOLE, finished: FinishedBlocks | None = None, split: Any = None) -> Gallery:
        return Gallery(encoder, params, split or SmallSplit(), plan, finished or FinishedBlocks(None), matched=True)

    return make


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCHES_PER_BLOCK", 1)


def pairs_of(count: int = 150) -> np.ndarray:
    return np.random.default_rng(5).integers(0, [21, 37], (count, 2))


@pytest.mark.parametrize("keep", [Keep.ON_DEVICES, Keep.ON_HOST])
@pytest.mark.parametrize("images, texts", [(8, 8), (16, 24), (24, 40)])
def test_blocks_give_what_kept_tokens_give(keep: Keep, images: int, texts: int, made: Callable[..., Gallery]) -> None:
    whole, blocks = made(), made(Plan(keep, images, texts, whole=False))
    np.testing.assert_allclose(blocks.image_embed, whole.image_embed, **CLOSE)
    np.testing.assert_allclose(blocks.text_embed, whole.text_embed, **CLOSE)
    np.testing.assert_allclose(blocks.match(pairs_of()), whole.match(pairs_of()), **CLOSE)


def test_each_image_passes_its_tower_once_more_in_all(made: Callable[..., Gallery]) -> None:
    """And each text for every block of images that asks for it; equal texts and equal pairs are one."""
    split = SmallSplit()
    texts = len(set(split.captions))
    assert texts < 37
    pairs = np.indices((21, 37)).reshape(2, -1).T
    for plan, images, encoded_texts in (
        (WHOLE, 21, texts),
        (Plan(Keep.ON_DEVICES, 8, 16, whole=False), 2 * 21, (1 + 3) * texts),
    ):
        split = SmallSplit()
        gallery = made(plan, split=split)
        gallery.match(np.concatenate([pairs, pairs[::-1]]))
        assert gallery.forwards == {"images": images, "texts": encoded_texts, "pairs": 21 * texts}
        assert np.bincount(split.decoded).tolist() == [images // 21] * 21


def test_no_more_tokens_than_planned_are_there(made: Callable[..., Gallery], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 images and 300 texts those of a block, of two batches of pairs on their way, and of two being encoded."""
    gallery = made(Plan(Keep.ON_DEVICES, 8, 16, whole=False), split=SmallSplit(200, 300))
    alive, match = [], Encoder.match_batches
    count = lambda: sum(array.nbytes for array in jax.live_arrays() if array.ndim == 3)  # noqa: E731
    gc.collect()  # what other tests have left
    before, image, text = count(), 10 * 64 * 4, 7 * 64 * 4

    def spied(encoder: Encoder, params: Params, batches: Iterable[PairBatch]) -> np.ndarray:
        return match(encoder, params, (alive.append(count()) or batch for batch in batches))

    monkeypatch.setattr(Encoder, "match_batches", spied)
    gallery.match(np.random.default_rng(0).integers(0, [200, 300], (2000, 2)))
    assert len(alive) > 200
    assert max(alive) - before <= (8 * image + 16 * text) + 4 * BATCH * (image + text) < (200 * image + 300 * text) / 4


def test_equal_texts_have_equal_scores(made: Callable[..., Gallery]) -> None:
    """To the last bit, in whatever batch they are: a tie stays a tie."""
    gallery, split = made(), SmallSplit()
    again = np.arange(2, 37, 3)
    assert split.captions[2] == split.captions[0]
    np.testing.assert_array_equal(gallery.text_embed[again], gallery.text_embed[again - 2])
    scores = [gallery.match(np.stack([np.full(len(texts), 4), texts], axis=1)) for texts in (again, again - 2)]
    np.testing.assert_array_equal(*scores)


def test_distinct_texts_keep_their_order() -> None:
    ids = np.array([[3, 1], [2, 2], [3, 1], [2, 2], [0, 9]], np.int32)
    mask = np.array([[True, True]] * 3 + [[True, False]] + [[True, True]])
    distinct, mask_of, place = distinct_texts(ids, mask)
    assert distinct.tolist() == [[3, 1], [2, 2], [2, 2], [0, 9]]
    assert mask_of.tolist() == [[True, True], [True, True], [True, False], [True, True]]
    assert place.tolist() == [0, 1, 0, 2, 3]


class KilledError(Exception):
    """As if the process were killed."""


@pytest.mark.parametrize("plan", [WHOLE, Plan(Keep.ON_DEVICES, 8, 16, whole=False)])
def test_a_kill_loses_one_block_and_changes_no_bit(
    plan: Plan, made: Callable[..., Gallery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the n-th block is computed, for every kind of block."""
    once, identity = FinishedBlocks.once, lambda: {"plan": str(plan)}
    with finished_blocks(tmp_path / "undisturbed", identity) as finished:
        gallery = made(plan, finished)
        expected, work = (gallery.image_embed, gallery.text_embed, gallery.match(pairs_of())), gallery.forwards
    computed: list[str] = []
    kill_at = [2, 5, 9, 14]

    def killed(blocks: FinishedBlocks, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        def computing() -> np.ndarray:
            computed.append(name)
            block = compute()
            if kill_at and len(computed) == kill_at[0]:
                kill_at.pop(0)
                raise KilledError
            return block

        return once(blocks, name, computing)

    monkeypatch.setattr(FinishedBlocks, "once", killed)
    for _ in range(4):
        with pytest.raises(KilledError), finished_blocks(tmp_path / "killed", identity) as finished:
            made(plan, finished).match(pairs_of())
    with finished_blocks(tmp_path / "killed", identity) as finished:
        gallery = made(plan, finished)
        found = gallery.image_embed, gallery.text_embed, gallery.match(pairs_of())
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()
    assert len(computed) == len(set(computed)) + 4, "each kill made one block due again"
    assert gallery.forwards["pairs"] < work["pairs"]
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "undisturbed").iterdir()
    }


def test_a_finished_evaluation_computes_nothing(made: Callable[..., Gallery], tmp_path: Path) -> None:
    for images in (2 * 21, 0):
        with finished_blocks(tmp_path, dict) as finished:
            gallery = made(WHOLE, finished)
            gallery.match(np.indices((21, 37)).reshape(2, -1).T)
        assert gallery.forwards["images"] == images


def test_a_whole_evaluation_within_a_limit_and_a_folder(encoder: Encoder, params: Params, tmp_path: Path) -> None:
    """The same figures as without; another limit, weights or settings do not fit the folder."""
    split: Any = SmallSplit()
    needs = retrieval_needs(encoder, MODEL.config, params, split, 6 * (21 + 37), measured=True)
    least = smallest_limit(needs)
    plain = evaluated(one_device(), BATCH)
    for _ in range(2):
        found = evaluated(one_device(), BATCH, memory_limit=least, work=tmp_path)
        assert (found.dual, found.cross, found.reranked) == (plain.dual, plain.cross, plain.reranked)
    assert found.forwards == {"images": 0, "texts": 0, "pairs": 0}
    for changed in ({"memory_limit": least + needs.tokens}, {"directions": ("t2i",)}, {"same_text_is_right": True}):
        with pytest.raises(UserError, match="holds blocks of another evaluation"):
            evaluated(one_device(), BATCH, **{"memory_limit": least, "work": tmp_path, **changed})
    with pytest.raises(UserError, match="expected at least"):
        evaluated(one_device(), BATCH, memory_limit=1000)
