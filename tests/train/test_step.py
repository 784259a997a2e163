"""One step of every variant: its metrics, what it may and may not change, oracles, and odd batches."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from small_model import (
    BATCH_SIZE,
    CHEAPEST,
    TOKENS,
    VARIANTS,
    compiled_step,
    named_leaves,
    random_state,
    small_batch,
    small_config,
    small_plan,
    small_words,
)
from small_steps import KEY, Case, case, with_memory

from r2d2_jax.arrays import Batch
from r2d2_jax.losses.masked_lm import mask_tokens, mask_words
from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.rng import stream
from r2d2_jax.sharding import apply_by_rows
from r2d2_jax.tasks.stages import Towers, pre_ranking, ranking
from r2d2_jax.train.state import TrainState

pytestmark = pytest.mark.usefixtures("forget_cases")

ALWAYS = {"loss", "i2t_accuracy", "t2i_accuracy", "temperature", "gradient_norm", "learning_rate", "teacher_gap"}
TGD, GCPR = {"tgd", "queue_fill", "soft_target_share"}, {"gcpr"}
FGR, MLM, FGD = (
    {"fgr", "match_accuracy", "no_match_accuracy"},
    {"mlm", "mlm_accuracy"},
    {"fgd", "fgd_weight"},
)
METRICS = {
    "full": ALWAYS | TGD | FGR | MLM | FGD,
    "without_et": ALWAYS | TGD | FGR | MLM | FGD,
    "without_tgd": ALWAYS | GCPR | FGR | MLM | FGD,
    "without_fgd": ALWAYS | TGD | FGR | MLM,
    "without_twd": ALWAYS | GCPR | FGR | MLM,
    "without_fgr": ALWAYS | TGD | MLM | FGD,
    "prd2": ALWAYS | TGD | FGD,
    "trainable_image": ALWAYS | TGD | FGR | MLM | FGD,
}
TERMS = {"tgd", "gcpr", "fgr", "mlm", "fgd"}
# Losses are sums of few float32 terms of size 1 to 20, and NumPy sums in another order.
CLOSE = dict(rtol=2e-5, atol=2e-6)


# --- every variant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_metrics(variant: str) -> None:
    metrics = case(variant).metrics
    assert set(metrics) == METRICS[variant]
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    values = {name: float(value) for name, value in metrics.items()}
    assert all(np.isfinite(value) for value in values.values()), values
    assert values["loss"] == pytest.approx(sum(values[term] for term in TERMS & set(values)), rel=1e-6)
    assert values["gradient_norm"] > 0
    assert all(0 <= values[name] <= 1 for name in values if name.endswith("accuracy"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_step_changes(variant: str) -> None:
    """All trainable matrices change; a frozen image tower keeps every bit; shapes and types stay; the step counts."""
    this = case(variant)
    before, after = named_leaves(this.before), named_leaves(this.after)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in before.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in after.items()
    }
    assert int(this.after.step) == int(this.before.step) + 1
    same = {name for name in before if name.startswith("params/") and (before[name] == after[name]).all()}
    tower = {name for name in before if name.startswith("params/image_encoder/")}
    assert same == (set() if variant == "trainable_image" else tower)


@pytest.mark.parametrize("variant", VARIANTS)
def test_teacher_is_the_moving_average_of_the_new_student(variant: str) -> None:
    this = case(variant)
    if this.before.memory.teacher is None:
        assert this.after.memory.teacher is None
        assert float(this.metrics["teacher_gap"]) == 0
        return
    student = {part: this.after.params[part] for part in this.before.memory.teacher}
    teacher, student, after = map(named_leaves, (this.before.memory.teacher, student, this.after.memory.teacher))
    gap = size = 0.0
    for name, value in after.items():
        expected = 0.995 * np.float64(teacher[name]) + 0.005 * np.float64(student[name])
        np.testing.assert_allclose(value, expected, rtol=3e-7, atol=1e-8, err_msg=name)
        gap += ((np.float64(student[name]) - teacher[name]) ** 2).sum()
        size += (np.float64(student[name]) ** 2).sum()
    assert float(this.metrics["teacher_gap"]) == pytest.approx((gap / size) ** 0.5, rel=1e-4)


# --- the whole method against oracles -------------------------------------------------------------------------------


@jax.jit
def embeds(params: Any, images: jax.Array, input_ids: jax.Array, mask: jax.Array) -> tuple[Any, Any]:
    model, weights = case("full").plan.task.model, {"params": params}
    image = model.apply(weights, normalise_images(images), method="encode_image")
    return image, model.apply(weights, input_ids, mask, method="encode_text")


def towers(params: Any, batch: Batch, input_ids: jax.Array | None = None) -> tuple[Any, Any]:
    ids = batch.input_ids if input_ids is None else input_ids
    return embeds(params, batch.images, ids, batch.attention_mask)


def masked_ids(batch: Batch, step: int) -> jax.Array:
    special = np.isin(batch.input_ids, [TOKENS.cls_id, TOKENS.sep_id, TOKENS.pad_id])
    key = stream(KEY, "mask", step)
    if batch.word is not None:
        return mask_words(key, batch.input_ids, jnp.asarray(~special), batch.word, TOKENS.mask_id, 0.15).input_ids
    return mask_tokens(key, batch.input_ids, jnp.asarray(~special), TOKENS.mask_id, 0.15).input_ids


@pytest.fixture(scope="module")
def repeated(full: Case) -> tuple[TrainState, Batch]:
    """Rows 1 and 2 show one image; the images of rows 0 and 3 are in the queue, row 3's also in an unfilled slot."""
    image_id = np.array(full.batch.image_id)
    image_id[2] = image_id[1]
    queued = np.array(full.before.memory.queue.image_id)
    queued[4], queued[9], queued[12], queued[15] = image_id[0], image_id[3], image_id[3], image_id[3]
    queue = full.before.memory.queue.replace(image_id=queued)
    return with_memory(full.before, queue=queue), full.batch.replace(image_id=jnp.asarray(image_id))


def expected_tgd(state: TrainState, batch: Batch, *, queue_positives: bool, more: np.ndarray | bool = False) -> float:
    image, text = towers(state.params, batch, masked_ids(batch, int(state.step)))
    teacher_image, teacher_text = towers({**state.params, **state.memory.teacher}, batch)
    queue, ids = state.memory.queue, np.array(batch.image_id)
    queued_ids = np.array(queue.image_id) if queue_positives else np.zeros_like(queue.image_id)
    positive = (ids[:, None] == np.concatenate([ids, queued_ids])[None]).all(-1) | more
    return oracles.tgd(
        np.array(image.embed),
        np.array(text.embed),
        np.concatenate([teacher_image.embed, queue.image_embed]),
        np.concatenate([teacher_text.embed, queue.text_embed]),
        np.concatenate([np.ones(BATCH_SIZE), np.float64(0.99) ** queue.age]),
        np.concatenate([np.ones(BATCH_SIZE, bool), queue.valid]),
        positive,
        temperature=0.07,
        share=0.4 * 3 / 4,  # step 3 of a ramp over 4 steps
    )


def test_target_guided_distillation(full: Case, repeated: tuple[TrainState, Batch]) -> None:
    """Rows with an image in the queue have it as a positive there, not as a negative."""
    _, metrics = full.run(*repeated, KEY)
    expected = expected_tgd(*repeated, queue_positives=True)
    np.testing.assert_allclose(metrics["tgd"], expected, **CLOSE)
    assert abs(expected_tgd(*repeated, queue_positives=False) - expected) > 1e-2
    assert float(metrics["soft_target_share"]) == pytest.approx(0.3)
    assert float(metrics["queue_fill"]) == pytest.approx(13 / 20)


def test_texts_of_several_images_in_batch_and_queue(full: Case) -> None:
    """Rows 0 and 4 have one text, which slot 2 has too; slot 3 and row 5 have none; slot 15 is not filled."""
    this = Case("prd2", {"loss": {"text_ids": True}})
    text_id = np.zeros((BATCH_SIZE, 2), np.uint32)
    text_id[[0, 4]] = 3, 8
    queued = np.zeros((20, 2), np.uint32)
    queued[[2, 15]] = 3, 8
    queue = this.before.memory.queue.replace(text_id=queued)
    state, batch = with_memory(this.before, queue=queue), this.batch.replace(text_id=jnp.asarray(text_id))
    after, metrics = this.run(state, batch, KEY)
    more = np.zeros((BATCH_SIZE, BATCH_SIZE + 20), bool)
    more[0, 4] = more[4, 0] = True
    more[[0, 0, 4, 4], BATCH_SIZE + np.array([2, 15, 2, 15])] = True
    expected = expected_tgd(state, batch, queue_positives=True, more=more)
    np.testing.assert_allclose(metrics["tgd"], expected, **CLOSE)
    assert abs(expected_tgd(state, batch, queue_positives=True) - expected) > 1e-2
    new = (13 + np.arange(BATCH_SIZE)) % 20
    queued[new] = text_id
    np.testing.assert_array_equal(after.memory.queue.text_id, queued)


def test_feature_guided_distillation_and_its_mean(full: Case) -> None:
    state, batch = full.before, full.batch
    student = oracles.normed_feature(towers(state.params, batch, masked_ids(batch, 3))[1].feature)
    teacher = oracles.normed_feature(towers({**state.params, **state.memory.teacher}, batch)[1].feature)
    mean = oracles.feature_mean(np.array(state.memory.feature_mean), np.array(teacher), 3, 0.9)
    np.testing.assert_allclose(full.after.memory.feature_mean, mean, rtol=2e-6, atol=2e-6)
    # The loss is centred on the mean that has followed this batch already.
    expected = 3 / 4 * oracles.fgd(student, teacher, mean, 4.0, 4.0)  # step 3 of a ramp over 4 steps
    np.testing.assert_allclose(full.metrics["fgd"], expected, **CLOSE)
    assert float(full.metrics["fgd_weight"]) == 0.75


def test_negatives_are_as_hard_as_the_configuration_says(full: Case) -> None:
    this = Case("full", {"loss": {"negative_hardness": 0.25}})
    task, mesh, state, batch = this.plan.task, this.plan.mesh, this.before, this.batch
    seen = Towers(*towers(state.params, batch, masked_ids(batch, 3)))
    draw, nowhere = stream(KEY, "hard_negative", 3), batch.input_ids[:, :0]
    found = pre_ranking(task, seen, batch, jnp.float32(0.07), mesh, draw=draw, hardness=0.25)
    assert found.negatives is not None
    forward = partial(apply_by_rows, task.model, state.params, mesh)
    expected = ranking(forward, seen, batch, found.negatives, mesh, (1.0, 2.0), nowhere).loss
    np.testing.assert_allclose(this.metrics["fgr"], expected, **CLOSE)
    assert abs(float(full.metrics["fgr"]) - float(expected)) > 1e-4


def test_queue_after_the_step(full: Case) -> None:
    """The teacher's embeddings of the complete batch stand in slots 13 ... 19, 0; the rest is one step older."""
    before, after = full.before.memory.queue, full.after.memory.queue
    image, text = towers({**full.before.params, **full.before.memory.teacher}, full.batch)
    new = (13 + np.arange(BATCH_SIZE)) % 20
    old = np.setdiff1d(np.arange(20), new)
    np.testing.assert_allclose(after.image_embed[new], image.embed, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.text_embed[new], text.embed, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.image_id[new], full.batch.image_id)
    np.testing.assert_array_equal(after.age[new], 0)
    np.testing.assert_array_equal(after.age[old], before.age[old] + 1)
    for name in ("image_embed", "text_embed", "image_id"):
        np.testing.assert_array_equal(getattr(after, name)[old], getattr(before, name)[old])
    assert after.valid.all()
    assert int(after.head) == (13 + BATCH_SIZE) % 20


def test_gcpr_without_target_guided_distillation() -> None:
    this = case("without_tgd")
    image, text = towers(this.before.params, this.batch, masked_ids(this.batch, 3))
    expected = oracles.gcpr(np.array(image.embed), np.array(text.embed), np.eye(BATCH_SIZE, dtype=bool), 0.07)
    np.testing.assert_allclose(this.metrics["gcpr"], expected, **CLOSE)


def test_without_enhanced_training_pre_ranking_reads_the_clean_text() -> None:
    this = case("without_et")
    student = towers(this.before.params, this.batch)
    queue, teacher = this.before.memory.queue, towers({**this.before.params, **this.before.memory.teacher}, this.batch)
    expected = oracles.tgd(
        np.array(student[0].embed),
        np.array(student[1].embed),
        np.concatenate([teacher[0].embed, queue.image_embed]),
        np.concatenate([teacher[1].embed, queue.text_embed]),
        np.concatenate([np.ones(BATCH_SIZE), np.float64(0.99) ** queue.age]),
        np.concatenate([np.ones(BATCH_SIZE, bool), queue.valid]),
        np.eye(BATCH_SIZE, BATCH_SIZE + 20, dtype=bool),
        temperature=0.07,
        share=0.3,
    )
    np.testing.assert_allclose(this.metrics["tgd"], expected, **CLOSE)
    # FGD reads the masked text all the same.
    masked = oracles.normed_feature(towers(this.before.params, this.batch, masked_ids(this.batch, 3))[1].feature)
    complete = oracles.normed_feature(teacher[1].feature)
    expected = 3 / 4 * oracles.fgd(masked, complete, np.array(this.after.memory.feature_mean), 4.0, 4.0)
    np.testing.assert_allclose(this.metrics["fgd"], expected, **CLOSE)


def test_whole_words_are_masked_where_the_configuration_says_so(full: Case) -> None:
    config = small_config({"loss": {"whole_word_masking": True}})
    batch = full.batch.replace(word=jnp.asarray(small_words(2)))
    _, metrics = compiled_step(small_plan(config))(full.before, batch, KEY)
    assert set(metrics) == set(full.metrics)
    assert (masked_ids(batch, 3) != masked_ids(full.batch, 3)).any()
    np.testing.assert_allclose(metrics["tgd"], expected_tgd(full.before, batch, queue_positives=True), **CLOSE)
    assert float(metrics["mlm"]) != float(full.metrics["mlm"])


# --- odd batches, and many steps ------------------------------------------------------------------------------------


def test_a_batch_of_one_image_is_finite(full: Case) -> None:
    """No negative is left for any row: FGR learns from the matching pairs alone."""
    after, metrics = full.run(full.before, small_batch(0, same_image=True), KEY)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(after).values())
    assert (metrics["i2t_accuracy"], metrics["t2i_accuracy"], metrics["no_match_accuracy"]) == (1, 1, 0)


def test_texts_with_nothing_to_mask_are_finite(full: Case) -> None:
    ids = np.zeros((BATCH_SIZE, 10), np.int32)
    ids[:, :2] = TOKENS.cls_id, TOKENS.sep_id
    batch = full.batch.replace(input_ids=jnp.asarray(ids), attention_mask=jnp.asarray(ids > 0))
    after, metrics = full.run(full.before, batch, KEY)
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(after).values())
    assert float(metrics["mlm"]) == 0


def test_an_empty_queue_is_finite(full: Case) -> None:
    state = random_state(full.plan, step=0, filled=0)
    after, metrics = full.run(state, full.batch, KEY)
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(after).values())
    assert (metrics["queue_fill"], metrics["soft_target_share"]) == (0, 0)
    assert int(after.memory.queue.valid.sum()) == BATCH_SIZE


def test_temperature_stays_in_its_range() -> None:
    """A learning rate of 1 throws the temperature far beyond either bound."""
    config = small_config(CHEAPEST, {"optimizer": {"learning_rate": 1.0, "clip_norm": 1e9}})
    plan = small_plan(config)
    run, seen = compiled_step(plan), set()
    for seed in range(4):
        after, _ = run(random_state(plan, seed), small_batch(seed), KEY)
        seen.add(float(after.params["temperature"]))
    assert seen <= {float(np.float32(0.001)), 0.5}


def test_learns_a_batch_by_heart(full: Case) -> None:
    """Each term falls but FgD, whose target moves as the teacher follows."""
    state, losses = full.before, []
    for _ in range(60):
        state, metrics = full.run(state, full.batch, KEY)
        losses.append([float(metrics[term]) for term in ("tgd", "fgr", "mlm")])
    early, late = np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0)
    assert (late < early).all(), (early, late)
    assert late.sum() < 0.8 * early.sum(), (early, late)


def test_feature_guided_distillation_of_projected_features(full: Case) -> None:
    """The form, the temperatures and the weight that were the default once."""
    terms = {
        "fgd_features": "projected", "fgd_ramp_epochs": 0.0, "fgd_student_temperature": 0.1,
        "fgd_teacher_temperature": 0.04,
    }  # fmt: skip
    plan = small_plan(small_config({"loss": terms}))
    state, batch = full.before, full.batch
    metrics = compiled_step(plan)(jax.tree.map(jnp.copy, state), batch, KEY)[1]
    student = np.array(towers(state.params, batch, masked_ids(batch, 3))[1].feature)
    teacher = np.array(towers({**state.params, **state.memory.teacher}, batch)[1].feature)
    mean = oracles.feature_mean(np.array(state.memory.feature_mean), teacher, 3, 0.9)
    np.testing.assert_allclose(metrics["fgd"], oracles.fgd(student, teacher, mean, 0.1, 0.04), **CLOSE)
