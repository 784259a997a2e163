"""What a step trains for: the seam between the engine, which knows no loss, and a task, which knows no optimizer."""

import abc
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r2d2_jax.arrays import Batch, Params
from r2d2_jax.models.r2d2 import R2D2, abstract_params

Metrics = dict[str, jax.Array]  # float32 scalars by the names that they have in the log
LOSS = "loss"  # the name of the sum of all terms in the log
Memory = Any  # a tree of arrays that a task carries from step to step beside the parameters; None if it has none


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that a task must know."""

    mask_id: int
    cls_id: int
    sep_id: int
    pad_id: int


# Those of BERT's Chinese vocabulary: what a plan is made with, where no vocabulary has been read.
BERT_TOKENS = SpecialTokens(mask_id=103, cls_id=101, sep_id=102, pad_id=0)


def trainable_parts(model: R2D2) -> tuple[str, ...]:
    """Names of the top-level parameter groups that receive gradients: all of the model's, less a frozen image tower."""
    frozen = ("image_encoder",) if model.config.freeze_image_tower else ()
    return tuple(part for part in abstract_params(model) if part not in frozen)


@struct.dataclass
class LossResult:
    """What a loss hands to the rest of the step.

    terms: float32 scalars by the names that they have in the log; the loss is their sum. A loss of a single term calls
        it `LOSS`.
    metrics: more for the log; like the terms they describe the parameters before the update.
    carry: whatever the task's own `after` needs.
    """

    terms: Metrics
    metrics: Metrics
    carry: Any = None

    def total(self) -> jax.Array:
        """The loss: what is differentiated. Added in the task's order, so before the result leaves a JAX function."""
        return sum(self.terms.values(), jnp.zeros(()))


@struct.dataclass
class FeatureProbe:
    """Zeros that are added to the student's features before these are normalised, and change no value.

    The gradient of a term in them is its gradient in the features. Every pass of a tower gets the same zeros, so where
    a tower runs twice the gradients of both passes are added.

    image, text: float32 [b e].
    """

    image: jax.Array
    text: jax.Array


@dataclass(frozen=True, eq=False)
class Task(abc.ABC):
    """A model and pure functions of arrays; compared by identity, as it is closed over when a step is compiled.

    Attributes:
        model: the Linen module, with the parts that the task trains.
        trainable_parts: names of the top-level parameter groups that receive gradients.
        reads_words: whether the batches must say which word each token belongs to.
        reads_text_ids: whether they must say which rows have the same text.
        reads_labels: whether they must say which of their pairs match.
        micro_batches: parts in which the model's passes and similarities are computed, one after the other; the loss
            stays that of the global batch.
    """

    model: R2D2
    trainable_parts: tuple[str, ...]
    reads_words: bool
    reads_text_ids: bool = field(default=False, kw_only=True)
    reads_labels: bool = field(default=False, kw_only=True)
    micro_batches: int = field(default=1, kw_only=True)

    @abc.abstractmethod
    def init(self, params: Params) -> Memory:
        """The memory before the first step.

        Args:
            params: the parameters before the first step; the memory must hold copies of them, not the arrays
                themselves, because the step gives both away.
        """

    @abc.abstractmethod
    def loss(
        self,
        params: Params,
        memory: Memory,
        batch: Batch,
        step: jax.Array,
        key: jax.Array,
        mesh: Mesh,
        probe: FeatureProbe | None = None,
    ) -> LossResult:
        """The terms of the loss of one global batch.

        Args:
            params: every parameter of the model; the loss is differentiable in them and in nothing else.
            memory: as `init` or `after` left it.
            batch: the global batch, its rows split over the mesh.
            step: completed steps, an int32 scalar.
            key: the run's key; every draw depends on it, on the step and on nothing else.
            mesh: the devices.
            probe: for whoever wants gradients in the features; no step does.
        """

    @abc.abstractmethod
    def after(self, memory: Memory, params: Params, batch: Batch, result: LossResult) -> tuple[Memory, Metrics]:
        """The memory after the step, and metrics that only the updated parameters give.

        Args:
            memory: before the step.
            params: after the optimizer's update.
            batch: the global batch.
            result: what `loss` returned.
        """
