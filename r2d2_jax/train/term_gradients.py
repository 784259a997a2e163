"""What each term of a loss weighs: the norms of its gradient in the features, and in the parts of the model."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from r2d2_jax.arrays import Batch, Params
from r2d2_jax.sharding import batch_sharding
from r2d2_jax.tasks.task import LOSS, FeatureProbe, Metrics, Task
from r2d2_jax.train.state import TrainState, trainable_of

# Parts of the model whose gradients are weighed on their own; "all" is everything that is trained.
PARTS = {
    "image_tower": ("image_encoder",),
    "text_tower": ("text_encoder",),
    "cross_encoders": ("text_image_encoder", "image_text_encoder"),
}
WITHOUT = "without_"


def term_gradients(
    state: TrainState, batch: Batch, key: jax.Array, task: Task, mesh: Mesh, *, without: bool = False
) -> Metrics:
    """The norm of every term's gradient, before clipping, in every part; nothing is updated.

    One forward pass, and one backward pass after the other for each term and for their sum, in a loop that is compiled
    once. For the four terms of `configs/demo.py` it takes as long as three train steps, and 1.3 times their temporary
    memory: what the forward pass leaves stays until the last pass has read it, beside one gradient of everything that
    is trained. On a device that a step fills this may be too much; `mesh.fsdp` and `model.remat` save as they do there.

    Args:
        state: the train state; its optimizer's part is not read.
        batch: the global batch.
        key: the run's key. A step with the same three draws the same masks, hard negatives and dropout.
        task: what is learned.
        mesh: the devices.
        without: weigh also what is left of the loss without each term.

    Returns:
        float32 scalars "gradient/TERM/PART". TERM is a term, `LOSS` for the sum of all, or `WITHOUT` and a term. PART
        is "image_features" or "text_features", the student's [b e] before normalisation; "image_tower" where it is
        trained; "text_tower"; "cross_encoders" where there are any; and "all".
    """
    probe = jax.lax.with_sharding_constraint(
        jnp.zeros((len(batch.images), task.model.config.embed_size)), batch_sharding(mesh)
    )

    def terms_of(trainable: Params, probe: FeatureProbe) -> Metrics:
        params = {**state.params, **trainable}
        return task.loss(params, state.memory, batch, state.step, key, mesh, probe).terms

    terms, pull = jax.vjp(terms_of, trainable_of(state.params, task), FeatureProbe(probe, probe))
    mixtures = dict(_mixtures(tuple(terms), without))
    shares = {name: jnp.array([float(name in mixture) for mixture in mixtures.values()]) for name in terms}
    # A loop, so that only one gradient exists at a time.
    norms = jax.lax.map(lambda share: _norms(*pull(share)), shares)
    return {
        f"gradient/{name}/{part}": norm[place]
        for place, name in enumerate(mixtures)
        for part, norm in norms.items()
    }  # fmt: skip


def _mixtures(terms: tuple[str, ...], without: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of what is weighed, and the terms in each."""
    yield from ((name, (name,)) for name in terms)
    yield LOSS, terms
    if without:
        yield from ((f"{WITHOUT}{name}", tuple(other for other in terms if other != name)) for name in terms)


def _norms(gradients: Params, features: FeatureProbe) -> Metrics:
    parts = {name: [gradients[group] for group in groups if group in gradients] for name, groups in PARTS.items()}
    trees = {"image_features": features.image, "text_features": features.text, **parts, "all": gradients}
    return {name: optax.tree.norm(tree) for name, tree in trees.items() if jax.tree.leaves(tree)}
