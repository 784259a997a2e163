"""Exported folders read every text and picture as training does; the check of that names what is read otherwise."""

import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from PIL import Image
from random_models import VOCABULARY, random_model

from r2d2_jax.convert.conversion import Form, write_model
from r2d2_jax.convert.image_processing_r2d2 import R2D2ImageProcessor
from r2d2_jax.convert.preprocessing import (
    PIXELS,
    TEXTS,
    TOKEN_IDS,
    PreprocessingDifferences,
    preprocessing_differences,
    sample_pictures,
)
from r2d2_jax.convert.verification import LIMIT, verify
from r2d2_jax.data.image.transforms import evaluation_image
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.inference import Ranker
from r2d2_jax.models.store import Model
from r2d2_jax.vocabulary import SPECIAL_TOKENS, read_vocabulary

LENGTH = 64


def exported(path: Path, model: Model) -> Path:
    write_model(model, path, Form.TRANSFORMERS)
    return path


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(layers=1, cross_layers=0, tokens=VOCABULARY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    return exported(tmp_path_factory.mktemp("exports") / "small", model)


@pytest.fixture(scope="module", params=[True, False], ids=["mapped", "unmapped"])
def readers(request: Any, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any, Any]:
    """With the real vocabulary: our tokenizer, transformers' from the folder, and `tokenizers`' from its one file."""
    tokens, small = read_vocabulary(shared / "tokenizer" / "vocab.txt"), random_model(layers=1, cross_layers=0)
    assert tokens is not None
    large = random_model_of(small, len(tokens))
    real = dataclasses.replace(large, vocabulary=tokens, maps_punctuation=request.param)
    folder = exported(tmp_path_factory.mktemp("exports") / "real", real)
    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.enable_truncation(LENGTH)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer_of(tokens, LENGTH, map_punctuation=request.param), theirs, alone


def random_model_of(small: Model, tokens: int) -> Model:
    """The same model with that many tokens, and texts of LENGTH."""
    text = dataclasses.replace(
        small.config.text, vocabulary_size=tokens, text_length=LENGTH, max_positions=LENGTH, width=64
    )
    encoder = dict(small.params["text_encoder"])
    encoder["word_embedding"] = {"embedding": np.zeros((tokens, text.width), np.float32)}
    encoder["position_embedding"] = {"embedding": np.zeros((LENGTH, text.width), np.float32)}
    config = dataclasses.replace(small.config, text=text)
    return dataclasses.replace(small, config=config, params=small.params | {"text_encoder": encoder})


def assert_same_ids(readers: tuple[Tokenizer, Any, Any], texts: list[str]) -> None:
    ours, theirs, alone = readers
    ids, mask = ours(texts)
    batch = theirs(texts, padding="max_length", truncation=True, return_tensors="np")
    for row, text in enumerate(texts):
        assert batch["input_ids"][row].tolist() == ids[row].tolist(), text
        assert alone.encode(text).ids == ids[row][mask[row]].tolist(), text
    np.testing.assert_array_equal(batch["attention_mask"], mask)


def test_every_listed_text_has_the_same_ids(readers: tuple[Tokenizer, Any, Any]) -> None:
    assert_same_ids(readers, list(TEXTS))
    ours, *_ = readers
    ids = ours(["花[SEP]草"])[0][0].tolist()
    assert ids.count(ours.sep_id) == 1, "the name of a special token in a text is text"


ODD_VOCABULARIES = {
    "a token on two lines": [*VOCABULARY, "红"],
    "a special token on two lines": [*VOCABULARY, "[UNK]"],
    "separators of lines as tokens": [*VOCABULARY, "\u2028", "\x85", "一"],
    "an empty line": [*VOCABULARY[:5], "", *VOCABULARY[5:]],
}


@pytest.mark.parametrize("ends", [b"", b"\n", b"\n\n"], ids=["no end", "end", "blank line"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "mark"])
@pytest.mark.parametrize("name", ODD_VOCABULARIES)
def test_odd_vocabularies_give_the_same_ids(name: str, mark: bytes, ends: bytes, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(mark + "\n".join(ODD_VOCABULARIES[name]).encode() + ends)
    vocabulary = read_vocabulary(tmp_path / "vocab.txt")
    assert len(vocabulary) == len(ODD_VOCABULARIES[name])
    model = random_model_of(random_model(layers=1, cross_layers=0), len(vocabulary))
    folder = exported(tmp_path / "out", dataclasses.replace(model, vocabulary=vocabulary, maps_punctuation=False))
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = transformers.BertTokenizer(str(folder / "vocab.txt"))
    ours = tokenizer_of(vocabulary, LENGTH, map_punctuation=False)
    texts = ["红圆在蓝方左边", "一只 红", "红\u2028圆", ""]
    assert_same_ids((ours, theirs, alone), texts)
    for text, row, mask in zip(texts, *ours(texts), strict=True):
        assert plain(text)["input_ids"] == row[mask].tolist(), text


def random_texts(count: int) -> Iterator[str]:
    pieces = [
        *SPECIAL_TOKENS,
        *(token.lower() for token in SPECIAL_TOKENS),
        *TEXTS,
        *"花草 　“”…—[]#ＳＥＰ\u200d\ufe0f",
    ]
    rng = random.Random(0)
    for _ in range(count):
        picked = [rng.choice(pieces)[: rng.randint(1, 12)] for _ in range(rng.randint(1, 12))]
        anywhere = [chr(rng.randint(1, 0xD7FF)), chr(rng.randint(0xE000, 0x10FFFF))]
        yield "".join(rng.sample([*picked, *anywhere], k=len(picked) + 2))


def test_random_texts_have_the_same_ids(readers: tuple[Tokenizer, Any, Any]) -> None:
    assert_same_ids(readers, list(random_texts(1000)))


def test_a_lone_surrogate_is_refused_by_all(readers: tuple[Tokenizer, Any, Any]) -> None:
    ours, theirs, alone = readers
    for read in (lambda text: ours([text]), theirs, alone.encode):
        with pytest.raises((TypeError, UnicodeEncodeError, ValueError)):
            read("花\ud83d草")


def test_special_tokens_are_known_as_such_all_the_same(readers: tuple[Tokenizer, Any, Any]) -> None:
    ours, theirs, _ = readers
    assert theirs.tokenize("[MASK]") == ["[", "ma", "##sk", "]"]
    special = [ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id]
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == special
    assert sorted(theirs.all_special_ids) == special
    assert theirs.decode(theirs("花草")["input_ids"], skip_special_tokens=True) == "花 草"


@pytest.mark.parametrize("name", sample_pictures())
def test_a_picture_becomes_the_same_pixels(folder: Path, name: str, tmp_path: Path) -> None:
    encoded = sample_pictures()[name]
    (tmp_path / "picture").write_bytes(encoded)
    processor: Any = R2D2ImageProcessor.from_pretrained(folder)
    want = evaluation_image(encoded, 24)
    mean, deviation = np.float32(processor.image_mean), np.float32(processor.image_std)
    for picture in (Image.open(tmp_path / "picture"), tmp_path / "picture", str(tmp_path / "picture")):
        got = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose((got * deviation + mean) * 255, want, atol=1e-3)


def test_pictures_of_an_array_and_of_several_kinds_stand_in_one_batch(folder: Path) -> None:
    processor: Any = R2D2ImageProcessor.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    batch = processor([pixels, Image.fromarray(pixels), pixels[..., 0]], return_tensors="pt")["pixel_values"]
    assert tuple(batch.shape) == (3, 3, 24, 24)
    assert batch.dtype.is_floating_point
    assert np.array_equal(batch[0], batch[1])


def test_an_unfit_picture_is_refused_there_too(folder: Path) -> None:
    processor: Any = R2D2ImageProcessor.from_pretrained(folder)
    picture = Image.fromarray(np.array([[-5.0, 3.0]], np.float32))
    with pytest.raises(ValueError, match="its pixels are floats from -5 to 3; expected a range within 0 to 1"):
        processor(picture)


def altered(folder: Path, target: Path, name: str, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    described = json.loads((target / name).read_text(encoding="utf-8")) | changes
    (target / name).write_text(json.dumps(described), encoding="utf-8")
    return target


def differences(model: Model, folder: Path) -> PreprocessingDifferences:
    return preprocessing_differences(model, folder, LIMIT)


def test_a_sound_folder_differs_in_nothing(model: Model, folder: Path) -> None:
    found = differences(model, folder)
    assert (found.largest[TOKEN_IDS], found.lines) == (0, ())
    assert found.largest[PIXELS] < 1e-5


def test_a_tokenizer_that_takes_special_tokens_for_such_is_found(model: Model, folder: Path, tmp_path: Path) -> None:
    broken = altered(folder, tmp_path / "other", "tokenizer_config.json", split_special_tokens=False)
    found = differences(model, broken)
    assert (
        "transformers, text '花[SEP]草': the first id that differs is number 2, 3 in the folder and 1 here"
        in found.lines
    )
    assert not any(line.startswith("tokenizers") for line in found.lines)


def test_other_tokens_in_the_one_file_are_found(model: Model, folder: Path, tmp_path: Path) -> None:
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    broken = altered(
        folder, tmp_path / "other", "tokenizer.json", normalizer=described["normalizer"] | {"lowercase": False}
    )
    assert differences(model, broken).lines == ()  # nothing in this vocabulary has two cases
    broken = altered(
        folder, tmp_path / "third", "tokenizer.json", pre_tokenizer={"type": "Whitespace"}, normalizer=None
    )
    lines = differences(model, broken).lines
    assert any(line.startswith(("tokenizers, text '繁體字", "tokenizers, text '两只狗")) for line in lines)


def test_other_pixels_are_found(model: Model, folder: Path, tmp_path: Path) -> None:
    broken = altered(folder, tmp_path / "mean", "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert any(
        line.startswith("picture 16-bit grey: pixels differ by up to 0.") for line in differences(model, broken).lines
    )
    broken = altered(folder, tmp_path / "size", "preprocessor_config.json", size={"height": 32, "width": 32})
    assert "picture CMYK: [32, 32, 3] in the folder, [24, 24, 3] here" in differences(model, broken).lines


@pytest.mark.parametrize("form", [Form.TRANSFORMERS, None])
def test_verification_compares_preprocessing_first(
    model: Model, folder: Path, tmp_path: Path, form: Form | None
) -> None:
    broken = altered(folder, tmp_path / "other", "tokenizer_config.json", split_special_tokens=False)
    for target, first in ((folder, None), (broken, TOKEN_IDS)):
        report = verify(model, target, target if form else None, form)
        assert list(report.differences)[:2] == [TOKEN_IDS, PIXELS]
        assert report.first_broken == first
    *_, line, last = report.table().splitlines()
    assert line.startswith("transformers, text ")
    assert last == "the first stage that breaks: token ids"


def test_an_onnx_folder_is_compared_too(onnx_model: Model, onnx_folder: Path) -> None:
    report = verify(onnx_model, Path("absent"), onnx_folder, Form.ONNX)
    assert list(report.differences)[:2] == [TOKEN_IDS, PIXELS]
    assert report.first_broken is None, report.table()


@pytest.mark.parametrize("name", ["JPEG with EXIF orientation 6", "16-bit grey"])
def test_embeddings_are_ours_where_those_of_clips_processor_are_not(
    model: Model, folder: Path, name: str, tmp_path: Path
) -> None:
    (tmp_path / "picture").write_bytes(sample_pictures()[name])
    ranker = Ranker(model)
    ours = ranker.encode_image(tmp_path / "picture").embed
    cosines = []
    for processor in (
        R2D2ImageProcessor.from_pretrained(folder),
        transformers.AutoImageProcessor.from_pretrained(folder),
    ):
        values = processor(images=[Image.open(tmp_path / "picture")], return_tensors="np")["pixel_values"]
        theirs = ranker.encode_image(np.asarray(values).transpose(0, 2, 3, 1)).embed
        cosines.append(float((ours * theirs).sum()))
    assert cosines[0] > 1 - 1e-5
    assert cosines[1] < 1 - 1e-5
