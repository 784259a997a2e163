"""Schedule, AdamW and clipping against NumPy, and what is not decayed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_model import small_config

from r2d2_jax.config.run import OptimizerConfig
from r2d2_jax.errors import UserError
from r2d2_jax.models.r2d2 import init_params
from r2d2_jax.tasks import build_task
from r2d2_jax.train.optimizer import check_rates, decayed, learning_rate_schedule, make_optimizer


def expected_rate(step: int, peak: float, final: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * step / warmup
    done = min(1.0, (step - warmup) / (total - warmup))
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedule(warmup: int) -> None:
    config = OptimizerConfig(learning_rate=0.3, final_learning_rate=0.01, warmup_steps=warmup)
    schedule = learning_rate_schedule(config, 50)
    for step in (0, 1, 5, 9, 10, 11, 30, 49, 50, 80):
        assert float(schedule(step)) == pytest.approx(expected_rate(step, 0.3, 0.01, warmup, 50), rel=1e-5), step


@pytest.mark.parametrize("total", [1, 2, 5])
def test_warmup_longer_than_the_run_still_learns(total: int) -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=0.3, warmup_steps=100), total)
    rates = [float(schedule(step)) for step in range(total)]
    assert all(math.isfinite(rate) and 0 <= rate <= 0.3 + 1e-6 for rate in rates)
    assert max(rates) == pytest.approx(0.3)


@pytest.mark.parametrize(("steps", "share", "warmup"), [(100, 0.1, 5), (3, 0.1, 3), (100, 0.01, 0), (100, 1.0, 49)])
def test_a_warm_up_takes_no_more_than_its_share(steps: int, share: float, warmup: int) -> None:
    config = OptimizerConfig(learning_rate=0.3, warmup_steps=steps, warmup_share=share)
    schedule = learning_rate_schedule(config, 50)
    for step in (0, 1, 3, 5, 20, 48, 49):
        assert float(schedule(step)) == pytest.approx(expected_rate(step, 0.3, 0.0, warmup, 50), rel=1e-4), step


def test_what_is_decayed() -> None:
    """Matrices, embedding tables and the image tower's tokens; no bias, no norm, not the temperature."""
    model = build_task(small_config()).model
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(decayed(params))[0]
    names = {True: set(), False: set()}
    for path, value in leaves:
        names[value].add(path[-1].key)
    assert names == {
        True: {"kernel", "embedding", "class_embedding", "position_embedding"},
        False: {"bias", "scale", "temperature"},
    }


def test_adamw_with_clipping_equals_numpy() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.02, beta1=0.8, beta2=0.9, epsilon=1e-3, clip_norm=0.5)
    optimizer = make_optimizer(config, 4).transformation
    rate = learning_rate_schedule(config, 4)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.ones(2, np.float32)}
    state, ours = optimizer.init(params), params
    theirs = {name: np.float64(value) for name, value in params.items()}
    first, second = ({name: np.zeros(value.shape) for name, value in params.items()} for _ in range(2))
    for step in range(4):
        scale = (3.0, 0.01)[step % 2]  # clipped and not clipped
        gradient = {name: (scale * rng.normal(size=value.shape)).astype(np.float32) for name, value in params.items()}
        updates, state = optimizer.update(gradient, state, ours)
        ours = jax.tree.map(np.add, ours, updates)
        norm = math.sqrt(sum((np.float64(g) ** 2).sum() for g in gradient.values()))
        for name in theirs:
            g = gradient[name] * min(1.0, 0.5 / norm)
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.9 * second[name] + 0.1 * g**2
            m, v = first[name] / (1 - 0.8 ** (step + 1)), second[name] / (1 - 0.9 ** (step + 1))
            decay = 0.02 * theirs[name] if name == "kernel" else 0
            theirs[name] = theirs[name] - float(rate(step)) * (m / (np.sqrt(v) + 1e-3) + decay)
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=1e-6)


def test_a_first_moment_in_bfloat16_takes_nearly_the_same_steps() -> None:
    """Its rounding is that of bfloat16, 2^-9 of a value; the second moment is that of float32, bit by bit."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(40, 20)).astype(np.float32)}
    adams = {
        dtype: make_optimizer(OptimizerConfig(learning_rate=0.1, first_moment_dtype=dtype), 100).transformation
        for dtype in ("float32", "bfloat16")
    }
    states = {dtype: adam.init(params) for dtype, adam in adams.items()}
    for _ in range(20):
        gradient = {"kernel": rng.normal(1.0, 1.0, size=(40, 20)).astype(np.float32)}
        steps = {}
        for dtype, adam in adams.items():
            updates, states[dtype] = adam.update(gradient, states[dtype], params)
            steps[dtype] = np.asarray(updates["kernel"])
    apart = np.linalg.norm(steps["bfloat16"] - steps["float32"]) / np.linalg.norm(steps["float32"])
    assert 0 < apart < 2**-8
    plain, rounded = (optax.tree.get(states[dtype], "mu")["kernel"] for dtype in adams)
    assert (plain.dtype, rounded.dtype) == (np.float32, jnp.bfloat16)
    np.testing.assert_array_equal(*(optax.tree.get(states[dtype], "nu")["kernel"] for dtype in adams))


def test_a_rate_for_a_group_of_leaves_multiplies_its_steps() -> None:
    """The first pattern that matches counts; what none matches, and a run without any, is not changed by a bit."""
    rng = np.random.default_rng(0)

    def draw() -> dict[str, dict[str, np.ndarray]]:
        group = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
        return {"a": group, "b": {"bias": rng.normal(size=2)}}

    params, gradients = (jax.tree.map(np.float32, draw()) for _ in range(2))
    updates = []
    for rates in ((), (("b/bias", 0.5), ("bias", 2.0))):
        optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, rates=rates), 4).transformation
        updates.append(optimizer.update(gradients, optimizer.init(params), params)[0])
    plain, scaled = updates
    np.testing.assert_array_equal(scaled["a"]["kernel"], plain["a"]["kernel"])
    np.testing.assert_array_equal(scaled["a"]["bias"], 2 * plain["a"]["bias"])
    np.testing.assert_array_equal(scaled["b"]["bias"], 0.5 * plain["b"]["bias"])


def test_a_rate_for_nothing_is_refused() -> None:
    params = {"text_encoder": {"bias": np.zeros(2)}}
    check_rates(OptimizerConfig(learning_rate=0.1, rates=(("text_encoder/bias|nothing", 2.0),)), params)
    for rates, pattern in (((("ias", 2.0),), "ias"), (((".*", 2.0), ("bias", 0.5)), "bias")):
        message = f"optimizer.rates has a factor for '{pattern}', which is the end of no trainable parameter's path"
        with pytest.raises(UserError, match=message):
            check_rates(OptimizerConfig(learning_rate=0.1, rates=rates), params)


def test_a_warm_up_may_begin_above_zero() -> None:
    config = OptimizerConfig(learning_rate=1e-5, initial_learning_rate=1e-6, warmup_steps=500)
    schedule = learning_rate_schedule(config, 2000)
    for step, rate in ((0, 1e-6), (250, 5.5e-6), (500, 1e-5), (1250, 5e-6), (2000, 0.0)):
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-11)


def test_a_triangular_schedule_is_torch_s() -> None:
    """Up in 7 steps, down in 7, and again, to the end of the run."""
    torch = pytest.importorskip("torch")
    low, high = 0.05 * 3e-6, 3e-6
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=high)
    theirs = torch.optim.lr_scheduler.CyclicLR(optimizer, low, high, step_size_up=7, mode="triangular")
    config = OptimizerConfig(high, low, warmup_steps=7, schedule="triangular")
    ours = learning_rate_schedule(config, 20)
    for step in range(40):
        assert float(ours(step)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5), step
        assert float(ours(np.int32(step))) == float(ours(step))
        optimizer.step()
        theirs.step()
