"""Fine-tuning for matching: whether a labelled pair of image and text belongs together, by both cross encoders."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2d2_jax.arrays import Batch, Params
from r2d2_jax.config.reading import Config
from r2d2_jax.config.tasks import MatchingConfig
from r2d2_jax.losses.matching import match_loss, softmax_twice_loss
from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.tasks.stages import match_metrics, student_forward
from r2d2_jax.tasks.task import LOSS, FeatureProbe, LossResult, Metrics, Task, trainable_parts

# What no match logit depends on: without a gradient, weight decay alone would move it. PyTorch leaves such parameters
# as they are, too.
UNUSED = ("image_projection", "text_projection", "temperature")


@dataclass(frozen=True, eq=False)
class Matching(Task):
    """The published fine-tuning for matching: two-way classification of labelled pairs; it carries nothing.

    Attributes:
        terms: which form the loss has.
    """

    terms: MatchingConfig

    def init(self, params: Params) -> None:
        """Nothing is carried from step to step."""

    def loss(
        self,
        params: Params,
        memory: None,
        batch: Batch,
        step: jax.Array,
        key: jax.Array,
        mesh: Mesh,
        probe: FeatureProbe | None = None,
    ) -> LossResult:
        """Cross-entropy of the label, by both cross encoders."""
        forward = student_forward(self, params, mesh, key, step, probe)
        image = forward("encode_pixels", batch.images)
        text = forward("encode_text", batch.input_ids, batch.attention_mask)
        logits = forward("match", text.tokens, batch.attention_mask, image.tokens)
        label = batch.labels() == 1
        every = jnp.ones_like(label)
        if self.terms.loss == "published":
            loss = softmax_twice_loss(logits, label)
        else:
            loss = match_loss(logits, label, every, (1.0, 1.0))
        return LossResult({LOSS: loss}, match_metrics(logits, label, every))

    def after(self, memory: None, params: Params, batch: Batch, result: LossResult) -> tuple[None, Metrics]:
        """Nothing is carried from step to step."""
        return None, {}


def matching(config: Config) -> Matching:
    """Fine-tuning for matching as configured; see `build_task`."""
    model = R2D2(config.model, matching=True, masked_lm=False)
    return Matching(
        model=model,
        trainable_parts=tuple(part for part in trainable_parts(model) if part not in UNUSED),
        reads_words=False,
        micro_batches=config.train.micro_batches,
        reads_labels=True,
        terms=config.matching,
    )
