"""A model to ask: encode images, encode texts, and say how well they match."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.convert.conversion import STUDENT, open_model
from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.transforms import evaluation_image, square_image
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.encoder import DeviceTokens, Encoder, Encodings, Keep, PairBatch
from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model
from r2d2_jax.sharding import make_mesh

OneImage = str | os.PathLike | Image.Image | np.ndarray
Images = OneImage | Sequence[OneImage]
Texts = str | Sequence[str]


def load(
    path: str | os.PathLike,
    *,
    vocabulary: str | os.PathLike | None = None,
    weights: str = STUDENT,
    batch_size: int = 64,
    map_punctuation: bool | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> "Ranker":
    """Loads a model for inference.

    Args:
        path: a published `.pth` or `.safetensors`, a converted or transformers folder, or the --workdir of a run.
        vocabulary: the WordPiece vocab.txt of the model; None means the one that the model came with.
        weights: of a run, "student" or "teacher".
        batch_size: the most rows of one forward, over all devices; rounded up to a multiple of their number.
        map_punctuation: map Chinese quotation marks, ellipsis and dash, which RoBERTa-wwm's vocabulary lacks, to ASCII.
            None means as in training: not for a published checkpoint, for ours as `data.map_punctuation` was.
        image_heads, text_heads: of a published checkpoint of unusual sizes, see `from_published`.
        devices: what computes; None means all devices of this process.

    Raises:
        UserError: there is no such model, it is damaged, or the vocabulary does not fit.
    """
    chosen = None if vocabulary is None else Path(vocabulary).expanduser()
    model = open_model(
        Path(path).expanduser(), weights=weights, image_heads=image_heads, text_heads=text_heads, vocabulary=chosen
    )
    return Ranker(model, batch_size=batch_size, map_punctuation=map_punctuation, devices=devices)


@dataclass(frozen=True)
class PairScores:
    """How well each of several images goes with each of several texts.

    cosine: float32 [i t]. match: match probability float32 [i t]; None if the model has no cross encoders.
    """

    cosine: np.ndarray
    match: np.ndarray | None


class Ranker:
    """A model with its vocabulary on the devices, compiled once for each power of two of rows per device.

    Results are NumPy arrays, float32.

    Attributes:
        config: the sizes.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 64,
        map_punctuation: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; expected 1 or more")
        self.config = model.config
        mesh = make_mesh(MeshConfig(), jax.local_devices() if devices is None else devices)
        self._model = model
        self._encoder = Encoder(model.module, mesh, -(-batch_size // mesh.size) * mesh.size, buckets=True)
        self._params = self._encoder.placed(model.params)
        self._map_punctuation = model.maps_punctuation if map_punctuation is None else map_punctuation
        self._tokenizer: Tokenizer | None = None

    def encode_image(self, images: Images, *, tokens: bool = False) -> Encodings:
        """Encodes images; files are read batch by batch.

        Args:
            images: one or several of: a path, a PIL image, a uint8 array [h w 3] of any size; or one float32 array
                [b h w 3] that is already normalised and of the model's size. What is no float is resized bicubically to
                a square and normalised with CLIP's mean and deviation, as in the published evaluation.
            tokens: also return what the cross encoders read, which is much larger than the embeddings.

        Returns:
            feature [b e], embed [b e] of unit norm, and tokens [b n d] if they are asked for.

        Raises:
            UserError: an image is absent, damaged, or an array of another form.
        """
        listed = self._listed(images)
        return self._encoder.encode_images(self._params, self._batches(listed), len(listed), _kept(tokens))

    def pixels(self, images: Images) -> np.ndarray:
        """The images as the model sees them: uint8 [b h w 3] of the model's size."""
        return np.stack([self._square(image) for image in self._listed(images)])

    def encode_text(
        self, texts: Texts | np.ndarray, attention_mask: np.ndarray | None = None, *, tokens: bool = False
    ) -> Encodings:
        """Encodes texts.

        Args:
            texts: one or several strings, cut at the model's text length; or int input_ids [b l].
            attention_mask: [b l] with input_ids: true where there is a token.
            tokens: also return what the cross encoders read.

        Returns:
            feature [b e], embed [b e] of unit norm, and tokens [b l d] if they are asked for. Strings are padded to the
            model's text length.

        Raises:
            UserError: the model came without a vocabulary, or ids and mask do not fit each other or the model.
        """
        input_ids, mask = self.token_ids(texts, attention_mask)
        return self._encoder.encode_texts(self._params, input_ids, mask, _kept(tokens))

    def token_ids(
        self, texts: Texts | np.ndarray, attention_mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """input_ids int32 [b l] and attention_mask bool [b l] of texts; ids that are given are only checked."""
        if not isinstance(texts, np.ndarray):
            listed = [texts] if isinstance(texts, str) else list(texts)
            if not listed:
                raise UserError("there are no texts to encode; expected one or more")
            return self.tokenizer(listed)
        size = self.config.text
        if not len(texts):
            raise UserError("there are no texts to encode; expected one or more")
        if attention_mask is None or np.shape(attention_mask) != texts.shape or texts.ndim != 2:
            raise UserError(
                f"input_ids have the shape {list(texts.shape)} and attention_mask "
                f"{None if attention_mask is None else list(np.shape(attention_mask))}; expected both [b l]"
            )
        if texts.shape[1] > size.max_positions:
            raise UserError(
                f"texts have {texts.shape[1]} tokens; the model has {size.max_positions} positions: cut them"
            )
        if texts.size and not (texts.min() >= 0 and texts.max() < size.vocabulary_size):
            raise UserError(
                f"input_ids run from {texts.min()} to {texts.max()}; the model has {size.vocabulary_size} tokens: "
                "use its own vocabulary"
            )
        return texts.astype(np.int32), np.asarray(attention_mask).astype(bool)

    def match(self, images: Images, texts: Texts) -> np.ndarray:
        """Match probability [b] of images and texts, pair by pair; a single one is paired with each of the others.

        Each image and each text is encoded once, just before its batch of pairs is matched.

        Raises:
            UserError: neither is single and their numbers differ, or the model has no cross encoders.
        """
        self._check_matches()
        listed, (input_ids, mask) = self._listed(images), self.token_ids(texts)
        if len({len(listed), len(input_ids)} - {1}) > 1:
            raise UserError(
                f"{len(listed)} images and {len(input_ids)} texts; expected as many of both, or one of either"
            )
        return self._encoder.match_batches(self._params, self._streamed_pairs(listed, input_ids, mask))

    def score_all(self, images: Images, texts: Texts) -> PairScores:
        """Scores every image with every text; each image and each text is encoded once."""
        keep = Keep.ON_DEVICES if self.matches else Keep.NOTHING
        listed, (input_ids, mask) = self._listed(images), self.token_ids(texts)
        image = self._encoder.encode_images(self._params, self._batches(listed), len(listed), keep)
        text = self._encoder.encode_texts(self._params, input_ids, mask, keep)
        cosine = image.embed @ text.embed.T
        if image.tokens is None or text.tokens is None:
            return PairScores(cosine, None)
        pairs = np.indices(cosine.shape).reshape(2, -1).T
        match = self._encoder.match(self._params, image.tokens, text.tokens, mask, pairs)
        return PairScores(cosine, match.reshape(cosine.shape))

    def match_tokens(self, image_tokens: np.ndarray, text_tokens: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Match probability [b], the mean of both cross encoders, of tokens that the towers gave, pair by pair.

        Args:
            image_tokens: [b n d]. text_tokens: [b l d]. attention_mask: [b l].

        Raises:
            UserError: there are no tokens, the numbers of rows differ, or the model has no cross encoders.
        """
        self._check_matches()
        if image_tokens is None or text_tokens is None:
            raise UserError(
                "there are no tokens; expected the `host_tokens` of images and texts encoded with tokens=True"
            )
        if not len(attention_mask):
            raise UserError("there are no pairs to match; expected one or more")
        if not len(image_tokens) == len(text_tokens) == len(attention_mask):
            raise UserError(
                f"{len(image_tokens)} rows of image tokens, {len(text_tokens)} of text tokens, {len(attention_mask)} "
                "of attention_mask; expected as many of each"
            )
        image, text, mask = np.asarray(image_tokens), np.asarray(text_tokens), np.asarray(attention_mask).astype(bool)
        pairs = np.repeat(np.arange(len(mask))[:, None], 2, axis=1)
        return self._encoder.match(self._params, image, text, mask, pairs)

    @property
    def matches(self) -> bool:
        """Whether the model has cross encoders."""
        return self._model.module.matching

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's vocabulary.

        Raises:
            UserError: the model came without a vocabulary.
        """
        if self._tokenizer is None:
            if self._model.vocabulary is None:
                raise UserError("the model came without a vocabulary: give its vocab.txt, or encode input_ids")
            length = self.config.text.text_length
            self._tokenizer = tokenizer_of(self._model.vocabulary, length, map_punctuation=self._map_punctuation)
        return self._tokenizer

    def _check_matches(self) -> None:
        if not self.matches:
            raise UserError("the model has no cross encoders (PRD2): compare embeddings instead")

    def _listed(self, images: Images) -> np.ndarray | Sequence[OneImage]:
        """Several images, checked as far as that needs no reading: normalised as one array, others as a sequence."""
        if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
            side = self.config.image.image_size
            if images.shape[1:] != (side, side, 3):
                raise UserError(
                    f"normalised images have the shape {list(images.shape)}; expected float32 [b {side} {side} 3]"
                )
            listed: np.ndarray | Sequence[OneImage] = images.astype(np.float32)
        elif isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) == 3:
            listed = [images]  # type: ignore[list-item]
        else:
            listed = images
        if not len(listed):
            raise UserError("there are no images to encode; expected one or more")
        return listed

    def _batches(self, listed: np.ndarray | Sequence[OneImage]) -> Iterator[np.ndarray]:
        """What the image tower takes, batch by batch."""
        size = self._encoder.batch_size
        return (self._rows(listed[start : start + size]) for start in range(0, len(listed), size))

    def _rows(self, listed: np.ndarray | Sequence[OneImage]) -> np.ndarray:
        if isinstance(listed, np.ndarray) and listed.dtype == np.float32:
            return listed
        return np.stack([self._square(image) for image in listed])

    def _streamed_pairs(
        self, listed: np.ndarray | Sequence[OneImage], input_ids: np.ndarray, mask: np.ndarray
    ) -> Iterator[PairBatch]:
        """Batches of pairs with the tokens of their own images and texts; those of a single one serve all batches."""
        params, size, count = self._params, self._encoder.batch_size, max(len(listed), len(input_ids))

        def images_at(rows: slice) -> DeviceTokens:
            return self._encoder.image_tokens(params, self._rows(listed[rows]))

        def texts_at(rows: slice) -> DeviceTokens:
            return self._encoder.text_tokens(params, input_ids[rows], mask[rows])

        one_image = images_at(slice(1)) if len(listed) == 1 else None
        one_text = texts_at(slice(1)) if len(input_ids) == 1 else None
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            image, text = one_image or images_at(rows), one_text or texts_at(rows)
            place = np.arange(rows.stop - start)
            pairs = np.stack([place % len(image), place % len(text)], axis=1)
            yield PairBatch(image, text, mask if one_text else mask[rows], pairs)

    def _square(self, image: OneImage) -> np.ndarray:
        side = self.config.image.image_size
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(f"an image is {image.dtype} {list(image.shape)}; expected uint8 [h w 3]")
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return square_image(image, side)
        try:
            return evaluation_image(Path(image).expanduser().read_bytes(), side)
        except (OSError, UnusableRecord) as error:
            raise UserError(f"image {image}: {error}; name a complete image file") from error


def _kept(tokens: bool) -> Keep:
    return Keep.ON_HOST if tokens else Keep.NOTHING
