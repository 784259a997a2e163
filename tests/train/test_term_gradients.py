"""Norms of each term's gradient: against gradients taken apart from the task, and in a run, which they leave alone."""

import logging
import math
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import (
    CHEAPEST,
    assert_bitwise_equal,
    log_lines,
    random_state,
    saved_state,
    small_batch,
    small_config,
    small_plan,
)
from small_runs import NO_EVALUATION, before_batch, run

from r2d2_jax.arrays import right_pairs, unit_norm
from r2d2_jax.losses.contrastive import gcpr, similarity_logits
from r2d2_jax.losses.distillation import distilled_feature, fgd, running_mean
from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.rng import stream
from r2d2_jax.train.term_gradients import term_gradients

KEY = jax.random.key(5)
LAYERS = {part: {"layers": 1} for part in ("image", "text", "cross")}
TERMS = ("fgd", "fgr", "gcpr", "mlm")
PARTS = ("image_features", "text_features", "image_tower", "text_tower", "cross_encoders", "all")


class Weighed:
    """What `term_gradients` finds for a state in the middle of a run, and the same by other ways."""

    def __init__(self) -> None:
        self.plan = small_plan(
            small_config({"loss": {"contrastive": "gcpr"}, "model": {**LAYERS, "freeze_image_tower": False}})
        )
        self.state, self.batch = random_state(self.plan), small_batch(0)

        def everything(state: Any, batch: Any) -> Any:
            norms = term_gradients(state, batch, KEY, self.plan.task, self.plan.mesh, without=True)
            return norms, self._feature_gradients(state, batch), jax.jacrev(self._terms)(state.params, state, batch)

        self.norms, self.features, self.jacobian = jax.device_get(jax.jit(everything)(self.state, self.batch))

    def _terms(self, params: Any, state: Any, batch: Any) -> Any:
        return self.plan.task.loss(params, state.memory, batch, state.step, KEY, self.plan.mesh).terms

    def _feature_gradients(self, state: Any, batch: Any) -> Any:
        """Gradients of GCPR in both features, and of FgD in the text's, with features that are computed here."""
        task, encode = self.plan.task, self.plan.task.model.apply
        masked = task.masked(batch, stream(KEY, "mask", state.step)).input_ids
        params, teacher = {"params": state.params}, {"params": {**state.params, **state.memory.teacher}}
        image = encode(params, normalise_images(batch.images), method="encode_image").feature
        text = encode(params, masked, batch.attention_mask, method="encode_text").feature
        target = encode(teacher, batch.input_ids, batch.attention_mask, method="encode_text").feature
        target = distilled_feature(target, task.terms.fgd_features)
        mean = running_mean(state.memory.feature_mean, target, state.step, task.terms.fgd_mean_momentum)
        temperatures = task.terms.fgd_student_temperature, task.terms.fgd_teacher_temperature
        positive = right_pairs(batch.image_id, None, batch.image_id, None)

        def contrast(image: jax.Array, text: jax.Array) -> jax.Array:
            i2t = similarity_logits(unit_norm(image), unit_norm(text), state.params["temperature"])
            return jnp.mean(gcpr(i2t, i2t.T, positive))

        def distil(text: jax.Array) -> jax.Array:
            distilled = fgd(distilled_feature(text, task.terms.fgd_features), target, mean, *temperatures)
            return 3 / 4 * distilled  # step 3 of a ramp over 4 steps

        return *jax.grad(contrast, argnums=(0, 1))(image, text), jax.grad(distil)(text)

    def norm(self, term: str, part: str) -> float:
        return float(self.norms[f"gradient/{term}/{part}"])

    def flat(self, term: str, groups: tuple[str, ...]) -> np.ndarray:
        """A term's gradient in some groups of parameters, taken by itself."""
        leaves = jax.tree.leaves({group: self.jacobian[term][group] for group in groups})
        return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])


@pytest.fixture(scope="module")
def weighed() -> Weighed:
    return Weighed()


def test_a_norm_for_every_term_and_part(weighed: Weighed) -> None:
    names = [*TERMS, "loss", *(f"without_{term}" for term in TERMS)]
    assert set(weighed.norms) == {f"gradient/{name}/{part}" for name in names for part in PARTS}


def test_norms_in_the_features(weighed: Weighed) -> None:
    image, text, distilled = weighed.features
    expected = {
        ("gcpr", "image_features"): image,
        ("gcpr", "text_features"): text,
        ("fgd", "text_features"): distilled,
        ("loss", "image_features"): image,
        ("loss", "text_features"): text + distilled,
        ("without_gcpr", "text_features"): distilled,
    }
    for place, gradient in expected.items():
        assert weighed.norm(*place) == pytest.approx(np.linalg.norm(gradient), rel=1e-5), place
    for term in ("fgr", "mlm"):
        assert weighed.norm(term, "image_features") == weighed.norm(term, "text_features") == 0, "they read tokens"
    assert weighed.norm("fgd", "image_features") == 0


def test_norms_in_the_model(weighed: Weighed) -> None:
    parts = {
        "image_tower": ("image_encoder",),
        "text_tower": ("text_encoder",),
        "cross_encoders": ("text_image_encoder", "image_text_encoder"),
        "all": weighed.plan.task.trainable_parts,
    }
    for part, groups in parts.items():
        gradients = {term: weighed.flat(term, groups) for term in TERMS}
        total = sum(gradients.values())
        assert weighed.norm("loss", part) == pytest.approx(np.linalg.norm(total), rel=1e-4)
        for term, gradient in gradients.items():
            assert weighed.norm(term, part) == pytest.approx(np.linalg.norm(gradient), rel=1e-4), (term, part)
            rest = np.linalg.norm(total - gradient)
            assert weighed.norm(f"without_{term}", part) == pytest.approx(rest, rel=1e-4), (term, part)


# --- in a run -------------------------------------------------------------------------------------------------------

# Ten steps in lines of four, weighed before steps 1, 4, 7 and 10. The teacher makes a warning of its queue.
RUN: dict[str, Any] = {"train": {"epochs": 2.5, "log_every": 4, "checkpoint_every": 5}}
OLD_QUEUE: dict[str, Any] = {"loss": {"contrastive": "tgd", "teacher_momentum": 0.5}}
WEIGHED: dict[str, Any] = {"train": {"weigh_terms_every": 3}}


def gradients_of(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("gradient/")}


def without_gradients(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in gradients_of(line)} for line in lines]


def test_a_run_learns_the_same_and_resumes_the_same(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit by bit: without the option, with it, and with it in a run that is stopped within a window of the log."""
    changes, folders = (CHEAPEST, NO_EVALUATION, RUN, OLD_QUEUE), [tmp_path / name for name in "abc"]
    with caplog.at_level(logging.WARNING):
        run(prepared, folders[0], *changes)
    assert "the queue is old for its teacher: the oldest entry is 2 steps old" in caplog.text
    run(prepared, folders[1], *changes, WEIGHED)
    with monkeypatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 7 else None)
        assert run(prepared, folders[2], *changes, WEIGHED).step == 7
    assert run(prepared, folders[2], *changes, WEIGHED).finished
    states, logs = [saved_state(folder) for folder in folders], [log_lines(folder) for folder in folders]
    for other in (1, 2):
        assert_bitwise_equal(states[other], states[0])
        assert without_gradients(logs[other]) == logs[0]
    assert logs[1] == logs[2]
    found = [gradients_of(line) for line in logs[1] if "loss" in line]
    assert [len(values) for values in found] == [8, 8]
    assert not gradients_of(logs[0][0])
    assert all(math.isfinite(value) for values in found for value in values.values())
    # Means over the states that were weighed in each window: of a single term its own norm and that of the sum.
    assert found[0].keys() == {
        f"gradient/{term}/{part}"
        for term in ("tgd", "loss")
        for part in ("image_features", "text_features", "text_tower", "all")
    }
    assert found[0]["gradient/tgd/all"] == found[0]["gradient/loss/all"] > 0
