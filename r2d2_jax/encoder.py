"""Encodes images, encodes texts and matches pairs with one model, over any number of devices.

Rows come from host memory in batches, each split over all devices of a mesh, and results return in the order of the
rows. Embeddings always return to the host. Tokens are a thousand times larger: they stay on the devices, where pairs
are gathered from them, and travel to the host only if the caller asks for that.
"""

import enum
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r2d2_jax.arrays import Encoded, Params
from r2d2_jax.forwards import CompiledForwards, compiled_forwards
from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.sharding import batch_sharding, state_shardings

# Batches dispatched at once: the devices compute one while the host prepares the next or takes in the last. More would
# only fill the devices' memory with inputs that wait.
IN_FLIGHT = 2


class Keep(enum.Enum):
    """What becomes of tokens once their rows are encoded."""

    NOTHING = enum.auto()
    ON_DEVICES = enum.auto()
    ON_HOST = enum.auto()


@dataclass(frozen=True)
class DeviceTokens:
    """Tokens of many rows on the devices.

    values: [slots n d], split by rows over the mesh. slot: int32 [b], where in `values` each row lies.
    """

    values: jax.Array
    slot: np.ndarray

    def __len__(self) -> int:
        return len(self.slot)


# Of rows in order: [b n d] or [b l d] in host memory, or on the devices.
Tokens = np.ndarray | DeviceTokens


@dataclass(frozen=True)
class Encodings:
    """What a tower makes of many rows, in their order.

    feature, embed: float32 [b e] in host memory, see `Encoded`. tokens: what `Keep` asked for, None for NOTHING.
    """

    feature: np.ndarray
    embed: np.ndarray
    tokens: Tokens | None

    @property
    def kept_tokens(self) -> Tokens:
        """The tokens of a caller that asked for them, wherever they are."""
        if self.tokens is None:
            raise ValueError("tokens were not kept")
        return self.tokens

    @property
    def host_tokens(self) -> np.ndarray:
        """The tokens of a caller that asked for them in host memory."""
        if not isinstance(self.tokens, np.ndarray):
            raise ValueError("tokens were not kept on the host; encode with tokens=True")
        return self.tokens


@dataclass(frozen=True)
class PairBatch:
    """At most a batch of pairs, and the tokens that they read.

    image_tokens, text_tokens: of any number of images and texts. attention_mask: bool [t l], of the texts.
    pairs: int [p 2] of (image, text), positions among them.
    """

    image_tokens: Tokens
    text_tokens: Tokens
    attention_mask: np.ndarray
    pairs: np.ndarray


class Encoder:
    """The forwards of one model on one mesh. What is compiled is shared by all encoders of equal model and mesh.

    Attributes:
        batch_size: the most rows of one forward, over all devices.
        mesh: the devices.
    """

    def __init__(self, model: R2D2, mesh: Mesh, batch_size: int, *, buckets: bool = False) -> None:
        """Compiles nothing yet.

        Args:
            model: the Linen module.
            mesh: the devices.
            batch_size: the most rows of one forward; a multiple of the number of devices.
            buckets: fill a batch that is not full up to a power of two of rows per device, for callers that ask for
                few rows at a time. Without it every batch is filled up to `batch_size`, and compiled once.
        """
        if batch_size < 1 or batch_size % mesh.size:
            raise ValueError(f"batch_size is {batch_size}; expected a positive multiple of {mesh.size} devices")
        self.batch_size, self.mesh = batch_size, mesh
        self._buckets = buckets
        self._compiled = compiled_forwards(model, mesh)

    def placed(self, params: Params) -> Params:
        """Parameters on the devices, placed as in training."""
        return jax.device_put(params, state_shardings(params, self.mesh))

    def moved(self, params: Params) -> Params:
        """As `placed`, but each leaf on the devices replaces that of `params`, whose copy in host memory is freed.

        Host memory never holds more than one leaf twice, which matters where the devices compute in it. What `placed`
        returns shares the leaves of `params` with the caller; this changes the caller's dict and returns it.
        """
        _move(params, state_shardings(params, self.mesh))
        return params

    def encode_images(self, params: Params, batches: Iterable[np.ndarray], count: int, keep: Keep) -> Encodings:
        """Encodes images that arrive in batches, so that a gallery of any size streams through.

        Args:
            params: the model's parameters.
            batches: uint8 [b h w 3] pixels, or float32 [b h w 3] normalised; `batch_size` rows each, the last fewer.
            count: the rows of all batches together.
            keep: what becomes of the tokens [b n d].
        """
        forwards = self._compiled.embed_image, self._compiled.encode_image
        return self._encode(forwards, params, ((images,) for images in batches), count, keep)

    def image_embeddings(self, params: Params, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields embeddings float32 [b e] of each batch, as of `encode_images`, once the next one is dispatched."""
        sizes: deque[int] = deque()

        def dispatched() -> Iterator[jax.Array]:
            for images in batches:
                sizes.append(len(images))
                yield self._compiled.embed_image(params, self._placed(images))[1]

        for embed in fetched(dispatched()):
            yield embed[: sizes.popleft()]

    def encode_texts(
        self,
        params: Params,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        keep: Keep,
        watched: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]] = iter,
    ) -> Encodings:
        """Encodes texts.

        Args:
            params: the model's parameters.
            input_ids: int32 [b l].
            attention_mask: bool [b l].
            keep: what becomes of the tokens [b l d].
            watched: the batches pass through it, so that they can be counted.
        """
        batches = zip(watched(self.slices(input_ids)), self.slices(attention_mask), strict=True)
        forwards = self._compiled.embed_text, self._compiled.encode_text
        return self._encode(forwards, params, batches, len(input_ids), keep)

    def image_tokens(self, params: Params, images: np.ndarray) -> DeviceTokens:
        """Dispatches one batch, as of `encode_images`, without waiting for its tokens."""
        return self._one_batch(self._compiled.encode_image, params, images)

    def text_tokens(self, params: Params, input_ids: np.ndarray, attention_mask: np.ndarray) -> DeviceTokens:
        """Dispatches one batch, as of `encode_texts`, without waiting for its tokens."""
        return self._one_batch(self._compiled.encode_text, params, input_ids, attention_mask)

    def match(self, params: Params, image: Tokens, text: Tokens, mask: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Match probability float32 [p] of pairs int [p 2] of (image, text); see `PairBatch` for the rest.

        Tokens are gathered batch by batch, so that memory does not grow with the number of pairs.
        """
        return self.match_batches(params, (PairBatch(image, text, mask, batch) for batch in self.slices(pairs)))

    def match_batches(self, params: Params, batches: Iterable[PairBatch]) -> np.ndarray:
        """Match probability float32 [p] of all pairs; only the last batch may have fewer than `batch_size`.

        The tokens of a batch may be encoded just before it, so that those of earlier ones need not be kept.
        """
        sizes: list[int] = []

        def dispatched() -> Iterator[jax.Array]:
            for batch in batches:
                sizes.append(len(batch.pairs))
                yield self._compiled.match(params, *self._gathered(batch))

        results = list(fetched(dispatched()))
        return np.concatenate(results)[: sum(sizes)]

    def cross_stages(self, params: Params, pairs: PairBatch) -> tuple[np.ndarray, np.ndarray]:
        """All last hidden states [p l d] and [p n d] of the cross encoders text-image and image-text, for one batch."""
        results = jax.device_get(self._compiled.cross(params, *self._gathered(pairs)))
        return results[0][: len(pairs.pairs)], results[1][: len(pairs.pairs)]

    def attention(self, params: Params, pairs: PairBatch) -> tuple[np.ndarray, np.ndarray]:
        """Weights and gradient [p k h l n] of `forwards.text_image_attention`, for one batch."""
        results = jax.device_get(self._compiled.attention(params, *self._gathered(pairs)))
        return results[0][: len(pairs.pairs)], results[1][: len(pairs.pairs)]

    def token_log_probabilities(self, params: Params, pairs: PairBatch, ids: np.ndarray) -> np.ndarray:
        """Log-probability float32 [p l] that masked-language modelling gives the ids int32 [p l], for one batch."""
        found = self._compiled.token_log_probabilities(params, *self._gathered(pairs), self._placed(ids))
        return jax.device_get(found)[: len(ids)]

    def forward_bytes(self, params: Params, image_shape: tuple[int, ...], text_length: int) -> int:
        """Bytes that the largest forward of a full batch takes on a device beside parameters and kept tokens.

        That is what XLA plans for its intermediate values, and results and inputs of the batches that are on their way.
        All forwards are compiled for it, which they would be anyway.

        Args:
            params: the model's parameters.
            image_shape: [h w 3] of uint8 images.
            text_length: `l`.
        """
        rows, call = batch_sharding(self.mesh), self._compiled

        def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=rows)

        images, mask = shaped(image_shape, np.uint8), shaped((text_length,), bool)
        ids = shaped((text_length,), np.int32)
        image = jax.eval_shape(call.encode_image, params, images).tokens
        text = jax.eval_shape(call.encode_text, params, ids, mask).tokens
        image_tokens, text_tokens = (shaped(each.shape[1:], each.dtype) for each in (image, text))
        lowered = [call.encode_image.lower(params, images), call.encode_text.lower(params, ids, mask)]
        if "text_image_match_head" in params:
            lowered.append(call.match.lower(params, text_tokens, mask, image_tokens))
        sizes = [each.compile().memory_analysis() for each in lowered]
        inputs = sum(math.prod(each.shape) * each.dtype.itemsize for each in (images, image_tokens, text_tokens))
        largest = max(each.temp_size_in_bytes + IN_FLIGHT * each.output_size_in_bytes for each in sizes)
        return largest + IN_FLIGHT * inputs // self.mesh.size

    def slices(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Rows in batches, the last one as long as it is."""
        return (rows[each] for each in self.ranges(len(rows)))

    def ranges(self, count: int) -> Iterator[slice]:
        """The places of `count` rows in batches."""
        return (slice(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size))

    def own_rows(self) -> np.ndarray:
        """bool [batch_size], True where a row of a full batch lies on a device of this process."""
        own = np.zeros(self.batch_size, bool)
        for rows in batch_sharding(self.mesh).addressable_devices_indices_map(own.shape).values():
            own[rows] = True
        return own

    def _encode(
        self,
        forwards: tuple[Callable[..., tuple[jax.Array, ...]], Callable[..., Encoded]],
        params: Params,
        batches: Iterable[tuple[np.ndarray, ...]],
        count: int,
        keep: Keep,
    ) -> Encodings:
        """Runs (embeddings alone, everything) of a tower over all batches, of which only the last may be filled up."""
        embed, encode = forwards
        sizes = [self._bucket(min(self.batch_size, count - start)) for start in range(0, count, self.batch_size)]
        kept = _TokenBuffer(self._compiled, self.mesh, sizes)

        def dispatched() -> Iterator[tuple[jax.Array, ...]]:
            for rows in batches:
                inputs = params, *map(self._placed, rows)
                if keep is Keep.NOTHING:
                    yield embed(*inputs)
                    continue
                encoded = encode(*inputs)
                if keep is Keep.ON_DEVICES:
                    kept.append(encoded.tokens)
                    yield encoded.feature, encoded.embed
                else:
                    local = encoded.tokens.is_fully_addressable
                    tokens = encoded.tokens if local else self._compiled.replicate(encoded.tokens)
                    yield encoded.feature, encoded.embed, tokens

        feature, embedding, *tokens = _rows_in_order(fetched(dispatched()), count)
        on_host = tokens[0].astype(np.float32, copy=False) if tokens else None
        return Encodings(feature, embedding, kept.tokens(count) if keep is Keep.ON_DEVICES else on_host)

    def _one_batch(self, forward: Callable[..., Encoded], params: Params, *rows: np.ndarray) -> DeviceTokens:
        return DeviceTokens(forward(params, *map(self._placed, rows)).tokens, np.arange(len(rows[0]), dtype=np.int32))

    def _gathered(self, batch: PairBatch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the cross encoders read, pair by pair, on the devices: text tokens, attention mask, image tokens."""
        image, text = batch.pairs.T
        mask = self._placed(batch.attention_mask[text])
        return self._rows_of(batch.text_tokens, text), mask, self._rows_of(batch.image_tokens, image)

    def _rows_of(self, tokens: Tokens, index: np.ndarray) -> jax.Array:
        if isinstance(tokens, DeviceTokens):
            return self._compiled.take(tokens.values, self._filled(tokens.slot[index]))
        return self._placed(tokens[index])

    def _placed(self, rows: np.ndarray) -> jax.Array:
        """A global array, filled up, of rows of which every process holds at least those of its devices."""
        filled = self._filled(rows)
        return jax.make_array_from_callback(filled.shape, batch_sharding(self.mesh), lambda index: filled[index])

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        """A batch filled up by repeating its first row."""
        missing = self._bucket(len(rows)) - len(rows)
        return np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)]) if missing else rows

    def _bucket(self, count: int) -> int:
        """How many rows a batch of `count` is filled up to."""
        if not self._buckets:
            return self.batch_size
        per_device = -(-count // self.mesh.size)
        return min(self.batch_size, self.mesh.size << (per_device - 1).bit_length())


def _move(params: Params, shardings: Any) -> None:
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            _move(leaf, shardings[name])
        else:
            # Waiting here keeps the copies that are on their way to one.
            params[name] = jax.block_until_ready(jax.device_put(leaf, shardings[name]))


def fetched(dispatched: Iterable[Any]) -> Iterator[Any]:
    """Brings results to the host, each after the next is dispatched, so that host and devices work at the same time."""
    waiting: deque[Any] = deque()
    for result in dispatched:
        waiting.append(result)
        if len(waiting) == IN_FLIGHT:
            yield jax.device_get(waiting.popleft())
    yield from map(jax.device_get, waiting)


def _rows_in_order(batches: Iterable[tuple[np.ndarray, ...]], count: int) -> list[np.ndarray]:
    """The first `count` rows of all batches, column by column; each batch is copied once, so nothing is there twice."""
    whole: list[np.ndarray] = []
    start = 0
    for batch in batches:
        whole = whole or [np.empty((count, *part.shape[1:]), part.dtype) for part in batch]
        for rows, part in zip(whole, batch, strict=True):
            rows[start : start + len(part)] = part[: count - start]
        start += len(batch[0])
    return whole


class _TokenBuffer:
    """Tokens of several batches in one array: each device appends its part of every batch, so that none travels."""

    def __init__(self, compiled: CompiledForwards, mesh: Mesh, sizes: Sequence[int]) -> None:
        """`sizes` are the rows of the batches to come, filled up."""
        self._compiled, self._devices = compiled, mesh.size
        self._room, self._used = sum(sizes) // mesh.size, 0  # slots of each device
        self._slots: list[np.ndarray] = []
        self._values: jax.Array | None = None

    def append(self, tokens: jax.Array) -> None:
        """Adds the next batch [b n d]."""
        rows = len(tokens) // self._devices
        device, place = np.divmod(np.arange(len(tokens), dtype=np.int32), rows)
        self._slots.append(device * self._room + self._used + place)
        if rows == self._room:  # the only batch
            self._values = tokens
            return
        if self._values is None:
            self._values = self._compiled.zeros((self._room * self._devices, *tokens.shape[1:]), tokens.dtype)
        self._values = self._compiled.write(self._values, tokens, np.int32(self._used))
        self._used += rows

    def tokens(self, count: int) -> DeviceTokens:
        """The first `count` rows."""
        if self._values is None:
            raise ValueError("there are no tokens: no batch was encoded")
        return DeviceTokens(self._values, np.concatenate(self._slots)[:count])
