"""Which tokens are masked, how many, how evenly; and the loss on them."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.losses.masked_lm import (
    MaskedText,
    label_is_best,
    label_log_probability,
    mask_slots,
    mask_tokens,
    mask_words,
    masked_lm,
    word_slots,
)

PAD, CLS, SEP, MASK = 0, 101, 102, 103
compiled_mask = jax.jit(mask_tokens, static_argnums=(3, 4))
compiled_words = jax.jit(mask_words, static_argnums=(4, 5))
words_many = jax.jit(jax.vmap(mask_words, in_axes=(0, None, None, None, None, None)), static_argnums=(4, 5))
mask_many = jax.jit(jax.vmap(mask_tokens, in_axes=(0, None, None, None, None)), static_argnums=(3, 4))


def loss_from_logits(logits: jax.Array, label: jax.Array, masked: jax.Array) -> jax.Array:
    return masked_lm(label_log_probability(logits, label), masked)


evaluate = jax.jit(jax.value_and_grad(loss_from_logits))


def texts(lengths: list[int], width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts of CLS, so many ordinary tokens, SEP and padding; and which tokens may be masked."""
    rng = np.random.default_rng(seed)
    input_ids = np.full((len(lengths), width), PAD, np.int32)
    maskable = np.zeros((len(lengths), width), bool)
    for row, length in enumerate(lengths):
        input_ids[row, : length + 2] = [CLS, *rng.integers(200, 9000, length), SEP]
        maskable[row, 1 : length + 1] = True
    return input_ids, maskable


def mask(input_ids: np.ndarray, maskable: np.ndarray, seed: int = 0, share: float = 0.15) -> MaskedText:
    return compiled_mask(jax.random.key(seed), jnp.array(input_ids), jnp.array(maskable), MASK, share)


DRAWS = 2000


def draw(input_ids: np.ndarray, maskable: np.ndarray, share: float = 0.15) -> MaskedText:
    """Many draws, of five texts of width ten so that one compilation serves all tests."""
    keys = jax.random.split(jax.random.key(1), DRAWS)
    return mask_many(keys, jnp.array(input_ids), jnp.array(maskable), MASK, share)


def test_fifteen_per_cent_of_every_length_and_at_least_one() -> None:
    input_ids, maskable = texts(list(range(63)), 64)
    text = mask(input_ids, maskable)
    expected = [oracles.masked_count(length, Fraction(15, 100)) for length in range(63)]
    assert expected[:5] == [0, 1, 1, 1, 1]
    assert (expected[10], expected[62]) == (2, 9)
    np.testing.assert_array_equal(np.sum(np.asarray(text.masked), axis=1), expected)
    np.testing.assert_array_equal(np.sum(np.asarray(text.input_ids) == MASK, axis=1), expected)


@pytest.mark.parametrize(("share", "exact"), [(0.15, Fraction(15, 100)), (0.5, Fraction(1, 2))])
@pytest.mark.parametrize("width", [3, 12, 39])
def test_a_text_that_fills_its_row_has_enough_slots(width: int, share: float, exact: Fraction) -> None:
    input_ids, maskable = texts([width - 2], width)
    text = mask(input_ids, maskable, share=share)
    assert text.position.shape == text.label.shape == text.masked.shape == (1, mask_slots(width, share))
    assert np.sum(text.masked) == np.sum(np.asarray(text.input_ids) == MASK) == oracles.masked_count(width - 2, exact)


def test_slots_of_the_published_length() -> None:
    assert mask_slots(64, 0.15) == 9
    assert mask_slots(3, 0.15) == 1


def test_cls_sep_and_padding_are_never_masked() -> None:
    input_ids, maskable = texts([1, 2, 5, 8, 0], 10)
    hidden = np.asarray(draw(input_ids, maskable).input_ids)
    assert (hidden[:, ~maskable] == input_ids[~maskable]).all()
    assert ((hidden == MASK) | (hidden == input_ids)).all()


def test_every_maskable_token_is_drawn_equally_often() -> None:
    input_ids, maskable = texts([6, 8, 8, 2, 1], 10)
    maskable[1, 3:7] = False  # holes, as for an unknown token
    hidden = np.asarray(draw(input_ids, maskable).input_ids)
    for row in range(5):
        observed = np.sum(hidden[:, row] == MASK, axis=0)[maskable[row]]
        expected = DRAWS / maskable[row].sum()  # one token each
        assert observed.sum() == DRAWS
        # At most 7 degrees of freedom: a chance below 1e-3 for an even draw.
        assert np.sum((observed - expected) ** 2) / expected < 25, observed


def test_several_tokens_are_drawn_without_replacement_and_equally_often() -> None:
    input_ids, maskable = texts([8] * 5, 10)
    hidden = np.asarray(draw(input_ids, maskable, share=0.5).input_ids)
    counts = np.sum(hidden == MASK, axis=0)[:, 1:9]
    np.testing.assert_array_equal(counts.sum(axis=1), DRAWS * 4)
    np.testing.assert_allclose(counts, DRAWS / 2, atol=5 * math.sqrt(DRAWS * 0.25))  # five deviations


def test_labels_put_back_restore_the_text() -> None:
    input_ids, maskable = texts([0, 1, 4, 12, 20], 22)
    text = mask(input_ids, maskable, share=0.3)
    restored = np.asarray(text.input_ids).copy()
    for row in range(len(input_ids)):
        for slot in range(text.position.shape[1]):
            position, label = int(text.position[row, slot]), int(text.label[row, slot])
            assert label == input_ids[row, position]
            if text.masked[row, slot]:
                assert maskable[row, position]
                assert restored[row, position] == MASK
                restored[row, position] = label
    np.testing.assert_array_equal(restored, input_ids)


def test_a_text_without_maskable_tokens_stays_as_it_is() -> None:
    input_ids, maskable = texts([0, 0], 12)
    text = mask(input_ids, maskable)
    np.testing.assert_array_equal(text.input_ids, input_ids)
    assert not np.any(text.masked)


def test_the_mask_is_a_function_of_the_key() -> None:
    input_ids, maskable = texts([20, 20], 22)
    first, again, other = (np.asarray(mask(input_ids, maskable, seed).input_ids) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert ((first[0] == MASK) != (first[1] == MASK)).any(), "texts must not share a mask"


# --- whole words ------------------------------------------------------------------------------------------------------

SIZES = [[1, 2, 3, 1, 2], [4, 1, 1], [2, 2, 2, 2], [1, 1, 1, 1, 1, 1], [12], [1], [], [9, 1, 2]]
WIDTH = 14


def word_texts(sizes: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts whose words have so many tokens, which may be masked, and to which word each belongs."""
    input_ids, maskable = texts([sum(row) for row in sizes], width)
    word = np.zeros_like(input_ids)
    for number, row in enumerate(sizes):
        word[number, 1 : 1 + sum(row)] = np.repeat(np.arange(len(row)), row)
    return input_ids, maskable, word


def draw_words(share: float) -> list[list[frozenset[int]]]:
    """The words that each of many draws masks in each text of `SIZES`; all of their tokens, up to the slots."""
    input_ids, maskable, word = word_texts(SIZES, WIDTH)
    keys = jax.random.split(jax.random.key(3), DRAWS)
    hidden = np.asarray(words_many(keys, *map(jnp.array, (input_ids, maskable, word)), MASK, share).input_ids)
    drawn = []
    for row, sizes in enumerate(SIZES):
        drawn.append([frozenset(word[row][one == MASK].tolist()) for one in hidden[:, row]])
        for one, words in zip(hidden[:, row], drawn[-1], strict=True):
            assert (one == MASK).sum() == min(sum(sizes[number] for number in words), word_slots(WIDTH, share))
            assert (one[one != MASK] == input_ids[row][one != MASK]).all()
            assert (one[~maskable[row]] == input_ids[row][~maskable[row]]).all()
    return drawn


@pytest.mark.parametrize(("share", "exact"), [(0.15, Fraction(15, 100)), (0.4, Fraction(4, 10))])
def test_words_are_drawn_as_the_rule_says(share: float, exact: Fraction) -> None:
    """Every set of words as often as all orders of the words make it, within five deviations."""
    for sizes, drawn in zip(SIZES, draw_words(share), strict=True):
        likely = oracles.masked_words(sizes, exact)
        assert set(drawn) <= set(likely), sizes
        for words, probability in likely.items():
            deviation = math.sqrt(DRAWS * probability * (1 - probability))
            assert abs(drawn.count(words) - DRAWS * probability) <= 5 * deviation, (sizes, words)


def test_the_rule_by_hand() -> None:
    """Six tokens, two of them masked: the long word alone if it comes first, else both short ones."""
    assert oracles.masked_words([4, 1, 1], Fraction(4, 10)) == {
        frozenset([0]): Fraction(1, 3),
        frozenset([1, 2]): Fraction(2, 3),
    }
    assert oracles.masked_words([], Fraction(1, 2)) == {frozenset(): 1}


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_the_share_is_exceeded_by_a_single_word_only_and_every_text_has_one(share: float) -> None:
    rng = np.random.default_rng(5)
    counts = rng.multinomial(8, [0.4, 0.3, 0.2, 0.1], 40)
    sizes = [rng.permutation(np.repeat([1, 2, 3, 5], count)).tolist() for count in counts]
    input_ids, maskable, word = word_texts(sizes, 44)
    for seed in range(3):
        text = compiled_words(jax.random.key(seed), *map(jnp.array, (input_ids, maskable, word)), MASK, share)
        assert text.position.shape == text.label.shape == text.masked.shape == (40, word_slots(44, share))
        hidden = np.asarray(text.input_ids) == MASK
        np.testing.assert_array_equal(hidden.sum(axis=1), np.sum(np.asarray(text.masked), axis=1))
        for row in range(40):
            budget = oracles.masked_count(sum(sizes[row]), Fraction(str(share)))
            assert 1 <= hidden[row].sum() <= budget or len(set(word[row][hidden[row]])) == 1
            for slot in np.flatnonzero(text.masked[row]):
                assert text.label[row, slot] == input_ids[row, text.position[row, slot]]


def test_slots_of_whole_words() -> None:
    """Those of the share at the published length, and room for a word of eight in short texts."""
    assert [word_slots(length, 0.15) for length in (64, 16, 10, 5, 3)] == [9, 8, 8, 3, 1]


def test_a_word_of_more_tokens_than_slots_is_masked_in_front() -> None:
    input_ids, maskable, word = word_texts([[12]], WIDTH)
    text = compiled_words(jax.random.key(0), *map(jnp.array, (input_ids, maskable, word)), MASK, 0.15)
    np.testing.assert_array_equal(text.position, [np.arange(1, 9)])
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(text.input_ids)[0] == MASK), np.arange(1, 9))


def test_word_numbers_of_what_is_never_masked_are_not_read() -> None:
    input_ids, maskable, word = word_texts(SIZES, WIDTH)
    spoiled = np.where(maskable, word, np.resize([-7, 0, 99], word.shape)).astype(np.int32)
    one, other = (
        compiled_words(jax.random.key(2), *map(jnp.array, (input_ids, maskable, numbers)), MASK, 0.15)
        for numbers in (word, spoiled)
    )
    np.testing.assert_array_equal(one.input_ids, other.input_ids)


# --- the loss ---------------------------------------------------------------------------------------------------------


def lm_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(4, 3, 11)).astype(np.float32) * 4,
        rng.integers(0, 11, (4, 3)).astype(np.int32),
        np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool),
    )


def loss_of(logits: np.ndarray, label: np.ndarray, masked: np.ndarray) -> tuple[float, np.ndarray]:
    value, gradient = evaluate(jnp.array(logits), jnp.array(label), jnp.array(masked))
    return float(value), np.asarray(gradient)


def test_masked_lm_equals_oracle_and_its_gradient_is_zero_on_other_slots() -> None:
    logits, label, masked = lm_case()
    value, gradient = loss_of(logits, label, masked)
    np.testing.assert_allclose(value, oracles.masked_lm(logits, label, masked), rtol=1e-5)
    expected = oracles.numerical_gradient(lambda x: oracles.masked_lm(x, label, masked), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gradient[~masked], 0)


def test_masked_lm_weighs_tokens_not_texts_and_ignores_their_order() -> None:
    logits, label, masked = lm_case(2)
    order = np.array([3, 1, 0, 2])
    loss = loss_of(logits, label, masked)[0]
    np.testing.assert_allclose(loss_of(logits[order], label[order], masked[order])[0], loss, rtol=1e-6)
    flat = loss_of(logits[masked][None], label[masked][None], np.ones((1, 6), bool))[0]
    np.testing.assert_allclose(flat, loss, rtol=1e-6)


def test_slots_without_a_masked_token_do_not_matter() -> None:
    logits, label, masked = lm_case(3)
    loss = loss_of(logits, label, masked)[0]
    logits[~masked] = np.where(np.arange(11) == 0, 1e30, -1e30)
    label[~masked] = 5
    assert loss_of(logits, label, masked)[0] == loss


def test_masked_lm_reads_bfloat16_in_float32() -> None:
    logits, label, masked = lm_case(4)
    low = jnp.array(logits, jnp.bfloat16)
    value = jax.jit(loss_from_logits)(low, jnp.array(label), jnp.array(masked))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, oracles.masked_lm(np.asarray(low, np.float64), label, masked), rtol=1e-5)


def test_masked_lm_by_hand() -> None:
    uniform = loss_of(np.zeros((1, 2, 8), np.float32), np.array([[3, 7]]), np.array([[True, True]]))[0]
    np.testing.assert_allclose(uniform, math.log(8), rtol=1e-6)
    # Label at logit 1 among (1, 0): log(1 + 1/e); and at 0: that plus 1. Their mean.
    logits = np.array([[[1.0, 0.0], [1.0, 0.0]]], np.float32)
    value = loss_of(logits, np.array([[0, 1]]), np.array([[True, True]]))[0]
    np.testing.assert_allclose(value, 0.8132617, rtol=1e-6)


def test_masked_lm_of_nothing_is_zero_with_zero_gradient() -> None:
    logits, label, masked = lm_case(5)
    value, gradient = loss_of(logits, label, np.zeros_like(masked))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_which_labels_are_best() -> None:
    """Of random logits those that argmax finds; of equal ones and beside NaN none."""
    logits = np.random.default_rng(0).normal(size=(40, 3, 5)).astype(np.float32)
    label = np.random.default_rng(1).integers(0, 5, (40, 3))
    found = label_is_best(jnp.asarray(logits), jnp.asarray(label))
    np.testing.assert_array_equal(found, logits.argmax(axis=-1) == label)
    assert 0 < np.mean(found) < 1
    odd = jnp.asarray([[[2.0, 2.0], [jnp.nan, 0.0], [0.0, jnp.nan], [-jnp.inf, jnp.inf]]])
    assert label_is_best(odd, jnp.asarray([[0, 1, 1, 1]])).tolist() == [[False, False, False, True]]
