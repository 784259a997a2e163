"""The queue against a Python list: ring order, weights at any age, validity, batches that do not divide the length."""

import jax
import numpy as np
import pytest

from r2d2_jax.tasks.queue import Queue, empty_queue, enqueue

LENGTH, EMBED = 11, 3
push = jax.jit(enqueue)


def rows(step: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    embeds = rng.normal(size=(2, count, EMBED)).astype(np.float32)
    return embeds[0], embeds[1], rng.integers(0, 2**32, (count, 2), dtype=np.uint32)


def entries(queue: Queue) -> dict[tuple[int, int], tuple[bytes, bytes, int]]:
    """What the valid slots hold, by image id."""
    return {
        tuple(queue.image_id[slot].tolist()): (
            np.asarray(queue.image_embed[slot]).tobytes(),
            np.asarray(queue.text_embed[slot]).tobytes(),
            int(queue.age[slot]),
        )
        for slot in np.flatnonzero(queue.valid)
    }


@pytest.mark.parametrize("sizes", [[4] * 9, [11] * 3, [1] * 13, [10, 10, 10], [3, 7, 2, 11, 5, 1, 6]])
def test_ring_equals_a_list(sizes: list[int]) -> None:
    """The last `LENGTH` rows are there, each with the number of steps since it came; nothing else is."""
    queue, came = empty_queue(LENGTH, EMBED), []
    for step, size in enumerate(sizes):
        image, text, image_id = rows(step, size)
        queue = push(queue, image, text, image_id)
        came += [(image[i], text[i], tuple(image_id[i].tolist()), step) for i in range(size)]
        expected = {i: (a.tobytes(), t.tobytes(), step - when) for a, t, i, when in came[-LENGTH:]}
        assert entries(queue) == expected
        assert int(queue.head) == len(came) % LENGTH
        assert int(queue.valid.sum()) == min(len(came), LENGTH)


def test_identities_of_texts_travel_with_them() -> None:
    """A queue of eleven after batches of four: slot i holds row i % 11 of all rows, the newest winning."""
    queue, ids = empty_queue(LENGTH, EMBED, text_ids=True), np.zeros((LENGTH, 2), np.uint32)
    for step in range(5):
        image, text, image_id = rows(step, 4)
        text_id = image_id[:, ::-1]
        queue = push(queue, image, text, image_id, text_id)
        ids[(4 * step + np.arange(4)) % LENGTH] = text_id
        np.testing.assert_array_equal(queue.text_id, ids)
    assert push(empty_queue(LENGTH, EMBED), *rows(0, 4), rows(0, 4)[2]).text_id is None


def test_shapes_and_types_never_change() -> None:
    before = empty_queue(LENGTH, EMBED)
    after = push(before, *rows(0, 4))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert not before.valid.any()


def test_weight_is_multiplied_by_the_decay_each_step() -> None:
    queue = push(empty_queue(LENGTH, EMBED), *rows(0, 2))
    weights = []
    for step in range(1, 5):
        weights.append(float(queue.weight(0.99)[0]))
        queue = push(queue, *rows(step, 2))
    np.testing.assert_allclose(weights, [1, 0.99, 0.9801, 0.970299], rtol=3e-7)


def test_weight_is_exact_at_any_age() -> None:
    """decay^age of float64, rounded once or twice; a product of as many float32 factors would be off by 1e-5."""
    age = np.array([0, 1, 2, 17, 100, 999, 4096])
    queue = empty_queue(len(age), EMBED).replace(age=age.astype(np.int32))
    weight = np.asarray(queue.weight(0.99))
    assert weight.dtype == np.float32
    assert weight[0] == 1
    np.testing.assert_allclose(weight, np.power(np.float32(0.99), age.astype(np.float32)), rtol=2e-6)
    np.testing.assert_allclose(weight, np.float64(np.float32(0.99)) ** age, rtol=2e-6)


def test_a_batch_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="a batch of 12 does not fit into a queue of 11"):
        push(empty_queue(LENGTH, EMBED), *rows(0, 12))
