"""What test_encoder compares between one device and eight: images, texts and pairs of a small model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from random_models import VOCABULARY, random_model

from r2d2_jax.encoder import Encoder, Keep
from r2d2_jax.evaluation.matching import pair_scores
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.inference import Ranker

IMAGES, TEXTS, PAIRS, BATCH = 21, 37, 43, 16  # no last batch is full
MODEL = random_model(layers=1, cross_layers=1, tokens=VOCABULARY)


def images(count: int = IMAGES) -> np.ndarray:
    """uint8 [count h w 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)


def texts(count: int = TEXTS) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask of texts of all lengths."""
    rng = np.random.default_rng(1)
    input_ids = rng.integers(0, 11, (count, 7), dtype=np.int32)
    return input_ids, np.arange(7) < rng.integers(1, 8, (count, 1))


def encoded(mesh: Mesh) -> dict[str, np.ndarray]:
    """Embeddings, tokens and match probabilities by an encoder; tokens both from the devices and from the host."""
    encoder = Encoder(MODEL.module, mesh, BATCH)
    params, (input_ids, mask) = encoder.placed(MODEL.params), texts()
    pairs = np.random.default_rng(2).integers(0, [IMAGES, TEXTS], (PAIRS, 2))
    found: dict[str, np.ndarray] = {}
    for keep in (Keep.ON_HOST, Keep.ON_DEVICES, Keep.NOTHING):
        image = encoder.encode_images(params, encoder.slices(images()), IMAGES, keep)
        text = encoder.encode_texts(params, input_ids, mask, keep)
        for name, result in (("image", image), ("text", text)):
            found |= {f"{name} feature {keep.name}": result.feature, f"{name} embed {keep.name}": result.embed}
            if keep is Keep.ON_HOST:
                found[f"{name} tokens ON_HOST"] = result.host_tokens
            elif keep is Keep.ON_DEVICES:
                values = result.tokens.values
                found[f"{name} tokens ON_DEVICES"] = np.asarray(values)[result.tokens.slot]
                found[f"{name} rows by device"] = np.array([len(part.data) for part in values.addressable_shards])
        if keep is not Keep.NOTHING:
            found[f"match {keep.name}"] = encoder.match(params, image.tokens, text.tokens, mask, pairs)
    return found | labelled(mesh)


@dataclass
class Pairs:
    """What `pair_scores` reads of a labelled split; some images have no pair among the first, some have many."""

    image: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray
    num_images = IMAGES

    def image_batches(self, batch_size: int, own: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, IMAGES, batch_size):
            rows = images()[start : start + batch_size]
            yield np.pad(rows, ((0, batch_size - len(rows)), (0, 0), (0, 0), (0, 0)))


def labelled_pairs() -> Pairs:
    """`TEXTS` texts, each beside an image."""
    return Pairs(np.sort(np.random.default_rng(3).integers(0, IMAGES, TEXTS)), *texts())


def labelled(mesh: Mesh, batch_size: int = BATCH) -> dict[str, np.ndarray]:
    """Scores of the labelled pairs."""
    scorer = Scorer(MODEL.module, mesh, batch_size)
    cosine, match = pair_scores(scorer, scorer.encoder.placed(MODEL.params), labelled_pairs())
    assert match is not None
    return {"labelled cosine": cosine, "labelled match": match}


def ranked(devices: Sequence[jax.Device]) -> dict[str, np.ndarray]:
    """The same for a Ranker, which fills batches up to powers of two; its batch size is no multiple of the devices."""
    ranker = Ranker(MODEL, batch_size=13, devices=devices)
    captions = ["大红圆", "小蓝方", "圆", "红", "大大圆"]
    image, text = ranker.encode_image(images(), tokens=True), ranker.encode_text(captions, tokens=True)
    scores = ranker.score_all(images(5), captions)
    assert scores.match is not None
    return {
        "image tokens": image.host_tokens,
        "image embed": image.embed,
        "text tokens": text.host_tokens,
        "text embed": text.embed,
        "match pairs": ranker.match(images(5), captions),
        "match one image": ranker.match(images(1), captions * 4),
        "match one text": ranker.match(images(19), captions[0]),
        "match alone": ranker.match(images(1), captions[0]),
        "cosine of all": scores.cosine,
        "match of all": scores.match,
    }
