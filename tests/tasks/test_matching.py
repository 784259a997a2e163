"""Fine-tuning for matching: both losses against oracles, what it trains, and that it carries nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from small_model import (
    MATCHING,
    compiled_step,
    named_leaves,
    random_state,
    small_batch,
    small_config,
    small_labels,
    small_plan,
)

from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.tasks.matching import UNUSED
from r2d2_jax.train.plan import step_plan

KEY = jax.random.key(5)
LABEL = small_labels(0)
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "frozen": (MATCHING,),
    "published": (MATCHING, {"matching": {"loss": "published"}}),
    "trained": (MATCHING, {"model": {"freeze_image_tower": False}}),
}


class Case:
    """A variant's plan, its compiled step, a state in the middle of a run, and what one step makes of it."""

    def __init__(self, variant: str) -> None:
        self.plan = small_plan(small_config(*VARIANTS[variant]))
        self.run = compiled_step(self.plan)
        self.before, self.batch = random_state(self.plan), small_batch(0).replace(label=jnp.asarray(LABEL))
        self.after, self.metrics = self.run(self.before, self.batch, KEY)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {variant: Case(variant) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_step_changes_and_reports(variant: str, cases: dict[str, Case]) -> None:
    """Projections and temperature, which no match logit reads, keep every bit."""
    this = cases[variant]
    metrics = {"loss", "match_accuracy", "no_match_accuracy", "gradient_norm", "learning_rate"}
    assert set(this.metrics) == metrics
    assert all(np.isfinite(value) for value in this.metrics.values())
    assert this.after.memory is None
    before, after = named_leaves(this.before.params), named_leaves(this.after.params)
    same = {name.split("/")[0] for name in before if (before[name] == after[name]).all()}
    assert same == {*UNUSED, *(() if variant == "trained" else ("image_encoder",))}
    assert "masked_lm_head" not in this.before.params


@pytest.mark.parametrize("variant", ["frozen", "published"])
def test_losses_and_accuracies_equal_the_oracle_s(variant: str, cases: dict[str, Case]) -> None:
    this, label = cases[variant], LABEL == 1
    model, weights, batch = this.plan.task.model, {"params": this.before.params}, this.batch
    image = model.apply(weights, normalise_images(batch.images), method="encode_image")
    text = model.apply(weights, batch.input_ids, batch.attention_mask, method="encode_text")
    logits = np.array(model.apply(weights, text.tokens, batch.attention_mask, image.tokens, method="match"))
    if variant == "published":
        expected = oracles.softmax_twice_loss(logits, label)
    else:
        expected = oracles.match_loss(logits, label, np.ones_like(label), (1.0, 1.0))
    np.testing.assert_allclose(this.metrics["loss"], expected, rtol=2e-5)
    said = oracles.match_probability(logits) > 0.5
    np.testing.assert_allclose(this.metrics["match_accuracy"], np.mean(said[label]))
    np.testing.assert_allclose(this.metrics["no_match_accuracy"], np.mean(~said[~label]))


def test_learns_a_batch_by_heart(cases: dict[str, Case]) -> None:
    state, losses = cases["frozen"].before, []
    for _ in range(60):
        state, metrics = cases["frozen"].run(state, cases["frozen"].batch, KEY)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert metrics["match_accuracy"] == metrics["no_match_accuracy"] == 1


def test_a_batch_without_labels() -> None:
    plan = step_plan(small_config(*VARIANTS["frozen"]), jax.devices()[:1])
    arguments = (random_state(plan).params, None, small_batch(0), jnp.int32(0), KEY, plan.mesh)
    with pytest.raises(ValueError, match="its records have no labels"):
        plan.task.loss(*arguments)
