"""Fine-tuning for retrieval: its terms against oracles, what it trains, and that it carries nothing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from small_model import (
    BATCH_SIZE,
    NO_CROSS,
    RETRIEVAL,
    compiled_step,
    named_leaves,
    random_state,
    small_batch,
    small_config,
    small_plan,
)

from r2d2_jax.arrays import Batch
from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.rng import stream
from r2d2_jax.tasks.stages import Towers, hard_negatives, pre_ranking, rows_of, similarities, with_negatives
from r2d2_jax.tasks.task import Task

KEY = jax.random.key(5)
ENGINE = {"gradient_norm", "learning_rate"}
CONTRASTIVE = {"loss", "gcpr", "i2t_accuracy", "t2i_accuracy", "temperature"}
FGR = {"fgr", "match_accuracy", "no_match_accuracy"}
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "frozen": (RETRIEVAL,),
    "softened": (RETRIEVAL, {"retrieval": {"negative_hardness": 0.25}}),
    "trained": (RETRIEVAL, {"model": {"freeze_image_tower": False}}),
    "prd2": (NO_CROSS, RETRIEVAL, {"loss": {"fgr": True, "mlm": True}, "retrieval": {"fgr": False}}),
}
SHARED = "shared"  # the same as "prd2", on data with identities of texts


class Case:
    """A variant's plan, its compiled step, a state in the middle of a run, and what one step makes of it."""

    def __init__(self, variant: str) -> None:
        self.plan = small_plan(
            small_config(*VARIANTS["prd2" if variant == SHARED else variant]), text_ids=variant == SHARED
        )
        self.run = compiled_step(self.plan)
        self.before, self.batch = random_state(self.plan), small_batch(0)
        if variant == SHARED:
            self.batch = self.batch.replace(text_id=jnp.zeros((BATCH_SIZE, 2), jnp.uint32))
        self.after, self.metrics = self.run(self.before, self.batch, KEY)


made = functools.cache(Case)  # each variant is compiled once for all tests


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest) -> tuple[str, Case]:
    return request.param, made(request.param)


@pytest.fixture(scope="module")
def frozen() -> Case:
    return made("frozen")


def test_what_a_step_changes_and_reports(case: tuple[str, Case]) -> None:
    variant, this = case
    assert set(this.metrics) == ENGINE | CONTRASTIVE | (set() if variant == "prd2" else FGR)
    assert all(np.isfinite(value) for value in this.metrics.values())
    assert this.after.memory is None
    assert int(this.after.step) == int(this.before.step) + 1
    before, after = named_leaves(this.before), named_leaves(this.after)
    same = {name for name in before if name.startswith("params/") and (before[name] == after[name]).all()}
    tower = {name for name in before if name.startswith("params/image_encoder/")}
    assert same == (set() if variant == "trained" else tower)
    assert not any("masked_lm_head" in name for name in before)


def towers(task: Task, params: Any, batch: Batch) -> Towers:
    weights = {"params": params}
    image = task.model.apply(weights, normalise_images(batch.images), method="encode_image")
    text = task.model.apply(weights, batch.input_ids, batch.attention_mask, method="encode_text")
    return Towers(image, text)


def test_pre_ranking_reads_the_complete_text_with_hard_targets(frozen: Case) -> None:
    """Rows 1 and 2 show one image, so they share each other's mass."""
    image_id = np.array(frozen.batch.image_id)
    image_id[2] = image_id[1]
    batch = frozen.batch.replace(image_id=jnp.asarray(image_id))
    _, metrics = frozen.run(frozen.before, batch, KEY)
    seen = towers(frozen.plan.task, frozen.before.params, batch)
    positive = (image_id[:, None] == image_id[None]).all(-1)
    expected = oracles.gcpr(np.array(seen.image.embed), np.array(seen.text.embed), positive, 0.07)
    np.testing.assert_allclose(metrics["gcpr"], expected, rtol=2e-5, atol=2e-6)
    assert abs(expected - float(frozen.metrics["gcpr"])) > 1e-3


def test_texts_of_several_images_share_the_target() -> None:
    """Rows 1 and 2 show one image, rows 2, 3 and 5 have one text; rows 0 and 6 have texts without an identity."""
    shared = Case(SHARED)
    image_id, text_id = np.array(shared.batch.image_id), np.zeros((BATCH_SIZE, 2), np.uint32)
    image_id[2] = image_id[1]
    text_id[[1, 2, 3, 4, 5, 7]] = np.array([[9, 0], [0, 5], [0, 5], [5, 0], [0, 5], [6, 6]])
    batch = shared.batch.replace(image_id=jnp.asarray(image_id), text_id=jnp.asarray(text_id))
    _, metrics = shared.run(shared.before, batch, KEY)
    seen = towers(shared.plan.task, shared.before.params, batch)
    positive = np.eye(BATCH_SIZE, dtype=bool)
    for one, other in ((1, 2), (2, 3), (2, 5), (3, 5)):
        positive[one, other] = positive[other, one] = True
    expected = oracles.gcpr(np.array(seen.image.embed), np.array(seen.text.embed), positive, 0.07)
    np.testing.assert_allclose(metrics["gcpr"], expected, rtol=2e-5, atol=2e-6)
    rows = rows_of(seen, batch)
    found = similarities(rows, rows, jnp.float32(0.07))
    np.testing.assert_array_equal(found.positive, positive)
    for way in ("i2t", "t2i"):
        best = np.argmax(np.array(getattr(found, way)), axis=1)
        assert float(metrics[f"{way}_accuracy"]) == np.mean(positive[np.arange(BATCH_SIZE), best])
    for draw in range(50):
        negatives = hard_negatives(jax.random.key(draw), found, rows.number)
        assert negatives.has_image.all()
        assert negatives.has_text.all()
        for drawn in (negatives.image, negatives.text):
            assert not positive[np.arange(BATCH_SIZE), drawn].any()


@pytest.mark.parametrize("variant", ["frozen", "softened"])
def test_ranking_equals_the_match_stage_on_the_drawn_pairs(variant: str) -> None:
    this = made(variant)
    task, batch, params = this.plan.task, this.batch, this.before.params
    seen = towers(task, params, batch)
    key = stream(KEY, "hard_negative", int(this.before.step))
    hardness = 0.25 if variant == "softened" else 1.0
    found = pre_ranking(task, seen, batch, jnp.float32(0.07), this.plan.mesh, draw=key, hardness=hardness)
    assert found.negatives is not None
    rows = with_negatives(seen, batch.attention_mask, found.negatives, this.plan.mesh)
    text, image = np.array([0, 0, 1]), np.array([0, 1, 0])  # of the pair itself, and of its negatives
    places = 2 * np.arange(BATCH_SIZE)[:, None]
    text, image = (places + text).ravel(), (places + image).ravel()
    pairs = (rows.text_tokens[text], rows.attention_mask[text], rows.image_tokens[image])
    logits = np.array(task.model.apply({"params": params}, *pairs, method="match"))
    label = np.arange(3 * BATCH_SIZE) % 3 == 0
    expected = oracles.match_loss(logits, label, np.ones_like(label), (1.0, 2.0))
    np.testing.assert_allclose(this.metrics["fgr"], expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(this.metrics["loss"], this.metrics["gcpr"] + this.metrics["fgr"], rtol=1e-6)


def test_learns_a_batch_by_heart(frozen: Case) -> None:
    state, losses = frozen.before, []
    for _ in range(60):
        state, metrics = frozen.run(state, frozen.batch, KEY)
        losses.append([float(metrics[term]) for term in ("gcpr", "fgr")])
    early, late = np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0)
    assert (late < early).all(), (early, late)
    assert late.sum() < 0.8 * early.sum(), (early, late)
