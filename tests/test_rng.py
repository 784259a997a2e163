"""Every draw is a function of the run's key, the stream's name and the step, and of nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from r2d2_jax.rng import stream


def bits(seed: int, name: str, step: int) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(stream(jax.random.key(seed), name, step))).tolist())


def test_the_same_arguments_give_the_same_key() -> None:
    assert bits(3, "mask", 17) == bits(3, "mask", 17)


def test_another_seed_name_or_step_gives_another_key() -> None:
    keys = [bits(*which) for which in itertools.product((0, 1), ("mask", "hard_negative", ""), (0, 1, 2, 100_000))]
    assert len(set(keys)) == len(keys)


def test_name_and_step_do_not_stand_in_for_each_other() -> None:
    assert bits(0, "a", 1) != bits(0, "b", 0)
    assert bits(0, "a", 1) != bits(1, "a", 0)


def test_a_traced_step_gives_the_key_of_the_number() -> None:
    traced = jax.jit(lambda step: jax.random.key_data(stream(jax.random.key(0), "mask", step)))
    np.testing.assert_array_equal(traced(jnp.int32(5)), bits(0, "mask", 5))


def test_the_keys_are_those_of_every_other_run() -> None:
    """Pinned: a change here, or a name hashed differently in every process, would make a resumed run draw anew."""
    assert bits(0, "mask", 0) == (2428151207, 3615838089)
    assert bits(7, "hard_negative", 1234) == (2911831700, 1266923285)


def test_neighbouring_steps_draw_independent_numbers() -> None:
    draws = np.stack([jax.random.normal(stream(jax.random.key(0), "mask", step), (2000,)) for step in range(3)])
    correlation = np.corrcoef(draws)
    assert np.abs(correlation - np.eye(3)).max() < 0.1
    np.testing.assert_allclose(draws.std(axis=1), 1, atol=0.1)
