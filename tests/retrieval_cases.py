"""Retrieval that tests make up: ground truth of every form, scores with ties, and the same counted in plain loops."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from encoder_cases import MODEL, images
from jax.sharding import Mesh

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.encoder import Encoder
from r2d2_jax.evaluation.ground_truth import DIRECTIONS, GroundTruth
from r2d2_jax.evaluation.ranks import CUTOFFS
from r2d2_jax.evaluation.retrieval import RetrievalReport, RetrievalSettings, evaluate_retrieval, ranks_of, report_of
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.sharding import make_mesh

FORMS = ("one caption", "several captions", "several images", "both, and galleries")


def one_device() -> Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def random_truth(form: str, seed: int, images: int = 15, texts: int = 40) -> GroundTruth:
    """A ground truth of this form, its pairs in any order."""
    rng = np.random.default_rng(seed)
    if form == "one caption":
        pairs = np.stack([rng.permutation(images), np.arange(images)], axis=1)
        return GroundTruth(images, images, pairs)
    if form == "several captions":
        owner = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, texts - images)]))
        return GroundTruth(images, texts, np.stack([owner, np.arange(texts)], axis=1))
    if form == "several images":
        return GroundTruth(texts, images, random_truth("several captions", seed, images, texts).pairs[:, ::-1])
    matrix = rng.random((images, texts)) < 0.06
    matrix[0, 0], matrix[-1], matrix[:, -1] = True, False, False
    return GroundTruth(images, texts, rng.permutation(np.argwhere(matrix)))


def right(truth: GroundTruth) -> np.ndarray:
    """bool [i t] of a truth without groups."""
    matrix = np.zeros((truth.num_images, truth.num_texts), bool)
    matrix[tuple(truth.pairs.T)] = True
    return matrix


@dataclass
class FakeGallery:
    """Cosines that are the entries of a matrix, and match probabilities from a table; remembers what it was asked."""

    cosine: np.ndarray
    table: np.ndarray | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)

    @property
    def image_embed(self) -> np.ndarray:
        return self.cosine.astype(np.float32)

    @property
    def text_embed(self) -> np.ndarray:
        return np.eye(self.cosine.shape[1], dtype=np.float32)

    def match(self, pairs: np.ndarray) -> np.ndarray:
        assert self.table is not None
        self.asked += [(int(image), int(text)) for image, text in pairs]
        return self.table[pairs[:, 0], pairs[:, 1]]


def random_scores(truth: GroundTruth, seed: int, decimals: int = 9) -> np.ndarray:
    """float32 [i t]; few decimals make many ties."""
    shape = truth.num_images, truth.num_texts
    return np.round(np.random.default_rng(seed).uniform(-1, 1, shape), decimals).astype(np.float32)


def report(gallery: FakeGallery, truth: GroundTruth, settings: RetrievalSettings) -> RetrievalReport:
    """What `evaluate_retrieval` reports of these scores."""
    return report_of(ranks_of(gallery, truth, settings, one_device()), truth, settings)


def naive_ranks(scores: np.ndarray, matrix: np.ndarray) -> list[int]:
    """How many wrong candidates score as high as each query's best right one; what has no right one asks nothing."""
    ranks = []
    for row, good in zip(scores, matrix, strict=True):
        if any(good):
            best = max(score for score, is_right in zip(row, good, strict=True) if is_right)
            ranks.append(sum(score >= best and not is_right for score, is_right in zip(row, good, strict=True)))
    return ranks


def naive_reranked_ranks(
    cosine: np.ndarray, added: np.ndarray, matrix: np.ndarray, count: int, *, alone: bool
) -> list[int]:
    """The place of the first right answer in lists that are written out: candidates by new score, then the others.

    Of equal scores a wrong answer stands first. New scores are `added` alone or its sum with the cosine.
    """
    ranks = []
    for row, more, good in zip(cosine, added, matrix, strict=True):
        if any(good):
            dual = sorted(range(len(row)), key=lambda c: (-row[c], good[c]))
            new = more if alone else row + more
            whole = sorted(dual[:count], key=lambda c: (-new[c], good[c])) + dual[count:]
            wrong = [not good[c] for c in whole]
            ranks.append(sum(wrong[: wrong.index(False)]))
    return ranks


def naive_recalls(ranks: dict[str, list[int]]) -> dict[str, float]:
    """In per cent, with the means."""
    found: dict[str, float] = {}
    for way, places in ranks.items():
        at = {f"{way}_r{k}": 100 * sum(rank < k for rank in places) / len(places) for k in CUTOFFS}
        found |= at | {f"{way}_mean": sum(at.values()) / len(at)}
    found["mean"] = sum(found[f"{way}_mean"] for way in ranks) / len(ranks)
    if len(ranks) == 2:
        found["r10"] = (found["i2t_r10"] + found["t2i_r10"]) / 2
    return found


class SmallSplit:
    """A split of random pictures and texts for the model of `encoder_cases`; every third text is one before it."""

    def __init__(self, count: int = 21, texts: int = 37) -> None:
        rng = np.random.default_rng(3)
        self.num_images, self.image_ids = count, [str(number) for number in range(count)]
        self.picture_checksums = self.image_ids
        self.input_ids = rng.integers(0, 11, (texts, 7), dtype=np.int32)
        self.attention_mask = np.arange(7) < rng.integers(1, 8, (texts, 1))
        again = np.arange(2, texts, 3)
        self.input_ids[again], self.attention_mask[again] = self.input_ids[again - 2], self.attention_mask[again - 2]
        self.captions = [str((*ids, *mask)) for ids, mask in zip(self.input_ids, self.attention_mask, strict=True)]
        self.pairs = np.stack([np.sort(rng.integers(0, count, texts)), np.arange(texts)], axis=1).astype(np.int32)
        self.decoded: list[int] = []

    def image_batches(
        self, batch_size: int, own: np.ndarray | None = None, images_at: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        chosen = np.arange(self.num_images) if images_at is None else images_at
        pixels = images(self.num_images)
        for start in range(0, len(chosen), batch_size):
            rows = chosen[start : start + batch_size]
            self.decoded += rows.tolist()
            yield np.concatenate([pixels[rows], np.zeros((batch_size - len(rows), *pixels.shape[1:]), np.uint8)])


def evaluated(mesh: Mesh, batch_size: int = 16, **settings: Any) -> RetrievalReport:
    """`SmallSplit` through the whole of it."""
    scorer = Scorer(MODEL.module, mesh, batch_size)
    params = Encoder(MODEL.module, mesh, batch_size).placed(MODEL.params)
    split: Any = SmallSplit()
    return evaluate_retrieval(scorer, params, split, RetrievalSettings(rerank=6, **settings))


def retrieved(mesh: Mesh) -> dict[str, np.ndarray]:
    """Every figure, for two batch sizes and two sets of directions."""
    found = {}
    for batch_size in (8, 16):
        for directions in (DIRECTIONS, ("t2i",)):
            report = evaluated(mesh, batch_size, directions=directions, intervals=True)
            for stage in ("dual", "cross", "reranked"):
                place = f"{len(directions)} {stage}"
                found |= {f"{place} {name} {batch_size}": np.array(at) for name, at in getattr(report, stage).items()}
                ends = report.intervals[stage].items()
                found |= {f"{place} {name} interval {batch_size}": np.array(at) for name, at in ends}
    return found
