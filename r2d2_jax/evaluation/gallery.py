"""The images and texts of a split for one model: embeddings first, then match probabilities of any pairs.

Tokens are a thousand times larger than embeddings. Where those of the whole split fit they are kept. Where they do not,
or where finished work is to outlive a kill, embeddings are made without them, pairs are put into the order of blocks of
images (outer) and of texts (inner), and the tokens of a block are made again when its pairs are due: so each image
passes its tower twice in all, and each text once more for every block of images.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.encoder import Encoder, Encodings, Keep, PairBatch, Tokens
from r2d2_jax.evaluation.finished import FinishedBlocks
from r2d2_jax.evaluation.memory import Plan
from r2d2_jax.evaluation.progress import Progress

# Rows or pairs of a finished block, in batches: what a kill loses at most, and how often a file is written.
BATCHES_PER_BLOCK = 16


class Gallery:
    """Embeddings of a split, and match probabilities of its pairs.

    Texts of equal tokens are one to the towers: they are encoded once, so their scores are equal to the last bit and a
    tie stays a tie.

    Attributes:
        image_embed: float32 [i e]. text_embed: float32 [t e]. The same on every process.
        forwards: how many "images", "texts" and "pairs" have passed a forward in this process.
    """

    def __init__(
        self,
        encoder: Encoder,
        params: Params,
        split: EvaluationSplit,
        plan: Plan,
        finished: FinishedBlocks,
        *,
        matched: bool,
    ) -> None:
        """Encodes every image and every text.

        Args:
            encoder: the compiled forwards.
            params: the model's parameters.
            split: the images and texts.
            plan: where the tokens go.
            finished: blocks that were done before, and where further ones go.
            matched: whether pairs will be asked for, so that tokens are kept at once where all of them fit.
        """
        self._encoder, self._params, self._split, self._finished = encoder, params, split, finished
        self._plan = plan
        self._input_ids, self._mask, self._row = distinct_texts(split.input_ids, split.attention_mask)
        self.forwards = {"images": 0, "texts": 0, "pairs": 0}
        self._kept: tuple[Tokens, Tokens] | None = None
        counts = {"images": split.num_images, "texts": len(self._input_ids)}
        if matched and plan.whole and not finished.lasting:
            images, texts = (self._encode_alone(unit, np.arange(count)) for unit, count in counts.items())
            self._kept = images.kept_tokens, texts.kept_tokens
            self.image_embed, text_embed = images.embed, texts.embed
        else:
            self.image_embed, text_embed = (self._embeddings(unit, count) for unit, count in counts.items())
        self.text_embed = text_embed if len(text_embed) == len(self._row) else text_embed[self._row]

    def match(self, pairs: np.ndarray) -> np.ndarray:
        """Match probability float32 [p] of pairs int [p 2] of (image, text); each different pair is scored once."""
        texts = len(self._input_ids)
        keys, places = np.unique(pairs[:, 0].astype(np.int64) * texts + self._row[pairs[:, 1]], return_inverse=True)
        with Progress("pairs", len(keys)) as progress:
            found = self._match_sorted(*np.divmod(keys, texts), progress)
        return found[places.ravel()]

    def _embeddings(self, unit: str, count: int) -> np.ndarray:
        """float32 [count e], block by block where finished blocks are kept."""
        size, done = BATCHES_PER_BLOCK * self._encoder.batch_size if self._finished.lasting else count, []
        with Progress(unit, count) as progress:
            for start in range(0, count, size):
                rows = np.arange(start, min(start + size, count))
                embed = partial(self._embed, unit, rows, progress)
                done.append(self._finished.once(f"{unit}-{start:09d}", embed))
                progress.skip_to(start + len(rows))
        return np.concatenate(done)

    def _embed(self, unit: str, rows: np.ndarray, progress: Progress) -> np.ndarray:
        return self._encode(unit, rows, Keep.NOTHING, progress).embed

    def _match_sorted(self, image: np.ndarray, text: np.ndarray, progress: Progress) -> np.ndarray:
        """Probability [p] of distinct pairs that are sorted by image."""
        if self._kept is not None:
            kept, pairs = (*self._kept, self._mask), np.stack([image, text], axis=1)
            return self._match_block("", len(pairs), lambda part: PairBatch(*kept, pairs[part]), progress)
        found = np.empty(len(image), np.float32)
        starts = np.flatnonzero(np.diff(image, prepend=-1))[:: self._plan.images]
        for number, block in enumerate(map(slice, starts, [*starts[1:], len(image)])):
            self._match_images(f"pairs-{number:06d}", image[block], text[block], found[block], progress)
        return found

    def _match_images(
        self, name: str, image: np.ndarray, text: np.ndarray, found: np.ndarray, progress: Progress
    ) -> None:
        """Fills in the probabilities of a block of images, the pairs of one block of texts after the other.

        Args:
            name: of the block.
            image, text: int [p], of each pair.
            found: float32 [p], a view into the result.
            progress: counts pairs.
        """
        (images, image_place), (texts, text_place) = (np.unique(each, return_inverse=True) for each in (image, text))
        # Made when the first pairs of a block are due: where all are done already, nothing is encoded again.
        image_tokens = functools.cache(lambda: self._encode_alone("images", images).kept_tokens)
        block = text_place // self._plan.texts
        order = np.argsort(block, kind="stable")
        for due in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            start = int(block[due[0]]) * self._plan.texts
            rows = texts[start : start + self._plan.texts]
            pairs = np.stack([image_place[due], text_place[due] - start], axis=1)
            text_tokens = functools.cache(lambda rows=rows: self._encode_alone("texts", rows).kept_tokens)
            batch = partial(_pair_batch, image_tokens, text_tokens, self._mask[rows], pairs)
            found[due] = self._match_block(f"{name}-{start:09d}", len(due), batch, progress)

    def _match_block(
        self, name: str, count: int, pairs: Callable[[slice], PairBatch], progress: Progress
    ) -> np.ndarray:
        """Probability [count] of the pairs of a block, in parts that are each finished for good."""
        size, done = BATCHES_PER_BLOCK * self._encoder.batch_size, []
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            passed = progress.done + part.stop - part.start
            compute = partial(self._matched, partial(pairs, part), progress)
            done.append(self._finished.once(f"{name}-{start:09d}", compute))
            progress.skip_to(passed)
        return np.concatenate(done)

    def _matched(self, made: Callable[[], PairBatch], progress: Progress) -> np.ndarray:
        block = made()
        self.forwards["pairs"] += len(block.pairs)
        batches = progress.over(self._encoder.slices(block.pairs))
        return self._encoder.match_batches(self._params, (replace(block, pairs=batch) for batch in batches))

    def _encode_alone(self, unit: str, rows: np.ndarray) -> Encodings:
        """Encodes some images or texts with their tokens, under a progress of their own."""
        with Progress(unit, len(rows)) as progress:
            return self._encode(unit, rows, self._plan.keep, progress)

    def _encode(self, unit: str, rows: np.ndarray, keep: Keep, progress: Progress) -> Encodings:
        """Encodes the "images" or "texts" at these positions."""
        encoder, params = self._encoder, self._params
        self.forwards[unit] += len(rows)
        if unit == "texts":
            return encoder.encode_texts(params, self._input_ids[rows], self._mask[rows], keep, progress.over)
        batches = self._split.image_batches(encoder.batch_size, encoder.own_rows(), rows)
        return encoder.encode_images(params, progress.over(batches), len(rows), keep)


def _pair_batch(
    image: Callable[[], Tokens], text: Callable[[], Tokens], mask: np.ndarray, pairs: np.ndarray, part: slice
) -> PairBatch:
    return PairBatch(image(), text(), mask, pairs[part])


def distinct_texts(input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every text once, in the order of its first occurrence.

    Args:
        input_ids: int32 [t l]. attention_mask: bool [t l].

    Returns:
        input_ids and attention_mask of the distinct texts, and int [t], where each text is among them.
    """
    whole = np.concatenate([input_ids, attention_mask], axis=1)
    _, first, inverse = np.unique(whole, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return input_ids[first[order]], attention_mask[first[order]], place[inverse.ravel()]
