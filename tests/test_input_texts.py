"""Texts, ids, tokens and nothing at all, as people bring them to a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from random_models import VOCABULARY, random_model
from safetensors.numpy import save_file

import r2d2_jax
from r2d2_jax.convert.conversion import open_model, write_model
from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.trees import flat

PIXELS = np.zeros((24, 24, 3), np.uint8)
TEXTS = ["大红圆", "小蓝方"]


class Named(str):
    """A string that shows itself in another way."""

    def __str__(self) -> str:
        return "方"


@pytest.fixture(scope="module")
def model() -> Ranker:
    return Ranker(random_model(tokens=VOCABULARY), batch_size=4)


FORMS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "values of a dict": lambda: dict(enumerate(TEXTS)).values(),
    "array": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, object),
    "subclass": lambda: [Named(text) for text in TEXTS],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_texts(model: Ranker, name: str) -> None:
    np.testing.assert_array_equal(model.token_ids(FORMS[name]()), model.token_ids(TEXTS))


@pytest.mark.parametrize("text", ["", " \n", "圆\0", "😍", "圆" * 1000])
def test_unusual_texts(model: Ranker, text: str) -> None:
    assert np.isfinite(model.encode_text(text).embed).all()


def test_every_form_of_ids(model: Ranker) -> None:
    ids, mask = model.token_ids(TEXTS)
    for form in ((jnp.asarray(ids), jnp.asarray(mask)), (ids.tolist(), mask.tolist()), (ids.astype("u8"), mask * 1.0)):
        np.testing.assert_array_equal(model.token_ids(*form), (ids, mask))
    np.testing.assert_array_equal(model.token_ids(ids[0], mask[0]), (ids[:1], mask[:1]))


IDS, MASK = np.full((2, 5), 6), np.ones((2, 5))
NO_TEXT: list[tuple[tuple[Any, ...], str]] = [
    ((None,), "texts are None; expected a string or several, or input_ids with attention_mask"),
    ((5,), "texts are of type int; expected a string"),
    (("圆".encode(),), "texts are 3 bytes; expected a string"),
    (({"input_ids": IDS},), "texts are of type dict; expected a string"),
    ((["圆", None],), r"texts\[1\] is None; expected a string"),
    (([["圆"]],), r"texts\[0\] is of type list; expected a string"),
    ((["圆", "圆\ud83d"],), r"texts\[1\], '圆\\ud83d', has half of a character \(a lone surrogate\) at position 1"),
    ((TEXTS, MASK), "attention_mask belongs to input_ids; leave it out where texts are strings"),
    (("圆", MASK), "attention_mask belongs to input_ids"),
    ((IDS, MASK[:, :3]), r"shape \[2, 5\] and attention_mask \[2, 3\]; expected both \[b l\]"),
    ((IDS[None], MASK[None]), r"shape \[1, 2, 5\] .*expected both \[b l\]"),
    ((np.zeros((1, 0), int), np.ones((1, 0))), r"input_ids have the shape \[1, 0\]: no token"),
    (([[2, 3], [2]], [[1, 1], [1]]), "input_ids cannot become a NumPy array"),
    ((IDS.astype(object), MASK), "input_ids are object; expected integers"),
    (([[2, 10**30, 3]], [[1, 1, 1]]), "input_ids are object; expected integers"),
    ((np.zeros(0, int), np.zeros(0)), r"input_ids have the shape \[1, 0\]: no token"),
    ((IDS * 1.0, MASK), "input_ids are float64; expected integers"),
    ((IDS > 0, MASK), "input_ids are bool; expected integers"),
    ((-IDS, MASK), "input_ids run from -6 to -6; the model has 11 tokens"),
    ((IDS, (MASK - 1) * 1e4 - 1), "attention_mask has values other than 0 and 1"),
    ((IDS, MASK * np.nan), "attention_mask has values other than 0 and 1"),
    ((IDS, MASK * [[1], [0]]), "attention_mask hides the first token of text 1, by which the model reads a text"),
]


@pytest.mark.parametrize(("bring", "message"), NO_TEXT)
def test_what_is_no_text_is_named(model: Ranker, bring: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.encode_text(*bring)


def test_of_nothing_comes_nothing(model: Ranker) -> None:
    image, text = model.encode_image([], tokens=True), model.encode_text([], tokens=True)
    assert (image.feature.shape, image.embed.shape, image.host_tokens.shape) == ((0, 16), (0, 16), (0, 10, 64))
    assert (text.feature.shape, text.embed.shape, text.host_tokens.shape) == ((0, 16), (0, 16), (0, 7, 64))
    assert model.encode_image(()).tokens is None
    for nothing in (np.zeros((0, 24, 24, 3), np.uint8), np.zeros((0, 24, 24, 3)), np.array([]), iter(())):
        assert model.encode_image(nothing).embed.shape == (0, 16)
    assert model.encode_text(np.array([])).embed.shape == (0, 16)
    assert model.encode_text(np.zeros((0, 5), int), np.ones((0, 5))).embed.shape == (0, 16)
    assert model.pixels([]).shape == (0, 24, 24, 3)
    none = np.zeros((0, 7), bool)
    for found in (
        model.match([], []),
        model.match(PIXELS, []),
        model.match([], "圆"),
        model.match_tokens(image.host_tokens, text.host_tokens, none),
    ):
        assert (found.shape, found.dtype) == ((0,), np.float32)
    with pytest.raises(UserError, match="0 images and 2 texts; expected as many of both"):
        model.match([], TEXTS)


@pytest.mark.parametrize("cross_layers", [2, 0])
def test_all_of_nothing(cross_layers: int) -> None:
    ranker = Ranker(random_model(cross_layers=cross_layers, tokens=VOCABULARY))
    for images, texts, shape in (([], [], (0, 0)), ([], TEXTS, (0, 2)), (PIXELS, [], (1, 0))):
        scores = ranker.score_all(images, texts)
        assert scores.cosine.shape == shape
        assert scores.match is None if cross_layers == 0 else scores.match is not None and scores.match.shape == shape


IMAGE_TOKENS, TEXT_TOKENS = np.zeros((2, 10, 64), np.float32), np.zeros((2, 7, 64), np.float32)
NO_TOKENS: list[tuple[tuple[Any, ...], str]] = [
    ((None, TEXT_TOKENS, np.ones((2, 7))), "there are no tokens; expected the `host_tokens`"),
    ((IMAGE_TOKENS[..., :5], TEXT_TOKENS, np.ones((2, 7))), r"image_tokens are float32 \[2, 10, 5\]; expected float32"),
    ((IMAGE_TOKENS, TEXT_TOKENS.astype(int), np.ones((2, 7))), r"text_tokens are int64 \[2, 7, 64\]; expected float32"),
    ((IMAGE_TOKENS, TEXT_TOKENS + np.nan, np.ones((2, 7))), "text_tokens hold NaN or infinity"),
    ((IMAGE_TOKENS, TEXT_TOKENS, np.ones((2, 5))), r"attention_mask has the shape \[2, 5\]; expected \[2, 7\]"),
    ((IMAGE_TOKENS, TEXT_TOKENS, True), "2 rows of image tokens, 2 of text tokens, 0 of attention_mask"),
]


@pytest.mark.parametrize(("bring", "message"), NO_TOKENS)
def test_tokens_that_do_not_fit_are_named(model: Ranker, bring: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.match_tokens(*bring)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "the model is None; expected a path"),
        ({"path": np.zeros(3)}, "the model is array.*; expected a path"),
        ({"path": ""}, "the model is ''; expected a file or folder"),
        ({"path": "https://a.b/model.pth"}, "https://a.b/model.pth is an address of https://, which cannot be opened"),
        ({"path": "~nobody-has-this-name/model"}, "~nobody-has-this-name/model is no model; expected a published .pth"),
        ({"path": "x", "vocabulary": 5}, "the vocabulary is 5; expected a path"),
    ],
)
def test_what_is_no_path_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        r2d2_jax.load(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "64"}, "batch_size is '64'; expected 1 or more"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected 1 or more"),
        ({"devices": []}, r"devices are \[\]; expected some of jax.devices\(\), or None for all"),
        ({"devices": 1}, r"devices are 1; expected some of jax.devices\(\)"),
        ({"devices": ["cpu"]}, r"devices are \['cpu'\]; expected some of jax.devices\(\)"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Ranker(random_model(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_heads": 3}, "image_heads is 3 and the width in .*model.pth 64; expected a divisor of it"),
        ({"text_heads": -1}, "text_heads is -1 and the width in .*model.pth 64; expected a divisor of it"),
        ({"image_heads": 0}, "image_heads is 0 and the width"),
        ({"weights": "teacher"}, "weights is 'teacher', which only a run has; .*model.pth holds one set: leave"),
    ],
)
def test_options_that_do_not_fit_the_model(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_model(random_model(), tmp_path / "model.pth")
    with pytest.raises(UserError, match=message):
        r2d2_jax.load(tmp_path / "model.pth", **options)


@pytest.mark.parametrize("content", ["[1]", "null"])
def test_a_model_whose_sizes_are_no_object(tmp_path: Path, content: str) -> None:
    write_model(random_model(), tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text(content)
    with pytest.raises(UserError, match="model/model.json holds no JSON object with the sizes of the model; convert"):
        r2d2_jax.load(tmp_path / "model")


def test_heads_of_a_model_that_says_its_own(tmp_path: Path) -> None:
    write_model(random_model(), tmp_path / "model")
    with pytest.raises(UserError, match="heads are given, which only a published file does not say; .*model does"):
        r2d2_jax.load(tmp_path / "model", text_heads=1)


@pytest.mark.parametrize("name", ["model.json", "params.safetensors"])
def test_a_model_of_which_git_lfs_fetched_nothing(tmp_path: Path, name: str) -> None:
    write_model(random_model(layers=1, cross_layers=0), tmp_path / "model")
    (tmp_path / "model" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=f"model/{name} is a Git LFS pointer, not the file .*; run `git lfs pull`"):
        r2d2_jax.load(tmp_path / "model")


def test_weights_saved_in_fewer_bits_are_read_as_float32(tmp_path: Path) -> None:
    model = random_model(layers=1, cross_layers=0)
    write_model(model, tmp_path / "model")
    path, leaves = tmp_path / "model" / "params.safetensors", dict(flat(model.params))
    save_file({name: np.array(leaf, np.float16) for name, leaf in leaves.items()}, path)
    read = dict(flat(open_model(tmp_path / "model").params))
    assert all(read[name].dtype == np.float32 for name in leaves)
    assert all(np.array_equal(read[name], np.float16(leaf)) for name, leaf in leaves.items())
    save_file({name: np.array(leaf, np.int32) for name, leaf in leaves.items()}, path)
    with pytest.raises(UserError, match=r"params.safetensors holds weights that are no floats; (.|\n)*: int32"):
        open_model(tmp_path / "model")
