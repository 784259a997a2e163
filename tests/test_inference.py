"""The model that people ask: every kind of input gives the same answer, and each bad one its message."""

import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from programs import called
from random_models import VOCABULARY, random_model

import r2d2_jax
from r2d2_jax.convert.conversion import write_model
from r2d2_jax.encoder import Encoder
from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.launch.match import main, table
from r2d2_jax.losses.matching import match_probability
from r2d2_jax.models.r2d2 import CLIP_DEVIATION, CLIP_MEAN

TEXTS = ["大红圆", "小蓝方", "圆"]
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model() -> Ranker:
    return Ranker(random_model(tokens=VOCABULARY), batch_size=4)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(5)]


def test_pictures_that_stream_through_have_the_same_embeddings(model: Ranker, pictures: list[np.ndarray]) -> None:
    """Each batch is asked for before the results of the one before it are there, and no earlier."""
    asked: list[int] = []

    def batches():
        for start in (0, 4):
            asked.append(start)
            yield np.stack(pictures[start : start + 4])

    found = model.embed_pixels(batches())
    first = next(found)
    assert (len(first), asked) == (4, [0, 4])
    streamed = np.concatenate([first, *found])
    np.testing.assert_allclose(streamed, model.encode_image(pictures).embed, **CLOSE)


def test_bfloat16_gives_nearly_the_same_in_float32(model: Ranker, pictures: list[np.ndarray], tmp_path: Path) -> None:
    write_model(random_model(tokens=VOCABULARY), tmp_path / "model", "ours")
    half = r2d2_jax.load(tmp_path / "model", batch_size=4, dtype="bfloat16")
    for exact, found in (
        (model.encode_image(pictures, tokens=True), half.encode_image(pictures, tokens=True)),
        (model.encode_text(TEXTS, tokens=True), half.encode_text(TEXTS, tokens=True)),
    ):
        for name in ("feature", "embed", "tokens"):
            rounded, expected = getattr(found, name), getattr(exact, name)
            assert rounded.dtype == np.float32
            assert 1e-4 < np.linalg.norm(rounded - expected) / np.linalg.norm(expected) < 0.03
    probability = half.match(pictures[0], TEXTS)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, model.match(pictures[0], TEXTS), atol=0.02)


def test_dtype_that_there_is_not(tmp_path: Path) -> None:
    write_model(random_model(tokens=VOCABULARY), tmp_path / "model", "ours")
    with pytest.raises(UserError, match="dtype is 'float16'; expected one of bfloat16, float32"):
        r2d2_jax.load(tmp_path / "model", dtype="float16")


def test_every_kind_of_image_gives_the_same(model: Ranker, pictures: list[np.ndarray], tmp_path: Path) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    normalised = (pictures[0] / 255 - CLIP_MEAN) / CLIP_DEVIATION
    kinds: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pictures[0]),
        pictures[0],
        pictures[0][None],
        [tmp_path / "a.png"],
        normalised[None].astype(np.float32),
    ]
    want = model.encode_image(pictures).embed[:1]
    for kind in kinds:
        np.testing.assert_allclose(model.encode_image(kind).embed, want, **CLOSE)
    assert np.linalg.norm(want) == pytest.approx(1, abs=1e-6)


def test_another_size_is_resized_bicubically_to_a_square(model: Ranker) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    square = np.asarray(Image.fromarray(wide).resize((24, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(model.pixels(wide)[0], square)


def test_strings_and_their_ids_give_the_same(model: Ranker) -> None:
    input_ids, mask = model.tokenizer(TEXTS)
    strings, ids = model.encode_text(TEXTS), model.encode_text(input_ids, mask.astype(np.int64))
    np.testing.assert_array_equal(strings.embed, ids.embed)
    assert model.encode_text(TEXTS, tokens=True).host_tokens.shape == (3, 7, 64)
    np.testing.assert_allclose(model.encode_text(TEXTS[1]).embed, strings.embed[1:2], **CLOSE)


def test_the_size_of_a_batch_does_not_matter(pictures: list[np.ndarray]) -> None:
    one, many = (Ranker(random_model(tokens=VOCABULARY), batch_size=size) for size in (1, 64))
    tokens = [each.encode_image(pictures, tokens=True).host_tokens for each in (one, many)]
    np.testing.assert_allclose(*tokens, **CLOSE)
    texts = TEXTS + TEXTS[:2]
    np.testing.assert_allclose(one.match(pictures, texts), many.match(pictures, texts), **CLOSE)


def test_a_shape_is_compiled_once(model: Ranker, pictures: list[np.ndarray]) -> None:
    fresh = Ranker(random_model(layers=4, tokens=VOCABULARY), batch_size=4)  # no other test compiles four layers
    for count in (1, 2, 3, 4, 5, 3, 5):  # buckets 1, 2 and 4
        fresh.encode_image(pictures[:count])
    assert fresh._encoder._compiled.embed_image._cache_size() == 3


def test_match_pairs_rows_and_spreads_a_single_one(model: Ranker, pictures: list[np.ndarray]) -> None:
    pairs = model.match(pictures[:3], TEXTS)
    assert pairs.shape == (3,)
    for row in range(3):
        np.testing.assert_allclose(model.match(pictures[row], TEXTS)[row], pairs[row], **CLOSE)
        np.testing.assert_allclose(model.match(pictures[:3], TEXTS[row])[row], pairs[row], **CLOSE)


def test_match_tokens_is_the_models_own_match(model: Ranker, pictures: list[np.ndarray]) -> None:
    image, text = model.encode_image(pictures[:3], tokens=True), model.encode_text(TEXTS, tokens=True)
    _, mask = model.token_ids(TEXTS)
    whole = random_model()
    tokens = (jnp.asarray(text.tokens), jnp.asarray(mask), jnp.asarray(image.tokens))
    logits: Any = whole.module.apply({"params": whole.params}, *tokens, method="match")
    want = np.asarray(match_probability(logits))
    np.testing.assert_allclose(model.match_tokens(image.host_tokens, text.host_tokens, mask), want, **CLOSE)


def test_load_opens_what_was_written(tmp_path: Path, model: Ranker, pictures: list[np.ndarray]) -> None:
    write_model(random_model(tokens=VOCABULARY), tmp_path / "ours")
    write_model(random_model(tokens=VOCABULARY), tmp_path / "published.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    want = model.match(pictures[0], TEXTS)
    np.testing.assert_array_equal(r2d2_jax.load(tmp_path / "ours").match(pictures[0], TEXTS), want)
    published = r2d2_jax.load(tmp_path / "published.pth", vocabulary=tmp_path / "vocab.txt")
    np.testing.assert_array_equal(published.match(pictures[0], TEXTS), want)


def test_punctuation_is_mapped_as_in_training(model: Ranker) -> None:
    ours = model.tokenizer(["“圆”"])[0]
    plain = Ranker(random_model(tokens=VOCABULARY), map_punctuation=False).tokenizer(["…圆"])[0]
    dots = model.tokenizer(["…圆"])[0]
    assert ours[0, 1] == 1, "the small vocabulary has no quotation mark at all"
    assert (int((plain == 1).sum()), int((dots == 1).sum())) == (1, 3), "an ellipsis becomes three full stops"
    with pytest.raises(AttributeError, match="no attribute 'unload'"):
        r2d2_jax.unload  # noqa: B018


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.encode_image("absent.jpg"), "image absent.jpg: .*name a complete image file"),
        (lambda model: model.encode_image(np.zeros(4, np.uint8)), r"images are uint8 \[4\]"),
        (
            lambda model: model.encode_image(np.zeros((1, 8, 8, 3), np.float32)),
            r"shape \[1, 8, 8, 3\]; expected float32",
        ),
        (lambda model: model.encode_text(np.zeros((2, 5), int)), r"attention_mask None; expected both \[b l\]"),
        (
            lambda model: model.encode_text(np.zeros((1, 8), int), np.ones((1, 8))),
            "texts have 8 tokens; the model has 7",
        ),
        (lambda model: model.encode_text(np.full((1, 3), 11), np.ones((1, 3))), "input_ids run from 11 to 11"),
        (
            lambda model: model.match([np.zeros((9, 9, 3), np.uint8)] * 2, TEXTS),
            "2 images and 3 texts; expected as many",
        ),
        (
            lambda model: model.match_tokens(np.zeros((2, 10, 64)), np.zeros((3, 7, 64)), np.ones((3, 7))),
            "2 rows of image tokens, 3 of text tokens, 3 of attention_mask",
        ),
        (lambda _: Ranker(random_model(), batch_size=0), "batch_size is 0; expected 1 or more"),
        (lambda _: Ranker(random_model()).encode_text("圆"), "the model came without a vocabulary"),
        (
            lambda _: Ranker(random_model(cross_layers=0, tokens=VOCABULARY)).match(
                np.zeros((9, 9, 3), np.uint8), "圆"
            ),
            r"the model has no cross encoders \(PRD2\)",
        ),
    ],
)
def test_bad_input_has_one_clear_message(model: Ranker, ask: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(model)


def test_a_truncated_image_is_named(model: Ranker, tmp_path: Path, pictures: list[np.ndarray]) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(UserError, match="image .*a.png: the image cannot be decoded"):
        model.encode_image(tmp_path / "a.png")


def run_match(*arguments: str) -> subprocess.CompletedProcess[str]:
    return called(main, *arguments)


@pytest.mark.parametrize("cross_layers", [2, 0])
def test_match_program_prints_the_best_first(tmp_path: Path, pictures: list[np.ndarray], cross_layers: int) -> None:
    write_model(random_model(cross_layers=cross_layers, tokens=VOCABULARY), tmp_path / "ours")
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    done = run_match("--model", str(tmp_path / "ours"), "--image", str(tmp_path / "a.png"), "--text", *TEXTS)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == str(tmp_path / "a.png")
    assert sorted(line.split()[-1] for line in lines) == sorted(TEXTS)
    shown = [float(line.split()[1]) for line in lines]
    assert shown == sorted(shown, reverse=True)
    assert ("match" in lines[0]) == bool(cross_layers)


@pytest.mark.parametrize("cross_layers", [2, 0])
def test_the_table_of_several_images_encodes_each_text_once(
    monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray], tmp_path: Path, cross_layers: int
) -> None:
    encoded: list[int] = []
    for name in ("encode_images", "encode_texts"):
        encode = getattr(Encoder, name)
        spy = lambda self, params, *rest, encode=encode: encoded.append(rest) or encode(self, params, *rest)  # noqa: E731
        monkeypatch.setattr(Encoder, name, spy)
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    for name, picture in zip(names, pictures, strict=False):
        Image.fromarray(picture).save(name)
    ranker = Ranker(random_model(cross_layers=cross_layers, tokens=VOCABULARY), batch_size=4)
    printed = table(ranker, names, TEXTS).splitlines()
    (_, count, _), (input_ids, _, _) = encoded
    assert (count, len(input_ids)) == (3, 3)
    assert printed[::4] == names
    for row, name in enumerate(names):
        cosine = ranker.encode_image(name).embed @ ranker.encode_text(TEXTS).embed.T
        scores = ranker.match(name, TEXTS) if cross_layers else cosine[0]
        want = [TEXTS[place] for place in np.argsort(-scores)]
        assert [line.split()[-1] for line in printed[4 * row + 1 : 4 * row + 4]] == want
        first = TEXTS.index(want[0])
        assert f"cosine {cosine[0, first]:+.4f}" in printed[4 * row + 1]
        assert (f"match {scores[first]:.4f}" in printed[4 * row + 1]) == bool(cross_layers)


def test_match_program_refuses_with_status_2(tmp_path: Path) -> None:
    done = run_match("--model", str(tmp_path), "--image", "a.png", "--text", "圆")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr
    assert "is no model" in done.stderr
    assert "Traceback" not in done.stderr
