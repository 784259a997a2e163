"""What the towers and the cross encoders share: attention, MLP, and a stack of scanned layers."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from r2d2_jax.arrays import Array, Bool, Float, Params, checked, exact_if_float32
from r2d2_jax.models.dropout import DROPOUT, Dropout

# Fan-in scaling rather than BERT's fixed 0.02, so that small models train from scratch too (our decision).
KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
# BERT's and CLIP's initial spread of embedding tables.
EMBEDDING_INIT = nn.initializers.normal(0.02)
# The variable collection of attention weights; they are computed only where a caller makes it mutable.
ATTENTION = "attention"
# Variables that are added to attention weights where a caller gives them; gradients by them are those by the weights.
ATTENTION_CHANGE = "attention_change"
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # logit of a masked token; that of `jax.nn.dot_product_attention`


Activation = Callable[[jax.Array], jax.Array]


def with_derivative(function: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> Activation:
    """An activation computed in float32, whose backward pass keeps its derivative and nothing else.

    Args:
        function: from float32 x to the activation and its derivative, element by element.
    """

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, derivative = function(x.astype(jnp.float32))
        return value.astype(x.dtype), derivative.astype(x.dtype)

    @jax.custom_jvp
    def activation(x: jax.Array) -> jax.Array:
        return both(x)[0]

    @activation.defjvp
    def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        value, derivative = both(*primals)
        return value, derivative * tangents[0]

    return functools.wraps(function)(activation)


@with_derivative
def quick_gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x * sigmoid(1.702 x), the activation of CLIP's image tower."""
    gate = jax.nn.sigmoid(1.702 * x)
    return x * gate, gate * (1 + 1.702 * x * (1 - gate))


@with_derivative
def erf_gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The exact GELU of BERT, x * Phi(x); JAX's default is the tanh approximation.

    By `erf` as in PyTorch: `erfc`, which JAX takes, costs twice as much on CPUs.
    """
    below = 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))
    return x * below, below + x * jnp.exp(-0.5 * x**2) * (2 * math.pi) ** -0.5


def product_of_rows(rows: jax.Array, kernel: jax.Array, dimensions: Any, **how: Any) -> jax.Array:
    """`jax.lax.dot_general` of [... i] and [i o], as one product of two matrices.

    On CPUs XLA computes the kernel's gradient of a product with several row axes at half the speed.
    """
    assert dimensions == (((rows.ndim - 1,), (0,)), ((), ())), dimensions
    product = jax.lax.dot_general(rows.reshape(-1, rows.shape[-1]), kernel, (((1,), (0,)), ((), ())), **how)
    return product.reshape(*rows.shape[:-1], kernel.shape[1])


def dense(
    features: int, dtype: Any, name: str | None = None, use_bias: bool = True, kernel_init: Any = KERNEL_INIT
) -> nn.Dense:
    """A Dense layer with float32 parameters that computes in `dtype`, exactly if that is float32."""
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
        use_bias=use_bias,
        precision=exact_if_float32(dtype),
        dot_general=product_of_rows,
    )


class LayerNorm(nn.Module):
    """Layer norm computed in float32, returned in the dtype of its input.

    Attributes:
        epsilon: 1e-5 in the image tower, 1e-12 in the text tower and the cross encoders (published code).
    """

    epsilon: float

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        # The fast variance, mean of squares less squared mean, is wrong where the mean is far above the deviation.
        norm = nn.LayerNorm(epsilon=self.epsilon, dtype=jnp.float32, use_fast_variance=False, name="norm")
        return norm(hidden).astype(hidden.dtype)


@struct.dataclass
class KeysAndValues:
    """What an attention reads: key and value [b h c s], with s = d / h."""

    key: jax.Array
    value: jax.Array


class Attention(nn.Module):
    """Multi-head attention with biases everywhere; softmax in float32.

    Heads stand before tokens, so that XLA multiplies matrices that lie side by side: on a CPU with gradients two thirds
    of the time of `jax.nn.dot_product_attention` at ViT-B's sizes.

    Attributes:
        width: `d` of the queries and of the result.
        heads: `h`; divides the width.
        dtype: the dtype of the matrix products.
        dropout: rate on the weights and on the result (published code); see `Dropout`.
    """

    width: int
    heads: int
    dtype: Any
    dropout: float = 0.0

    def setup(self) -> None:
        self.query, self.key, self.value, self.out = (dense(self.width, self.dtype) for _ in range(4))
        self.weights_dropout, self.out_dropout = Dropout(self.dropout), Dropout(self.dropout)

    def __call__(
        self, queries: jax.Array, context: jax.Array, context_mask: jax.Array | None = None
    ) -> Float[Array, "b q d"]:
        """Lets every query token read the context tokens whose mask is True (all of them without a mask)."""
        # The query first: gradients of tokens that read themselves are added in the reverse order of use, and runs that
        # resume must round as they did before.
        query = self._split(self.query(queries))
        return self._mixed(query, self.keys_and_values(context), context_mask)

    @checked
    def keys_and_values(self, context: Float[Array, "b c context_d"]) -> KeysAndValues:
        """What queries read of the context; the same for all queries, so it can be computed once for several."""
        return KeysAndValues(self._split(self.key(context)), self._split(self.value(context)))

    @checked
    def attend(
        self,
        queries: Float[Array, "b q d"],
        context: KeysAndValues,
        context_mask: Bool[Array, "b c"] | None = None,
    ) -> Float[Array, "b q d"]:
        """As `__call__`, with keys and values that a caller computed once for several sets of queries."""
        return self._mixed(self._split(self.query(queries)), context, context_mask)

    @checked
    def _mixed(
        self, query: Float[Array, "b h q s"], context: KeysAndValues, context_mask: Bool[Array, "b c"] | None
    ) -> Float[Array, "b q d"]:
        """softmax(query . key / sqrt(s)) . value of each head, and the output projection of all heads together.

        Equal weights where no token's mask is True: not NaN, which would spread.

        Where the collection `ATTENTION` is mutable, the weights [b h q c] are stored in it: what each query reads, in
        shares that sum to one. A variable "weights" of `ATTENTION_CHANGE` is added to them before values are read.
        """
        exact = exact_if_float32(query.dtype)
        logits = jnp.einsum("bhqs,bhcs->bhqc", query, context.key, precision=exact, preferred_element_type=jnp.float32)
        logits = logits / query.shape[-1] ** 0.5
        if context_mask is not None:
            logits = jnp.where(context_mask[:, None, None, :], logits, MASKED)
        # Dividing by the softmax's sum after the product is faster still, but triples the rounding of small gradients.
        weights = jax.nn.softmax(logits, axis=-1)
        if self.is_mutable_collection(ATTENTION) and not self.is_initializing():
            self.sow(ATTENTION, "weights", weights)
        if self.has_variable(ATTENTION_CHANGE, "weights"):
            weights = weights + self.get_variable(ATTENTION_CHANGE, "weights")
        weights = self.weights_dropout(weights).astype(query.dtype)
        mixed = jnp.einsum("bhqc,bhcs->bhqs", weights, context.value, precision=exact).swapaxes(1, 2)
        return self.out_dropout(self.out(mixed.reshape(*mixed.shape[:2], self.width)))

    def _split(self, tokens: jax.Array) -> jax.Array:
        """[b t d] -> [b h t d/h]."""
        return tokens.reshape(*tokens.shape[:-1], self.heads, self.width // self.heads).swapaxes(1, 2)


class Mlp(nn.Module):
    """Two Dense layers with an activation between them.

    Attributes:
        width: `d` of input and result.
        mlp_width: the width between the two layers.
        activation: `quick_gelu` or `erf_gelu`.
        dtype: the dtype of the matrix products.
        dropout: rate on the result; see `Dropout`.
    """

    width: int
    mlp_width: int
    activation: Activation
    dtype: Any
    dropout: float = 0.0

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        hidden = self.activation(dense(self.mlp_width, self.dtype, "up")(hidden))
        return Dropout(self.dropout)(dense(self.width, self.dtype, "down")(hidden))


def recomputing(layer: type[nn.Module], remat: str, methods: Any = None) -> type[nn.Module]:
    """The layer, of which the backward pass computes again what one of `REMAT_WORDS` says."""
    return layer if remat == "none" else nn.remat(layer, prevent_cse=False, policy=kept_by(remat), methods=methods)


def kept_by(remat: str) -> Callable[..., Any] | None:
    """The policy of `jax.checkpoint` for one of `REMAT_WORDS` that is not "none"."""
    return {"products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "all": None}[remat]


def scanned(layer: type[nn.Module], length: int, *, remat: str, unroll: bool) -> type[nn.Module]:
    """Turns a layer `(hidden, *rest) -> (hidden, None)` into a stack of `length` of them with stacked parameters.

    Args:
        layer: the module class; its parameters gain a leading axis of size `length`.
        length: number of layers.
        remat: of `REMAT_WORDS`, what the backward pass computes again of each layer.
        unroll: write the loop out, which compiles slower and lets XLA count every layer.
    """
    return nn.scan(
        recomputing(layer, remat),
        variable_axes={"params": 0, ATTENTION: 0, ATTENTION_CHANGE: 0},
        split_rngs={"params": True, DROPOUT: True},
        in_axes=nn.broadcast,
        length=length,
        unroll=length if unroll else 1,
    )


def cls_of_stack(
    layer: nn.Module, stacked: Params, hidden: Float[Array, "b t d"], *rest: jax.Array, unroll: bool
) -> Float[Array, "b 1 d"]:
    """The last hidden state of CLS; of the other tokens the last layer computes keys and values alone.

    Flax's scan has one method for all layers, so it is not used here, but its parameters are. For passes without
    dropout and gradients: layers are taken out of the stack one by one, which backwards would add up whole stacks.

    Args:
        layer: an unbound layer, with `cls_alone` as its last argument.
        stacked: parameters of the stack that `scanned` makes of it.
        hidden, rest: what the first layer takes.
        unroll: as for `scanned`.
    """
    count = len(jax.tree.leaves(stacked)[0])

    def apply(number: jax.Array | int, hidden: jax.Array, *, cls_alone: bool = False) -> jax.Array:
        params = jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, number, keepdims=False), stacked)
        return layer.apply({"params": params}, hidden, *rest, cls_alone=cls_alone)[0]

    step = lambda hidden, number: (apply(number, hidden), None)  # noqa: E731
    hidden, _ = jax.lax.scan(step, hidden, jnp.arange(count - 1), unroll=unroll)
    return apply(count - 1, hidden, cls_alone=True)
