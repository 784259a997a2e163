"""A model to ask: encode images, encode texts, and say how well they match."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.convert.conversion import STUDENT, open_model
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.encoder import DeviceTokens, Encoder, Encodings, Keep, PairBatch
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.inputs import ImageList, Images, Texts, as_array, checked_ids, checked_tokens, described, listed_texts
from r2d2_jax.models.store import Model
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.sharding import make_mesh

logger = logging.getLogger(__name__)


def load(
    path: str | os.PathLike,
    *,
    vocabulary: str | os.PathLike | None = None,
    weights: str = STUDENT,
    batch_size: int = 64,
    map_punctuation: bool | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    dtype: str = "float32",
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
        dtype: "float32", exact; or "bfloat16", in which accelerators multiply several times as fast. Norms, softmax,
            similarities and probabilities are float32 in both.
        devices: what computes; None means all devices of this process.

    Raises:
        UserError: there is no such model, it is damaged, the vocabulary does not fit, or a value is out of range.
    """
    chosen = None if vocabulary is None else _path(vocabulary, "the vocabulary")
    model = open_model(
        _path(path, "the model"), weights=weights, image_heads=image_heads, text_heads=text_heads, vocabulary=chosen
    ).computing_in(dtype)
    if model.notes:
        logger.info("%s: %s", path, "; ".join(model.notes))
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
        model: the model as it was opened.
        config: its sizes.
        batch_size: the most rows of one forward.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 64,
        map_punctuation: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}; expected 1 or more")
        self.config = model.config
        devices = jax.local_devices() if devices is None else devices
        several = isinstance(devices, Sequence) and len(devices) > 0
        if not several or not all(isinstance(device, jax.Device) for device in devices):
            raise UserError(f"devices are {devices}; expected some of jax.devices(), or None for all of this process")
        mesh = make_mesh(MeshConfig(), devices)
        self.model, self.batch_size = model, -(-batch_size // mesh.size) * mesh.size
        self._encoder = Encoder(model.module, mesh, self.batch_size, buckets=True)
        self._params = self._encoder.placed(model.params)
        self._map_punctuation = model.maps_punctuation if map_punctuation is None else map_punctuation
        self._tokenizer: Tokenizer | None = None

    def encode_image(self, images: Images, *, tokens: bool = False) -> Encodings:
        """Encodes images; files are read batch by batch, and nothing that the caller holds is changed.

        Args:
            images: one or several of: a path, a PIL image, the bytes of an image file, a file opened with "rb", a uint8
                array [h w 3], [h w 4], [h w 1] or [h w] of any size; or one float32 array [b h w 3] that is already
                normalised and of the model's size. Arrays may be those of another library. What is no float is turned
                upright, resized bicubically to a square and normalised with CLIP's mean and deviation, as in the
                published evaluation.
            tokens: also return what the cross encoders read, which is much larger than the embeddings.

        Returns:
            feature [b e], embed [b e] of unit norm, and tokens [b n d] if they are asked for.

        Raises:
            UserError: an image is absent, damaged, or an array of another form.
        """
        return self._encoded_images(self._listed(images), tokens)

    def pixels(self, images: Images) -> np.ndarray:
        """The images as the model sees them: uint8 [b h w 3] of the model's size.

        Raises:
            UserError: see `encode_image`; or they are normalised, and are no pixels any more.
        """
        listed = self._listed(images)
        if isinstance(listed.items, np.ndarray):
            raise UserError(f"images are {described(listed.items)}, already normalised; expected uint8 [h w 3]")
        return listed.rows(slice(None))

    def embed_pixels(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields embeddings float32 [b e] of unit norm batch by batch, so that a gallery of any size streams through.

        Args:
            batches: uint8 [b h w 3] pixels of the model's size, `batch_size` rows each, the last fewer. While the
                devices encode one batch the next is asked for.
        """
        return self._encoder.image_embeddings(self._params, batches)

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
        return self._encoded_texts(*self.token_ids(texts, attention_mask), tokens)

    def token_ids(
        self, texts: Texts | np.ndarray, attention_mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """input_ids int32 [b l] and attention_mask bool [b l] of texts; ids that are given are only checked.

        Raises:
            UserError: see `encode_text`.
        """
        is_array = hasattr(texts, "__array__") and not isinstance(texts, str)  # np.str_ is both
        if is_array or (attention_mask is not None and not isinstance(texts, str)):
            given = as_array(texts, "input_ids")
            # Objects with a mask are ids of an odd kind, too large for any integer for example, and refused as such.
            strings = given.dtype.kind in ("UST" if attention_mask is not None else "OUST")
            if not strings and (given.size or given.ndim != 1 or attention_mask is not None):
                return checked_ids(given, attention_mask, self.config.text)
            texts = given.tolist()
        if attention_mask is not None:
            raise UserError("attention_mask belongs to input_ids; leave it out where texts are strings")
        return self.tokenizer(listed_texts(texts))

    def match(self, images: Images, texts: Texts) -> np.ndarray:
        """Match probability [b] of images and texts, pair by pair; a single one is paired with each of the others.

        Each image and each text is encoded once, just before its batch of pairs is matched.

        Raises:
            UserError: neither is single and their numbers differ, or the model has no cross encoders.
        """
        pairs = self._pairs(images, *self.token_ids(texts))
        return self._encoder.match_batches(self._params, pairs) if pairs else np.zeros(0, np.float32)

    def attention(
        self, images: Images, texts: Texts | np.ndarray, attention_mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the text-image cross encoder reads of images, pair by pair as in `match`.

        `k` are its layers, `h` its heads, `l` the text tokens, `n` the image tokens: CLS, then patches row by row.

        Returns:
            weights [b k h l n], softmax weights that sum to one over the image tokens; and gradient [b k h l n], the
            derivative of log(p / (1 - p)) of that encoder's match probability by each of them.

        Raises:
            UserError: as in `match` and `token_ids`.
        """
        pairs = self._pairs(images, *self.token_ids(texts, attention_mask))
        found = [self._encoder.attention(self._params, batch) for batch in pairs or ()]
        if not found:
            cross, tokens = self.config.cross, (self.config.text.text_length, self.config.image.patches + 1)
            found = [(np.zeros((0, cross.layers, cross.heads, *tokens), np.float32),) * 2]
        weights, gradient = map(np.concatenate, zip(*found, strict=True))
        return weights, gradient

    def token_log_probabilities(
        self, images: Images, input_ids: np.ndarray, attention_mask: np.ndarray, ids: np.ndarray
    ) -> np.ndarray:
        """How probable masked-language modelling finds tokens, given images and texts, pair by pair as in `match`.

        Args:
            images: see `encode_image`.
            input_ids, attention_mask: [b l] or [1 l], what is read: the tokens in question masked.
            ids: int32 [b l], what is asked about at each place, one row for each pair.

        Returns:
            Log-probabilities [b l].

        Raises:
            UserError: as in `match` and `token_ids`, or the model has no head for masked-language modelling.
        """
        if not self.model.module.masked_lm:
            raise UserError("the model has no masked-language-model head: it was trained or saved without one")
        pairs = self._pairs(images, *self.token_ids(input_ids, attention_mask)) or ()
        ranges = self._encoder.ranges(len(ids))
        found = [
            self._encoder.token_log_probabilities(self._params, batch, ids[rows])
            for batch, rows in zip(pairs, ranges, strict=True)
        ]
        return np.concatenate(found) if found else np.zeros(ids.shape, np.float32)

    def score_all(self, images: Images, texts: Texts) -> PairScores:
        """Scores every image with every text.

        Each image is encoded once, and the texts once for each batch of images, so that no more tokens than those of a
        batch of images and a batch of texts are on the devices.

        Raises:
            UserError: see `encode_image` and `encode_text`.
        """
        listed, (input_ids, mask) = self._listed(images), self.token_ids(texts)
        if not self.matches:
            image, text = self._encoded_images(listed, False), self._encoded_texts(input_ids, mask, False)
            return PairScores(image.embed @ text.embed.T, None)
        cosine, match = np.zeros((2, len(listed), len(input_ids)), np.float32)
        for rows in self._encoder.ranges(len(listed)):
            pixels = listed.rows(rows)
            image = self._encoder.encode_images(self._params, [pixels], len(pixels), Keep.ON_DEVICES)
            for columns in self._encoder.ranges(len(input_ids)):
                text_mask = mask[columns]
                text = self._encoder.encode_texts(self._params, input_ids[columns], text_mask, Keep.ON_DEVICES)
                block = cosine[rows, columns] = image.embed @ text.embed.T
                pairs = np.indices(block.shape).reshape(2, -1).T
                found = self._encoder.match(self._params, image.kept_tokens, text.kept_tokens, text_mask, pairs)
                match[rows, columns] = found.reshape(block.shape)
        return PairScores(cosine, match)

    def match_tokens(self, image_tokens: np.ndarray, text_tokens: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Match probability [b], the mean of both cross encoders, of tokens that the towers gave, pair by pair.

        Args:
            image_tokens: [b n d]. text_tokens: [b l d]. attention_mask: [b l].

        Raises:
            UserError: there are no tokens, the numbers of rows differ, or the model has no cross encoders.
        """
        self.check_matches()
        widths = self.config.image.width, self.config.text.width
        image, text, mask = checked_tokens(image_tokens, text_tokens, attention_mask, widths)
        if not len(mask):
            return np.zeros(0, np.float32)
        pairs = np.repeat(np.arange(len(mask))[:, None], 2, axis=1)
        return self._encoder.match(self._params, image, text, mask, pairs)

    @property
    def matches(self) -> bool:
        """Whether the model has cross encoders."""
        return self.model.module.matching

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's vocabulary.

        Raises:
            UserError: the model came without a vocabulary.
        """
        if self._tokenizer is None:
            if self.model.vocabulary is None:
                raise UserError(
                    "the model came without a vocabulary: give vocabulary its vocab.txt, or encode input_ids"
                )
            length = self.config.text.text_length
            self._tokenizer = tokenizer_of(self.model.vocabulary, length, map_punctuation=self._map_punctuation)
        return self._tokenizer

    def _pairs(self, images: Images, input_ids: np.ndarray, mask: np.ndarray) -> Iterator[PairBatch] | None:
        """`_streamed_pairs` of what belongs together; None without any.

        Raises:
            UserError: neither is single and their numbers differ, or the model has no cross encoders.
        """
        self.check_matches()
        listed = self._listed(images)
        if len({len(listed), len(input_ids)} - {1}) > 1:
            raise UserError(
                f"{len(listed)} images and {len(input_ids)} texts; expected as many of both, or one of either"
            )
        return self._streamed_pairs(listed, input_ids, mask) if len(listed) and len(input_ids) else None

    def check_matches(self) -> None:
        """Raises UserError if the model has no cross encoders."""
        if not self.matches:
            raise UserError("the model has no cross encoders (PRD2): compare embeddings instead")

    def _listed(self, images: Images) -> ImageList:
        return ImageList.of(images, self.config.image.image_size)

    def _encoded_images(self, listed: ImageList, tokens: bool) -> Encodings:
        if not len(listed):
            return self._nothing((self.config.image.patches + 1, self.config.image.width) if tokens else None)
        batches = listed.batches(self._encoder.batch_size)
        return self._encoder.encode_images(self._params, batches, len(listed), _kept(tokens))

    def _encoded_texts(self, input_ids: np.ndarray, mask: np.ndarray, tokens: bool) -> Encodings:
        if not len(input_ids):
            return self._nothing((input_ids.shape[1], self.config.text.width) if tokens else None)
        return self._encoder.encode_texts(self._params, input_ids, mask, _kept(tokens))

    def _nothing(self, tokens: tuple[int, int] | None) -> Encodings:
        """What no images or no texts give; `tokens` [n d] if they are asked for."""
        none = np.zeros((0, self.config.embed_size), np.float32)
        return Encodings(none, none, None if tokens is None else np.zeros((0, *tokens), np.float32))

    def _streamed_pairs(self, listed: ImageList, input_ids: np.ndarray, mask: np.ndarray) -> Iterator[PairBatch]:
        """Batches of pairs with the tokens of their own images and texts; those of a single one serve all batches."""
        params, count = self._params, max(len(listed), len(input_ids))

        def images_at(rows: slice) -> DeviceTokens:
            return self._encoder.image_tokens(params, listed.rows(rows))

        def texts_at(rows: slice) -> DeviceTokens:
            return self._encoder.text_tokens(params, input_ids[rows], mask[rows])

        one_image = images_at(slice(1)) if len(listed) == 1 else None
        one_text = texts_at(slice(1)) if len(input_ids) == 1 else None
        for rows in self._encoder.ranges(count):
            image, text = one_image or images_at(rows), one_text or texts_at(rows)
            place = np.arange(rows.stop - rows.start)
            pairs = np.stack([place % len(image), place % len(text)], axis=1)
            yield PairBatch(image, text, mask if one_text else mask[rows], pairs)


def _kept(tokens: bool) -> Keep:
    return Keep.ON_HOST if tokens else Keep.NOTHING


def _path(given: str | os.PathLike, name: str) -> Path:
    if isinstance(given, str) and not given:
        raise UserError(f"{name} is ''; expected a file or folder")
    try:
        return path_or_bucket(given)
    except TypeError as error:
        raise UserError(f"{name} is {given!r}; expected a path ({first_line(error)})") from error
