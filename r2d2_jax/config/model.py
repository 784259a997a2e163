"""The sizes of the model, and its dropout while it is trained."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from r2d2_jax.config.ranges import not_positive

# Far above any real model (our decision): a damaged file may claim more, and would take forever to be refused.
MAX_LAYERS, MAX_SIZE = 1_000, 2**24
DTYPES = ("bfloat16", "float32")  # of matrix products
STACKS = ("image", "text", "cross")  # the two towers, and both cross encoders
# What the backward pass of a stack computes again, the cheapest in time first: nothing; norms, activations, dropout and
# the products within attention, so that the products with parameters are stored; everything.
REMAT_WORDS = ("none", "products", "all")


def _remats() -> dict[str, dict[str, str]]:
    remats = {}
    for words in itertools.product(REMAT_WORDS, repeat=len(STACKS)):
        of_stacks = dict(zip(STACKS, words, strict=True))
        single = ",".join(f"{stack}:{word}" for stack, word in of_stacks.items() if word != "none")
        remats[single if len(set(words)) > 1 else words[0]] = of_stacks
    return remats


# Every value that `ModelConfig.remat` may have, and the word that it gives to each stack. There is one for each choice.
REMATS = _remats()


@dataclass(frozen=True)
class ImageTowerConfig:
    """Sizes of the image tower; `image_size` and `patch_size` in pixels."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int

    @property
    def patches(self) -> int:
        """How many patches an image has; with CLS, one more are its tokens."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextTowerConfig:
    """Sizes of the text tower; `text_length` is the `l` every text is padded or cut to.

    dropout: rate on embeddings, attention weights and hidden states while the tower is trained (published code: 0.1).
    """

    vocabulary_size: int
    text_length: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int = 512
    token_types: int = 2
    dropout: float = 0.0


@dataclass(frozen=True)
class CrossEncoderConfig:
    """Sizes of each of the two cross encoders; `layers` 0 means that there are none (PRD2).

    dropout: rate on attention weights and hidden states while they are trained (published code: 0.1).
    """

    layers: int
    width: int
    heads: int
    mlp_width: int
    dropout: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """The whole model, and how it is computed.

    dtype: that of the matrix products: bfloat16 on accelerators, float32 on CPU.
    remat: what the backward pass computes again instead of storing it: one of REMAT_WORDS for all stacks, or one for
        each of STACKS that computes anything again, such as "text:products,cross:all".
    unroll: write loops over layers out, which compiles slower.
    """

    image: ImageTowerConfig
    text: TextTowerConfig
    cross: CrossEncoderConfig
    embed_size: int = 768
    temperature_init: float = 0.07
    temperature_range: tuple[float, float] = (0.001, 0.5)
    freeze_image_tower: bool = True
    dtype: str = "bfloat16"
    remat: str = "none"
    unroll: bool = False

    @property
    def has_dropout(self) -> bool:
        """Whether training drops anything."""
        return self.text.dropout > 0 or (self.cross.layers > 0 and self.cross.dropout > 0)

    def without_dropout(self) -> "ModelConfig":
        """The same model, of which training drops nothing."""
        text, cross = dataclasses.replace(self.text, dropout=0.0), dataclasses.replace(self.cross, dropout=0.0)
        return dataclasses.replace(self, text=text, cross=cross)

    def described(self) -> dict[str, Any]:
        """As nested plain values without dropout and `remat`, which say how a run trains, not what its weights are."""
        values = dataclasses.asdict(self)
        del values["remat"]
        for part in ("text", "cross"):
            del values[part]["dropout"]
        return values


def model_contradictions(model: ModelConfig) -> Iterator[str]:
    """Yields one sentence per size that is out of range or contradicts another."""
    image, text, cross = model.image, model.text, model.cross
    yield from not_positive(_sizes(model))
    for name, size in (*_sizes(model), ("model.cross.layers", cross.layers)):
        limit = MAX_LAYERS if name.endswith(".layers") else MAX_SIZE
        if size > limit:
            yield f"{name} is {size}; expected {limit:,} at most"
    if image.patch_size > 0 and image.image_size % image.patch_size:
        yield (
            f"model.image.image_size {image.image_size} is not a multiple of model.image.patch_size {image.patch_size}"
        )
    for name, tower in (("image", image), ("text", text), ("cross", cross)):
        if tower.heads > 0 and tower.width % tower.heads:
            yield f"model.{name}.width {tower.width} is not a multiple of model.{name}.heads {tower.heads}"
    if text.text_length > text.max_positions:
        yield (
            f"model.text.text_length {text.text_length} is larger than model.text.max_positions "
            f"{text.max_positions}; there is no position embedding for the last tokens"
        )
    if text.text_length < 3:
        yield f"model.text.text_length is {text.text_length}; expected at least 3: CLS, one token, SEP"
    if cross.layers and cross.width != text.width:
        yield (
            f"model.cross.width {cross.width} differs from model.text.width {text.width}; the text-image cross "
            "encoder is fed with text tokens directly"
        )
    if cross.layers < 0:
        yield f"model.cross.layers is {cross.layers}; expected 1 or more, or 0 for PRD2"
    for name, rate in (("text", text.dropout), ("cross", cross.dropout)):
        if not 0 <= rate < 1:
            yield f"model.{name}.dropout is {rate}; expected 0 or more and less than 1"
    if model.dtype not in DTYPES:
        yield f"model.dtype is {model.dtype!r}; expected 'bfloat16' or 'float32'"
    if model.remat not in REMATS:
        yield (
            f"model.remat is {model.remat!r}; expected {', '.join(REMAT_WORDS)} for all stacks, or a word for each of "
            f"{', '.join(STACKS)} that is not none, in this order, such as text:products,cross:all"
            f"{_spelling(model.remat)}"
        )
    low, high = model.temperature_range
    if not 0 < low <= model.temperature_init <= high:
        yield (
            f"model.temperature_init {model.temperature_init} lies outside model.temperature_range "
            f"{model.temperature_range}"
        )


def _spelling(remat: str) -> str:
    """The end of a message: the one name of a choice that is written otherwise, such as "cross:all,text:all"."""
    words = dict.fromkeys(STACKS, "none")
    words |= dict(part.partition(":")[::2] for part in remat.replace(" ", "").split(","))
    return next((f"; write {name}" for name, choice in REMATS.items() if choice == words), "")


def _sizes(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Every size of the model that must be positive, with its name; the cross encoders' layers may be none."""
    yield "model.embed_size", model.embed_size
    for part in ("image", "text", "cross"):
        for name, size in vars(getattr(model, part)).items():
            if name != "dropout" and (part, name) != ("cross", "layers"):
                yield f"model.{part}.{name}", size
