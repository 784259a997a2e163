"""R2D2 as one Linen module with one method per stage."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Bool, Embedded, Encoded, Float, Int, UInt8, checked, exact_if_float32, unit_norm
from r2d2_jax.config.model import REMATS, ModelConfig
from r2d2_jax.models.bert import MaskedLmHead, TextEncoder
from r2d2_jax.models.cross_encoder import IMAGE_READS_TEXT, TEXT_READS_IMAGE, CrossEncoder, cls_of
from r2d2_jax.models.layers import dense
from r2d2_jax.models.vit import ImageEncoder

# Mean and deviation of CLIP's training images, per RGB channel in [0, 1] (published code).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@checked
def normalise_images(images: UInt8[Array, "b height width 3"]) -> Float[Array, "b height width 3"]:
    """(pixel / 255 - mean) / deviation with CLIP's constants, in float32."""
    return (images.astype(jnp.float32) / 255 - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_DEVIATION)


class R2D2(nn.Module):
    """Two towers for pre-ranking and two cross encoders for ranking.

    Only the parts that are asked for have parameters: with `matching` and `masked_lm` both False this is PRD2.

    Attributes:
        config: sizes and compute dtype.
        matching: has both cross encoders and their match heads.
        masked_lm: has the text-image cross encoder and the masked-language-model head.
    """

    config: ModelConfig
    matching: bool = True
    masked_lm: bool = True

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        depth: dict[str, Any] = {"dtype": dtype, "unroll": config.unroll}
        remat = REMATS[config.remat]
        self.image_encoder = ImageEncoder(config.image, remat=remat["image"], **depth)
        self.text_encoder = TextEncoder(config.text, remat=remat["text"], **depth)
        self.image_projection = dense(config.embed_size, dtype)
        self.text_projection = dense(config.embed_size, dtype)
        self.temperature = self.param("temperature", nn.initializers.constant(config.temperature_init), ())
        depth["remat"] = remat["cross"]
        self.text_image_encoder = CrossEncoder(config.cross, triple=TEXT_READS_IMAGE, **depth)
        self.image_text_encoder = CrossEncoder(config.cross, triple=IMAGE_READS_TEXT, **depth)
        self.image_text_projection = dense(config.cross.width, dtype)
        self.text_image_match_head = nn.Dense(2, precision=exact_if_float32(jnp.float32))
        self.image_text_match_head = nn.Dense(2, precision=exact_if_float32(jnp.float32))
        self.masked_lm_head = MaskedLmHead(config.text.vocabulary_size, dtype)

    def __call__(self, images: jax.Array, input_ids: jax.Array, attention_mask: jax.Array) -> tuple[Encoded, Encoded]:
        """Runs every stage that has parameters once; `init` calls it."""
        image, text = self.encode_image(images), self.encode_text(input_ids, attention_mask)
        if self.matching:
            self.match(text.tokens, attention_mask, image.tokens)
        if self.masked_lm:
            self.masked_lm_logits(self.cross_text_image(text.tokens, attention_mask, image.tokens))
        return image, text

    @checked
    def encode_image(self, images: Float[Array, "b height width 3"]) -> Encoded:
        """Encodes normalised images: tokens [b n d], feature and embed [b e]."""
        tokens = self.image_encoder(images)
        feature = self.project_image(tokens)
        return Encoded(tokens, feature, unit_norm(feature))

    @checked
    def embed_image(self, images: Float[Array, "b height width 3"]) -> Embedded:
        """`encode_image` where nobody reads tokens, without gradient: the last layer computes CLS alone."""
        feature = self.project_image(self.image_encoder.cls(images))
        return Embedded(feature, unit_norm(feature))

    @checked
    def embed_pixels(self, images: UInt8[Array, "b height width 3"]) -> Embedded:
        """`embed_image` of images that are not normalised yet."""
        return self.embed_image(normalise_images(images))

    @checked
    def encode_pixels(self, images: UInt8[Array, "b height width 3"]) -> Encoded:
        """`encode_image` of images that are not normalised yet."""
        return self.encode_image(normalise_images(images))

    @checked
    def project_image(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b e"]:
        """The image feature, before normalisation, of the image tower's tokens."""
        return self.image_projection(tokens[:, 0]).astype(jnp.float32)

    @checked
    def encode_text(self, input_ids: Int[Array, "b l"], attention_mask: Bool[Array, "b l"]) -> Encoded:
        """Encodes texts: tokens [b l d], feature and embed [b e]."""
        tokens = self.text_encoder(input_ids, attention_mask)
        feature = self._project_text(tokens)
        return Encoded(tokens, feature, unit_norm(feature))

    @checked
    def embed_text(self, input_ids: Int[Array, "b l"], attention_mask: Bool[Array, "b l"]) -> Embedded:
        """`encode_text` where nobody reads tokens, without gradient and dropout: the last layer computes CLS alone."""
        feature = self._project_text(self.text_encoder.cls(input_ids, attention_mask))
        return Embedded(feature, unit_norm(feature))

    def _project_text(self, tokens: jax.Array) -> jax.Array:
        return self.text_projection(tokens[:, 0]).astype(jnp.float32)

    @checked
    def cross_text_image(
        self,
        text_tokens: Float[Array, "b l d"],
        attention_mask: Bool[Array, "b l"],
        image_tokens: Float[Array, "b n image_d"],
        wanted_positions: Int[Array, "b r"] | None = None,
    ) -> Float[Array, "b r d"]:
        """The text-image cross encoder: text tokens read raw image tokens; the wanted ones, or all, are left."""
        return self.text_image_encoder(text_tokens, attention_mask, image_tokens, None, wanted_positions)

    @checked
    def cross_image_text(
        self,
        text_tokens: Float[Array, "b l d"],
        attention_mask: Bool[Array, "b l"],
        image_tokens: Float[Array, "b n image_d"],
        wanted_positions: Int[Array, "b r"] | None = None,
    ) -> Float[Array, "b r cross_d"]:
        """The image-text cross encoder: projected image tokens read text tokens; the wanted ones, or all, are left."""
        queries = self.image_text_projection(image_tokens)
        return self.image_text_encoder(queries, None, text_tokens, attention_mask, wanted_positions)

    @checked
    def match_logits(
        self, text_image_cls: Float[Array, "b d"], image_text_cls: Float[Array, "b d"]
    ) -> Float[Array, "b 2 2"]:
        """Float32 logits of (no match, match) on axis 2 from CLS of (text-image, image-text) on axis 1."""
        text_image = self.text_image_match_head(text_image_cls.astype(jnp.float32))
        image_text = self.image_text_match_head(image_text_cls.astype(jnp.float32))
        return jnp.stack([text_image, image_text], axis=1)

    @checked
    def match(
        self,
        text_tokens: Float[Array, "b l d"],
        attention_mask: Bool[Array, "b l"],
        image_tokens: Float[Array, "b n image_d"],
    ) -> Float[Array, "b 2 2"]:
        """Match logits of text-image pairs, row by row; see `match_logits`."""
        pair = (text_tokens, attention_mask, image_tokens)
        text_image = self.cross_text_image(*pair, cls_of(text_tokens))
        image_text = self.cross_image_text(*pair, cls_of(text_tokens))
        return self.match_logits(text_image[:, 0], image_text[:, 0])

    @checked
    def rank(
        self,
        wanted_positions: Int[Array, "b s"],
        text_tokens: Float[Array, "2*b l d"],
        attention_mask: Bool[Array, "2*b l"],
        image_tokens: Float[Array, "2*b n image_d"],
    ) -> tuple[Float[Array, "3*b 2 2"], Float[Array, "b s d"]]:
        """What `match` makes of each pair and of its two negatives, with what they share computed once.

        Args:
            wanted_positions: text positions whose hidden states are wanted for the pairs themselves; s may be 0.
            text_tokens, attention_mask, image_tokens: rows 2i and 2i + 1 are those of pair i and a negative for it.

        Returns:
            (match logits, where rows 3i, 3i + 1 and 3i + 2 are those of the pair, of its text with the negative image,
            and of its image with the negative text; hidden states of the text-image cross encoder for the pairs).
        """
        cls = cls_of(wanted_positions)
        positions = jnp.concatenate([cls, wanted_positions], axis=1)
        queries = self.image_text_projection(image_tokens)
        image_text = self.image_text_encoder.triples(cls, queries, None, text_tokens, attention_mask)
        # The barrier makes text-image wait for image-text and, in the backward pass, image-text for text-image. Left
        # alone, libtpu chooses another order on several slices than on one, and stores 0.6 GiB for longer (our
        # decision; docs/scaling.md).
        image_text, text_tokens, image_tokens = jax.lax.optimization_barrier((image_text, text_tokens, image_tokens))
        text_image = self.text_image_encoder.triples(positions, text_tokens, attention_mask, image_tokens, None)
        cls_of_passes = (
            jnp.concatenate([own[:, :1], others], axis=1).reshape(-1, own.shape[-1])
            for own, others in (text_image, image_text)
        )
        return self.match_logits(*cls_of_passes), text_image[0][:, 1:]

    @checked
    def text_image_log_odds(
        self,
        text_tokens: Float[Array, "b l d"],
        attention_mask: Bool[Array, "b l"],
        image_tokens: Float[Array, "b n image_d"],
    ) -> Float[Array, " b"]:
        """log(p / (1 - p)) of the match probability of the text-image cross encoder, which runs over all its tokens."""
        cls = self.cross_text_image(text_tokens, attention_mask, image_tokens)[:, 0]
        no_match, match = self.text_image_match_head(cls.astype(jnp.float32)).T
        return match - no_match

    @checked
    def masked_lm_logits(self, tokens: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Vocabulary logits of tokens of the text-image cross encoder."""
        return self.masked_lm_head(tokens, self.text_encoder.word_embedding.embedding)


def init_params(model: R2D2, key: jax.Array) -> dict[str, Any]:
    """Random parameters of every part that the model has."""
    image, text = model.config.image, model.config.text
    images = jnp.zeros((1, image.image_size, image.image_size, 3))
    input_ids = jnp.zeros((1, text.text_length), jnp.int32)
    return model.init(key, images, input_ids, jnp.ones_like(input_ids, bool))["params"]


@functools.lru_cache(maxsize=8)
def abstract_params(model: R2D2) -> dict[str, Any]:
    """Shapes and dtypes of `init_params`, without computing them; traced once for a model, and not to be changed."""
    return jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
