"""How an evaluation of any size stays within a memory limit: what needs how much, and what is done in blocks."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Params
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.encoder import IN_FLIGHT, Encoder, Keep
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.nearest import QUERIES_PER_DEVICE

# Tokens of a split stay on the devices up to so many bytes each; those of a larger one wait in host memory, from where
# every batch of pairs travels to the devices. A run's own state needs the rest of a device (our decision).
TOKEN_BYTES_PER_DEVICE = 2 << 30
# Python, the libraries and what XLA compiles: 0.6 GiB as `benchmarks/large_retrieval.py` measures, and room for what
# allocators do not give back (our decision).
PROGRAM_BYTES = 1 << 30
# The part of the room for tokens that texts get where not all fit. Images get most: every block of images makes the
# texts pass their tower once more, the smaller of the two by far.
TEXT_SHARE = 1 / 8
# Host memory for each cosine of a block while its best are picked: two blocks of float32, one number of 64 bits that
# orders score, answer and column with two intermediate ones, and masks.
BYTES_PER_COSINE = 40
# And for each candidate of each query: its column, cosine and answer, the pair, and what sorts pairs and finds doubles.
BYTES_PER_CANDIDATE = 96
_GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """What an evaluation needs, in bytes.

    host: {what: bytes} of host memory, and device: of each device, whatever is done in blocks.
    image, text: tokens of one image and of one text. images, texts, batch_size: how many rows there are.
    devices, local_devices: of the mesh, and those of this process. shared: the devices compute in host memory (CPUs).
    """

    host: dict[str, int]
    device: dict[str, int]
    image: int
    text: int
    images: int
    texts: int
    batch_size: int
    devices: int
    local_devices: int
    shared: bool

    @property
    def tokens(self) -> int:
        """Bytes of the tokens of all images and texts."""
        return self.images * self.image + self.texts * self.text

    @property
    def fixed(self) -> dict[str, int]:
        """What counts against the limit before any token is kept: of the host, or of a device if that needs more."""
        if self.shared:
            return self.host | {name: size * self.local_devices for name, size in self.device.items()}
        return max(self.host, self.device, key=lambda each: sum(each.values()))


@dataclass(frozen=True)
class Plan:
    """Where tokens are kept, and of how many images and texts at once; of all of them if `whole`."""

    keep: Keep
    images: int
    texts: int
    whole: bool


def retrieval_needs(
    encoder: Encoder, config: ModelConfig, params: Params, split: EvaluationSplit, candidates: int, *, measured: bool
) -> Needs:
    """What retrieval within a split needs.

    Args:
        encoder: the compiled forwards.
        config: sizes of the model.
        params: the model's parameters.
        split: the images and texts.
        candidates: of all queries together; 0 if nothing is re-ranked, so that no tokens are needed.
        measured: also fill in `host` and `device`, for which all forwards are compiled; a limit needs them.
    """
    image, text, itemsize = config.image, config.text, jnp.dtype(config.dtype).itemsize
    devices = encoder.mesh.local_devices
    needs = Needs(
        host={},
        device={},
        image=(image.patches + 1) * image.width * itemsize if candidates else 0,
        text=text.text_length * text.width * itemsize if candidates else 0,
        images=split.num_images,
        texts=len(split.captions),
        batch_size=encoder.batch_size,
        devices=encoder.mesh.size,
        local_devices=len(devices),
        shared=devices[0].platform == "cpu",
    )
    if measured:
        needs.host.update(_host_needs(needs, config, candidates, params))
        needs.device.update(_device_needs(needs, config, params, encoder))
    return needs


def _host_needs(needs: Needs, config: ModelConfig, candidates: int, params: Params) -> dict[str, int]:
    rows, side = needs.images + needs.texts, config.image.image_size
    block = QUERIES_PER_DEVICE * needs.devices * max(needs.images, needs.texts)
    return {
        "program": PROGRAM_BYTES,
        "embeddings": 2 * 4 * config.embed_size * rows,
        "cosines": BYTES_PER_COSINE * block,
        "candidates": BYTES_PER_CANDIDATE * candidates,
        "texts and pictures": 3 * 5 * config.text.text_length * needs.texts + 4 * 3 * side**2 * needs.batch_size,
    } | ({} if needs.shared else {"parameters as they were read": sum(leaf.nbytes for leaf in jax.tree.leaves(params))})


def _device_needs(needs: Needs, config: ModelConfig, params: Params, encoder: Encoder) -> dict[str, int]:
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(params))
    gallery, side = max(needs.images, needs.texts), config.image.image_size
    forwards = encoder.forward_bytes(params, (side, side, 3), config.text.text_length)
    cosines = 4 * gallery * (config.embed_size + IN_FLIGHT * QUERIES_PER_DEVICE)
    return {
        "parameters": sum(math.prod(shape) * itemsize for shape, itemsize in shards),
        "forward": max(forwards, cosines),  # one after the other
    }


def plan_memory(needs: Needs, limit: int | None) -> Plan:
    """Keeps all tokens where they fit, on the devices or else on the host; otherwise as large blocks as fit.

    Args:
        needs: see `Needs`.
        limit: bytes of host memory, and of each device; None for no limit but `TOKEN_BYTES_PER_DEVICE`.

    Raises:
        UserError: a batch of images and one of texts do not fit; it names the smallest limit that does.
    """
    per_device = TOKEN_BYTES_PER_DEVICE
    on_host: float = float("inf")
    if limit is not None:
        _check_limit(needs, limit)
        on_host = limit - sum((needs.fixed if needs.shared else needs.host).values())
        on_each = on_host / needs.local_devices if needs.shared else limit - sum(needs.device.values())
        per_device = min(per_device, int(on_each))
    for keep, room in ((Keep.ON_DEVICES, per_device * needs.devices), (Keep.ON_HOST, on_host)):
        if needs.tokens <= room:
            return Plan(keep, needs.images, needs.texts, whole=True)
    keep = Keep.ON_HOST if on_host > per_device * needs.devices else Keep.ON_DEVICES
    room = int(max(on_host, per_device * needs.devices))
    for_texts = min(room * TEXT_SHARE, room - needs.batch_size * needs.image)
    texts = _whole_batches(for_texts / needs.text, needs.texts, needs.batch_size)
    images = _whole_batches((room - texts * needs.text) / needs.image, needs.images, needs.batch_size)
    texts = _whole_batches((room - images * needs.image) / needs.text, needs.texts, needs.batch_size)  # what is left
    return Plan(keep, images, texts, whole=False)


def smallest_limit(needs: Needs) -> int:
    """The smallest limit in bytes for which there is a plan."""
    return sum(needs.fixed.values()) + needs.batch_size * (needs.image + needs.text)


def _whole_batches(rows: float, most: int, batch_size: int) -> int:
    """As many whole batches as `rows` hold, at least one, and no more than are needed."""
    return batch_size * max(1, min(int(rows) // batch_size, -(-most // batch_size)))


def _check_limit(needs: Needs, limit: int) -> None:
    if limit >= (least := smallest_limit(needs)):
        return
    tokens = needs.batch_size * (needs.image + needs.text)
    sizes = needs.fixed | {"tokens of a batch": tokens}
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in sizes.items())
    raise UserError(
        f"the memory limit is {limit / _GIB:.2f} GiB ({limit} bytes); expected at least {least / _GIB:.2f} GiB "
        f"({least} bytes), which are, in GiB: {parts}. Raise it, or lower the batch size"
    )
