"""Naive oracles: the equations of the package once more, in NumPy float64, with loops, for sizes of a few rows.

They are written from the equations and share no code with the package. `b`, `m`, `e`, ... are the axes of
`r2d2_jax.arrays`; a tree of parameters is a nested dict of arrays with the names of the package.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Tree = dict[str, Any]


# --- softmax and gradients ------------------------------------------------------------------------


def softmax(row: np.ndarray) -> np.ndarray:
    """p_j = exp(x_j) / sum_k exp(x_k) of one row."""
    powers = [math.exp(float(x) - float(max(row))) for x in row]
    return np.array([power / sum(powers) for power in powers])


def log_softmax(row: np.ndarray) -> np.ndarray:
    """log p_j = x_j - log sum_k exp(x_k) of one row."""
    top = float(max(row))
    return np.array([float(x) - top - math.log(sum(math.exp(float(y) - top) for y in row)) for x in row])


def numerical_gradient(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences: df/dx_i = (f(x + s e_i) - f(x - s e_i)) / 2s."""
    at = np.asarray(at, np.float64)
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


# --- pre-ranking ----------------------------------------------------------------------------------


def gcpr(image_embed: np.ndarray, text_embed: np.ndarray, positive: np.ndarray, temperature: float) -> float:
    """GCPR: (L_i2t + L_t2i) / 2 with

    L_i2t = -1/b sum_i 1/|P_i| sum_{j in P_i} log( exp(I_i.T_j / tau) / sum_k exp(I_i.T_k / tau) ),

    P_i the texts that show image i; L_t2i the same with images and texts exchanged.
    """
    image_embed, text_embed, b = np.float64(image_embed), np.float64(text_embed), len(image_embed)
    total = 0.0
    for rows, columns in ((image_embed, text_embed), (text_embed, image_embed)):
        for i in range(b):
            log_p = log_softmax(np.array([np.dot(rows[i], columns[j]) / temperature for j in range(b)]))
            matching = [j for j in range(b) if positive[i, j]]
            total -= sum(log_p[j] for j in matching) / len(matching) / b
    return total / 2


def soft_target(
    teacher_row: np.ndarray,
    keys: np.ndarray,
    positive_row: np.ndarray,
    valid: np.ndarray,
    temperature: float,
    share: float,
) -> np.ndarray:
    """y_j = alpha softmax_j(teacher_row.key / tau) + (1 - alpha) [j in P] / |P|, all over valid keys; 0 elsewhere."""
    teacher_row, keys = np.float64(teacher_row), np.float64(keys)
    live = [j for j in range(len(keys)) if valid[j]]
    teacher = softmax(np.array([np.dot(teacher_row, keys[j]) / temperature for j in live]))
    matching = [j for j in live if positive_row[j]]
    target = np.zeros(len(keys))
    for p, j in zip(teacher, live, strict=True):
        target[j] = share * p + (1 - share) * (j in matching) / len(matching)
    return target


def tgd(
    image_embed: np.ndarray,
    text_embed: np.ndarray,
    key_image: np.ndarray,
    key_text: np.ndarray,
    weight: np.ndarray,
    valid: np.ndarray,
    positive: np.ndarray,
    temperature: float,
    share: float,
    teacher_temperature: float | None = None,
) -> float:
    """TgD: mean of both directions of -1/b sum_i sum_j w_j y_ij log_softmax_j(s_ij / tau), j over the valid keys.

    i2t compares student images with the teacher's texts (batch, then queue), t2i student texts with its images; the
    teacher's row i is key i of the row's own modality. `teacher_temperature` (default tau) tells the tau of the target
    apart, because the target has no gradient.
    """
    image_embed, text_embed, b = np.float64(image_embed), np.float64(text_embed), len(image_embed)
    key_image, key_text = np.float64(key_image), np.float64(key_text)
    live = [j for j in range(len(key_image)) if valid[j]]
    total = 0.0
    for rows, teacher_rows, keys in ((image_embed, key_image, key_text), (text_embed, key_text, key_image)):
        for i in range(b):
            target = soft_target(teacher_rows[i], keys, positive[i], valid, teacher_temperature or temperature, share)
            log_p = log_softmax(np.array([np.dot(rows[i], keys[j]) / temperature for j in live]))
            total -= sum(weight[j] * target[j] * log_p[place] for place, j in enumerate(live)) / b
    return total / 2


# --- ranking --------------------------------------------------------------------------------------


def negative_weights(logits: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """W_ij = exp(l_ij) / sum_{k not in P_i} exp(l_ik) for j not in P_i, else 0: rows sum to one."""
    weights = np.zeros(logits.shape)
    for i in range(len(logits)):
        others = [j for j in range(logits.shape[1]) if not positive[i, j]]
        weights[i, others] = softmax(logits[i, others])
    return weights


def match_loss(logits: np.ndarray, label: np.ndarray, counts: np.ndarray, class_weights: tuple[float, float]) -> float:
    """FGR: 1/c sum_c ( sum_i v_{y_i} * -log_softmax(l_ic)_{y_i} / sum_i v_{y_i} ), i over the rows that count."""
    encoders = logits.shape[1]
    loss = 0.0
    for c in range(encoders):
        numerator = denominator = 0.0
        for i in range(len(logits)):
            if counts[i]:
                answer = 1 if label[i] else 0
                numerator -= class_weights[answer] * log_softmax(logits[i, c])[answer]
                denominator += class_weights[answer]
        loss += numerator / denominator / encoders
    return loss


def softmax_twice_loss(logits: np.ndarray, label: np.ndarray) -> float:
    """mean_i( -log_softmax( 1/c sum_c softmax(l_ic) )_{y_i} )."""
    means = [sum(map(softmax, row)) / len(row) for row in logits]
    return float(np.mean([-log_softmax(mean)[int(answer)] for mean, answer in zip(means, label, strict=True)]))


def match_probability(logits: np.ndarray) -> np.ndarray:
    """1/c sum_c softmax(l_ic)_match."""
    return np.array([sum(softmax(encoder)[1] for encoder in row) / len(row) for row in logits])


# --- masked language modelling and feature-guided distillation ------------------------------------


def masked_count(available: int, share: Fraction) -> int:
    """max(1, round(c * share)), halves upwards; 0 for a text without maskable tokens."""
    return max(1, math.floor(available * share + Fraction(1, 2))) if available else 0


def masked_words(sizes: Sequence[int], share: Fraction) -> dict[frozenset[int], Fraction]:
    """How likely each set of words is masked whose words have so many tokens: every order of them is gone through.

    The first of an order is masked; each later one if the tokens masked with it are no more than `masked_count`.
    """
    likely: dict[frozenset[int], Fraction] = {}
    for order in itertools.permutations(range(len(sizes))):
        masked = list(order[:1])
        for word in order[1:]:
            if sum(sizes[other] for other in masked) + sizes[word] <= masked_count(sum(sizes), share):
                masked.append(word)
        likely[frozenset(masked)] = likely.get(frozenset(masked), Fraction(0)) + Fraction(1, math.factorial(len(sizes)))
    return likely


def masked_lm(logits: np.ndarray, label: np.ndarray, masked: np.ndarray) -> float:
    """-1/|M| sum_{(i, s) in M} log_softmax(l_is)_{label_is}; 0 if M is empty."""
    terms = [
        -log_softmax(logits[i, s])[label[i, s]]
        for i in range(len(label))
        for s in range(label.shape[1])
        if masked[i, s]
    ]
    return sum(terms) / len(terms) if terms else 0.0


def normed_feature(feature: np.ndarray) -> np.ndarray:
    feature = np.asarray(feature, np.float64)
    return (feature - feature.mean(axis=1, keepdims=True)) / feature.std(axis=1, keepdims=True)


def fgd(
    student: np.ndarray, teacher: np.ndarray, mean: np.ndarray, student_temperature: float, teacher_temperature: float
) -> float:
    """-1/b sum_i sum_c softmax_c((f_t - mu) / tau_t) log_softmax_c(f_s / tau_s)."""
    total = 0.0
    for f_s, f_t in zip(student, teacher, strict=True):
        target = softmax((np.float64(f_t) - mean) / teacher_temperature)
        log_p = log_softmax(np.float64(f_s) / student_temperature)
        total -= sum(y * x for y, x in zip(target, log_p, strict=True))
    return total / len(student)


def feature_mean(mean: np.ndarray, teacher: np.ndarray, step: int, momentum: float) -> np.ndarray:
    """mu' = g mu + (1 - g) 1/b sum_i f_i, with g = min(momentum, step / (step + 1))."""
    kept = min(momentum, step / (step + 1))
    return kept * np.float64(mean) + (1 - kept) * sum(np.float64(row) for row in teacher) / len(teacher)


# --- layers ---------------------------------------------------------------------------------------


def random_parameters(shapes: Tree, seed: int, spread: float = 0.3) -> Tree:
    """Random float32 arrays in the shapes of a parameter tree, so that no bias is zero and no scale one."""
    rng = np.random.default_rng(seed)

    def fill(tree: Tree, where: str) -> Tree:
        return {
            name: fill(leaf, name)
            if isinstance(leaf, dict)
            else (rng.normal(size=leaf.shape) * spread + (name == "scale")).astype(np.float32)
            for name, leaf in sorted(tree.items())
        }

    return fill(shapes, "")


def layer_of(stacked: Tree, index: int) -> Tree:
    """The parameters of layer `index` out of a tree whose leaves have a leading layer axis."""
    return {n: layer_of(v, index) if isinstance(v, dict) else v[index] for n, v in stacked.items()}


def dense(parameters: Tree, x: np.ndarray) -> np.ndarray:
    """x W + c, in float64."""
    result = np.asarray(x, np.float64) @ np.asarray(parameters["kernel"], np.float64)
    return result + np.asarray(parameters["bias"], np.float64) if "bias" in parameters else result


def layer_norm(parameters: Tree, x: np.ndarray, epsilon: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, two passes, biased variance."""
    x = np.asarray(x, np.float64)
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape[:-1]):
        token = x[index]
        centred = token - sum(token) / len(token)
        variance = sum(centred**2) / len(token)
        result[index] = centred / math.sqrt(variance + epsilon)
    return result * np.asarray(parameters["norm"]["scale"], np.float64) + parameters["norm"]["bias"]


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-1.702 x))."""
    return x / (1 + np.exp(-1.702 * x))


def erf_gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x / sqrt 2))."""
    return np.vectorize(lambda y: y / 2 * (1 + math.erf(y / math.sqrt(2))))(x)


def attention(
    parameters: Tree, queries: np.ndarray, context: np.ndarray, mask: np.ndarray | None, heads: int
) -> np.ndarray:
    """Per head: softmax_c(q_i.k_c / sqrt(d / h)) v_c over the context tokens whose mask is True; heads side by side."""
    query, key, value = (
        dense(parameters[name], tokens) for name, tokens in (("query", queries), ("key", context), ("value", context))
    )
    size = query.shape[-1] // heads
    mixed = np.zeros_like(query)
    for row in range(len(query)):
        seen = [c for c in range(context.shape[1]) if mask is None or mask[row, c]]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(query.shape[1]):
                shares = softmax(np.array([query[row, i, part] @ key[row, c, part] for c in seen]) / math.sqrt(size))
                mixed[row, i, part] = sum(p * value[row, c, part] for p, c in zip(shares, seen, strict=True))
    return dense(parameters["out"], mixed)


def mlp(parameters: Tree, x: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """down(activation(up(x)))."""
    return dense(parameters["down"], activation(dense(parameters["up"], x)))


def vit_layer(parameters: Tree, hidden: np.ndarray, heads: int) -> np.ndarray:
    """Pre-norm: h = h + attention(norm(h)), then h + mlp(norm(h)); quick-GELU, epsilon 1e-5."""
    normed = layer_norm(parameters["attention_norm"], hidden, 1e-5)
    hidden = hidden + attention(parameters["attention"], normed, normed, None, heads)
    return hidden + mlp(parameters["mlp"], layer_norm(parameters["mlp_norm"], hidden, 1e-5), quick_gelu)


def bert_layer(parameters: Tree, hidden: np.ndarray, mask: np.ndarray, heads: int) -> np.ndarray:
    """Post-norm: h = norm(h + attention(h)), then norm(h + mlp(h)); erf-GELU, epsilon 1e-12."""
    mixed = attention(parameters["attention"], hidden, hidden, mask, heads)
    hidden = layer_norm(parameters["attention_norm"], hidden + mixed, 1e-12)
    return layer_norm(parameters["mlp_norm"], hidden + mlp(parameters["mlp"], hidden, erf_gelu), 1e-12)


def cross_layer(
    parameters: Tree,
    hidden: np.ndarray,
    mask: np.ndarray | None,
    context: np.ndarray,
    context_mask: np.ndarray | None,
    heads: int,
) -> np.ndarray:
    """Post-norm: self-attention, cross-attention over the context, MLP; erf-GELU, epsilon 1e-12."""
    mixed = attention(parameters["self_attention"], hidden, hidden, mask, heads)
    hidden = layer_norm(parameters["self_attention_norm"], hidden + mixed, 1e-12)
    mixed = attention(parameters["cross_attention"], hidden, context, context_mask, heads)
    hidden = layer_norm(parameters["cross_attention_norm"], hidden + mixed, 1e-12)
    return layer_norm(parameters["mlp_norm"], hidden + mlp(parameters["mlp"], hidden, erf_gelu), 1e-12)


# --- stages ---------------------------------------------------------------------------------------


def patches(images: np.ndarray, size: int) -> np.ndarray:
    """Patch (r, c), row by row; its pixels by row, column and channel."""
    b, height, width, channels = images.shape
    result = np.zeros((b, (height // size) * (width // size), size * size * channels), images.dtype)
    for i in range(b):
        for r in range(height // size):
            for c in range(width // size):
                for y in range(size):
                    for x in range(size):
                        for channel in range(channels):
                            pixel = images[i, r * size + y, c * size + x, channel]
                            result[i, r * (width // size) + c, (y * size + x) * channels + channel] = pixel
    return result


def image_encoder(parameters: Tree, images: np.ndarray, patch_size: int, layers: int, heads: int) -> np.ndarray:
    """norm([class; patches W] + positions) through the ViT layers, without a last norm."""
    embedded = dense(parameters["patch_embedding"], patches(images, patch_size))
    cls = np.broadcast_to(parameters["class_embedding"], (len(images), 1, embedded.shape[-1]))
    hidden = np.concatenate([cls, embedded], axis=1) + parameters["position_embedding"]
    hidden = layer_norm(parameters["pre_norm"], hidden, 1e-5)
    for index in range(layers):
        hidden = vit_layer(layer_of(parameters["layers"], index), hidden, heads)
    return hidden


def text_encoder(parameters: Tree, input_ids: np.ndarray, mask: np.ndarray, layers: int, heads: int) -> np.ndarray:
    """norm(word + position + type 0) through the BERT layers."""
    words, positions, types = (
        np.asarray(parameters[f"{name}_embedding"]["embedding"], np.float64) for name in ("word", "position", "type")
    )
    hidden = np.array([[words[t] + positions[place] + types[0] for place, t in enumerate(row)] for row in input_ids])
    hidden = layer_norm(parameters["embedding_norm"], hidden, 1e-12)
    for index in range(layers):
        hidden = bert_layer(layer_of(parameters["layers"], index), hidden, mask, heads)
    return hidden


def cross_encoder(
    parameters: Tree,
    tokens: np.ndarray,
    mask: np.ndarray | None,
    context: np.ndarray,
    context_mask: np.ndarray | None,
    layers: int,
    heads: int,
) -> np.ndarray:
    """The cross layers, the last of which is stored apart."""
    every = [layer_of(parameters["layers"], index) for index in range(layers - 1)] + [parameters["last_layer"]]
    for layer in every:
        tokens = cross_layer(layer, tokens, mask, context, context_mask, heads)
    return tokens


def masked_lm_head(parameters: Tree, tokens: np.ndarray, word_embedding: np.ndarray) -> np.ndarray:
    """norm(gelu(x W + c)) E^T + bias, E the word embedding."""
    hidden = layer_norm(parameters["transform_norm"], erf_gelu(dense(parameters["transform"], tokens)), 1e-12)
    return hidden @ np.asarray(word_embedding, np.float64).T + parameters["bias"]


def unit(feature: np.ndarray) -> np.ndarray:
    """f / |f| of every row."""
    return np.array([row / math.sqrt(sum(row**2)) for row in np.asarray(feature, np.float64)])
