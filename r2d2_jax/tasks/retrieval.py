"""Fine-tuning for retrieval: GCPR with hard targets, and FGR, on unmasked text (published code)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2d2_jax.arrays import Batch, Params
from r2d2_jax.config.reading import Config
from r2d2_jax.config.tasks import RetrievalConfig
from r2d2_jax.models.r2d2 import R2D2
from r2d2_jax.rng import stream
from r2d2_jax.tasks.stages import Towers, pre_ranking, ranking, student_forward
from r2d2_jax.tasks.task import FeatureProbe, LossResult, Metrics, Task, trainable_parts


@dataclass(frozen=True, eq=False)
class Retrieval(Task):
    """The published fine-tuning for retrieval: no teacher, no queue, nothing masked, so it carries nothing.

    Attributes:
        terms: which terms there are, and their constants.
    """

    terms: RetrievalConfig

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
        """total = gcpr + fgr (published code)."""
        forward = student_forward(self, params, mesh, key, step, probe)
        towers = Towers(
            image=forward("encode_pixels", batch.images),
            text=forward("encode_text", batch.input_ids, batch.attention_mask),
        )
        temperature, draw = params["temperature"], stream(key, "hard_negative", step) if self.terms.fgr else None
        found = pre_ranking(self, towers, batch, temperature, mesh, draw=draw, hardness=self.terms.negative_hardness)
        assert found.gcpr is not None
        metrics = found.metrics() | {"temperature": temperature}
        terms: Metrics = {"gcpr": jnp.mean(found.gcpr)}
        if found.negatives is not None:
            weights, nowhere = self.terms.match_class_weights, batch.input_ids[:, :0]
            ranked = ranking(forward, towers, batch, found.negatives, mesh, weights, nowhere)
            terms["fgr"] = ranked.loss
            metrics |= ranked.metrics
        return LossResult(terms, metrics)

    def after(self, memory: None, params: Params, batch: Batch, result: LossResult) -> tuple[None, Metrics]:
        """Nothing is carried from step to step."""
        return None, {}


def retrieval(config: Config, text_ids: bool | None) -> Retrieval:
    """Fine-tuning for retrieval as configured; see `build_task`. Identities of texts are read where there are any."""
    model = R2D2(config.model, matching=config.retrieval.fgr, masked_lm=False)
    return Retrieval(
        model=model,
        trainable_parts=trainable_parts(model),
        reads_words=False,
        micro_batches=config.train.micro_batches,
        reads_text_ids=bool(text_ids),
        terms=config.retrieval,
    )
