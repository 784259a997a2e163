"""The cross encoders: BERT layers with a cross-attention between self-attention and MLP."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Array, Bool, Float, Int, checked, interleaved
from r2d2_jax.config.model import CrossEncoderConfig
from r2d2_jax.models.bert import EPSILON
from r2d2_jax.models.dropout import DROPOUT
from r2d2_jax.models.layers import Attention, KeysAndValues, LayerNorm, Mlp, erf_gelu, kept_by, recomputing, scanned

OWN, NEGATIVE = 0, 1  # the two rows that each pair of a batch has of either modality


class Triple(NamedTuple):
    """Who reads whom in the three passes of ranking: the pair itself, and its two negatives.

    Each pair i has two rows of queries, 2i its own and 2i + 1 a negative one, and two such rows of context. Whatever
    depends on one of them alone is computed once, and taken by each pass that needs it.

    queries, context: OWN or NEGATIVE for each of the passes.
    """

    queries: tuple[int, int, int]
    context: tuple[int, int, int]


TEXT_READS_IMAGE = Triple(queries=(OWN, OWN, NEGATIVE), context=(OWN, NEGATIVE, OWN))
IMAGE_READS_TEXT = Triple(queries=TEXT_READS_IMAGE.context, context=TEXT_READS_IMAGE.queries)


def taken(rows: Any, passes: tuple[int, int, int]) -> Any:
    """[2b ...] -> [3b ...] of each array of a tree (or None): for each of the three passes its row of the two."""
    return jax.tree.map(lambda pairs: interleaved(*(pairs[:, row] for row in passes)), by_pair(rows, 2))


def by_pair(rows: Any, count: int) -> Any:
    """[kb ...] -> [b k ...] of each array of a tree (or None), for `count` k: what belongs to each pair."""
    return jax.tree.map(lambda array: array.reshape(-1, count, *array.shape[1:]), rows)


def cls_of(tokens: jax.Array) -> jax.Array:
    """The `wanted_positions` [b 1] of a caller that wants only CLS."""
    return jnp.zeros((len(tokens), 1), jnp.int32)


class CrossLayer(nn.Module):
    """One post-norm layer: self-attention, cross-attention over the other modality, MLP; dropout before each sum.

    Attributes:
        config: the sizes.
        dtype: the dtype of the matrix products.
        triple: who reads whom in the methods for triples.
    """

    config: CrossEncoderConfig
    dtype: Any
    triple: Triple = TEXT_READS_IMAGE

    def setup(self) -> None:
        size = self.config
        self.self_attention, self.cross_attention = (
            Attention(size.width, size.heads, self.dtype, size.dropout) for _ in range(2)
        )
        self.mlp = Mlp(size.width, size.mlp_width, erf_gelu, self.dtype, size.dropout)
        self.self_attention_norm, self.cross_attention_norm, self.mlp_norm = (LayerNorm(EPSILON) for _ in range(3))

    def __call__(
        self,
        hidden: jax.Array,
        mask: jax.Array | None,
        context: jax.Array,
        context_mask: jax.Array | None,
        wanted_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """The next hidden state of the wanted tokens, or of all of them."""
        queries = self._self_attended(hidden, mask, wanted_positions)
        return self._context_read(queries, self.cross_attention.keys_and_values(context), context_mask), None

    def first_of_triples(
        self, tokens: jax.Array, mask: jax.Array | None, context: jax.Array, context_mask: jax.Array | None
    ) -> jax.Array:
        """[3b q d] of the two rows that each pair has of either modality."""
        queries = taken(self._self_attended(tokens, mask), self.triple.queries)
        return self._context_read(queries, *self._context_of_triples(context, context_mask))

    def of_triples(
        self, hidden: jax.Array, mask: jax.Array | None, context: jax.Array, context_mask: jax.Array | None
    ) -> jax.Array:
        """[3b q d] of [3b q d] and the two rows of context that each pair has."""
        queries = self._self_attended(hidden, mask)
        return self._context_read(queries, *self._context_of_triples(context, context_mask))

    def last_of_triples(
        self,
        hidden: jax.Array,
        mask: jax.Array | None,
        context: jax.Array,
        context_mask: jax.Array | None,
        wanted_positions: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """[b r d] of the pairs' own passes at the wanted positions, and [b 2 d] of the two others at CLS alone."""
        passes = by_pair((hidden, mask, *self._context_of_triples(context, context_mask)), 3)
        own = jax.tree.map(lambda array: array[:, 0], passes)
        others = jax.tree.map(lambda array: array[:, 1:].reshape(-1, *array.shape[2:]), passes)
        of_others = self._read_at(cls_of(others[0]), *others)[:, 0]
        return self._read_at(wanted_positions, *own), by_pair(of_others, 2)

    def _read_at(
        self,
        positions: jax.Array,
        hidden: jax.Array,
        mask: jax.Array | None,
        context: KeysAndValues,
        context_mask: jax.Array | None,
    ) -> jax.Array:
        return self._context_read(self._self_attended(hidden, mask, positions), context, context_mask)

    def _context_of_triples(
        self, context: jax.Array, context_mask: jax.Array | None
    ) -> tuple[KeysAndValues, jax.Array | None]:
        return taken((self.cross_attention.keys_and_values(context), context_mask), self.triple.context)

    def _self_attended(
        self, hidden: jax.Array, mask: jax.Array | None, wanted_positions: jax.Array | None = None
    ) -> jax.Array:
        queries = hidden
        if wanted_positions is not None:
            queries = jnp.take_along_axis(hidden, wanted_positions[..., None], axis=1)
        return self.self_attention_norm(queries + self.self_attention(queries, hidden, mask))

    def _context_read(self, queries: jax.Array, context: KeysAndValues, context_mask: jax.Array | None) -> jax.Array:
        queries = self.cross_attention_norm(queries + self.cross_attention.attend(queries, context, context_mask))
        return self.mlp_norm(queries + self.mlp(queries))


class CrossEncoder(nn.Module):
    """A stack of cross layers, fed with tower tokens directly: no embeddings of its own.

    The last layer stands apart from the scanned ones because it is computed only for the tokens that the caller wants.

    Attributes:
        config: the sizes.
        dtype: the dtype of the matrix products.
        remat, unroll: see `layers.scanned`.
        triple: who reads whom in `triples`.
    """

    config: CrossEncoderConfig
    dtype: Any
    remat: str = "none"
    unroll: bool = False
    triple: Triple = TEXT_READS_IMAGE

    def setup(self) -> None:
        sizes = (self.config, self.dtype, self.triple)
        if self.config.layers > 1:
            stack = scanned(CrossLayer, self.config.layers - 1, remat=self.remat, unroll=self.unroll)
            self.layers = stack(*sizes)
        self.last_layer = recomputing(CrossLayer, self.remat, ["__call__", "last_of_triples"])(*sizes)

    @checked
    def __call__(
        self,
        tokens: Float[Array, "b q d"],
        mask: Bool[Array, "b q"] | None,
        context: Float[Array, "b c context_d"],
        context_mask: Bool[Array, "b c"] | None,
        wanted_positions: Int[Array, "b r"] | None = None,
    ) -> Float[Array, "b r d"]:
        """Lets `tokens` read `context`.

        Args:
            tokens: the queries.
            mask: False on padded tokens; None when there are none.
            context: keys and values.
            context_mask: False on padded context; None when there is none.
            wanted_positions: of the tokens whose last hidden state is wanted; None means all of them, in order.

        Returns:
            The last hidden states of the wanted tokens.
        """
        inputs = (mask, context, context_mask)
        if self.config.layers > 1:
            tokens, _ = self.layers(tokens, *inputs)
        return self.last_layer(tokens, *inputs, wanted_positions)[0]

    @checked
    def triples(
        self,
        wanted_positions: Int[Array, "b r"],
        tokens: Float[Array, "2*b q d"],
        mask: Bool[Array, "2*b q"] | None,
        context: Float[Array, "2*b c context_d"],
        context_mask: Bool[Array, "2*b c"] | None,
    ) -> tuple[Float[Array, "b r d"], Float[Array, "b 2 d"]]:
        """As `__call__` for the three passes of each pair; see `Triple`.

        Returns:
            (last hidden states of the pairs' own passes at the wanted positions, those of the two others at CLS).
        """
        inputs = (context, context_mask)
        hidden_mask = taken(mask, self.triple.queries)
        if self.config.layers > 1:
            hidden = self._stack_of_triples(tokens, mask, hidden_mask, *inputs)
        else:
            hidden = taken(tokens, self.triple.queries)
        return self.last_layer.last_of_triples(hidden, hidden_mask, *inputs, wanted_positions)

    def _stack_of_triples(
        self, tokens: jax.Array, mask: jax.Array | None, hidden_mask: jax.Array | None, *inputs: jax.Array | None
    ) -> jax.Array:
        """All but the last layer; the first one, which reads the tokens themselves, stands apart from the scan.

        So Flax's scan, of which all layers take arrays of one shape, is not used here, but its parameters are.
        """
        layer, count = CrossLayer(self.config, self.dtype, self.triple, parent=None), self.config.layers - 1
        keys = jax.random.split(self.make_rng(DROPOUT), count) if self.has_rng(DROPOUT) else None
        own = (self.variables["params"]["layers"], keys)

        def method(name: str, in_scan: bool) -> Callable[..., jax.Array]:
            def apply(own: tuple[Any, Any], *inputs: jax.Array | None) -> Any:
                params, key = own
                rngs = None if key is None else {DROPOUT: key}
                return layer.apply({"params": params}, *inputs, method=name, rngs=rngs)

            # Outside of a scan XLA would find that it has computed the same before, and keep that.
            if self.remat == "none":
                return apply
            return jax.checkpoint(apply, prevent_cse=not in_scan, policy=kept_by(self.remat))

        first, later = method("first_of_triples", in_scan=False), method("of_triples", in_scan=True)
        hidden = first(jax.tree.map(lambda stacked: stacked[0], own), tokens, mask, *inputs)
        rest = jax.tree.map(lambda stacked: stacked[1:], own)
        step = lambda hidden, own: (later(own, hidden, hidden_mask, *inputs), None)  # noqa: E731
        return jax.lax.scan(step, hidden, rest, length=count - 1, unroll=self.unroll)[0]
