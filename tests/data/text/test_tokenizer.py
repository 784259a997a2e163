"""Texts become the published tokenizer's tokens, and a wrong vocabulary is named."""

import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from r2d2_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from r2d2_jax.errors import UserError


def test_padding_and_cutting(tokenizer: Tokenizer) -> None:
    input_ids, attention_mask = tokenizer(["一只狗", "一二三四五六七八九十", ""])
    assert (input_ids.dtype, input_ids.shape, attention_mask.dtype) == (np.int32, (3, 8), bool)
    assert tokenizer.tokens(input_ids[0]) == ["[CLS]", "一", "只", "狗", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert tokenizer.tokens(input_ids[1]) == ["[CLS]", *"一二三四五六", "[SEP]"]
    np.testing.assert_array_equal(attention_mask, input_ids != tokenizer.pad_id)
    assert attention_mask.sum(axis=1).tolist() == [5, 8, 2]
    assert tokenizer([])[0].shape == (0, 8)


def test_a_text_cannot_name_special_tokens(tokenizer: Tokenizer) -> None:
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        (input_ids,), _ = copy(["狗[SEP][MASK][CLS][PAD]"])
        assert copy.tokens(input_ids)[:2] == ["[CLS]", "狗"]
        assert [input_ids.tolist().count(token) for token in copy.special_ids[2:]] == [1, 1, 0]


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert (tokenizer.pad_id, tokenizer.unk_id) == (0, 1)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (2, 3, 4)
    assert tokenizer.vocab_size == 5 + 18 + 20
    assert (len(tokenizer.vocabulary), tokenizer.vocabulary[:3]) == (43, ("[PAD]", "[UNK]", "[CLS]"))


def test_pickled_copy_gives_the_same(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(["红球12"])[0], tokenizer(["红球12"])[0])


def test_folder_is_taken_for_its_vocabulary(vocabulary: Path) -> None:
    assert load_tokenizer(str(vocabulary.parent), 8).vocab_size == 43


def test_real_vocabulary(shared: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "tokenizer"), 64)
    assert (tokenizer.vocab_size, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (21128, 101, 102, 103)
    input_ids, attention_mask = tokenizer(["一只ABC Café狗，“在”草地…‘好’——《书》"])
    tokens = tokenizer.tokens(input_ids[0][attention_mask[0]])
    assert tokens == [
        "[CLS]",
        "一",
        "只",
        "abc",
        "cafe",
        "狗",
        "，",
        '"',
        "在",
        '"',
        "草",
        "地",
        ".",
        ".",
        ".",
        "'",
        "好",
        "'",
        "-",
        "-",
        "《",
        "书",
        "》",
        "[SEP]",
    ]


def test_punctuation_as_published(shared: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "tokenizer" / "vocab.txt"), 8, map_punctuation=False)
    input_ids, _ = tokenizer(["“好”…"])
    assert tokenizer.tokens(input_ids[0])[1:5] == ["[UNK]", "好", "[UNK]", "[UNK]"]


def test_marks_that_the_vocabulary_has_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n“\n"\n')
    tokenizer = load_tokenizer(str(path), 4)
    assert tokenizer.tokens(tokenizer(["“”"])[0][0]) == ["[CLS]", "“", '"', "[SEP]"]


def test_vocabulary_without_mask(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n狗\n")
    with pytest.raises(UserError, match=r"vocab.txt has no \[MASK\]; expected a WordPiece vocabulary with"):
        load_tokenizer(str(path), 8)


def test_missing_vocabulary(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere" / "vocab.txt", "./nowhere"):
        with pytest.raises(UserError, match="does not exist; expected a WordPiece vocab.txt with one token a line"):
            load_tokenizer(str(place), 8)


def test_unreadable_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read .* expected a WordPiece vocab.txt in UTF-8"):
        load_tokenizer(str(path), 8)


def test_hub_name(monkeypatch: pytest.MonkeyPatch, vocabulary: Path) -> None:
    asked = []

    def download(*name: str) -> str:
        asked.append(name)
        return str(vocabulary)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_tokenizer("somebody/some-model", 8).vocab_size == 43
    assert asked == [("somebody/some-model", "vocab.txt")]


def test_wrong_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*name: str) -> str:
        raise OSError("no such model")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match="'nobody/nothing' is neither a file or folder here nor a model"):
        load_tokenizer("nobody/nothing", 8)


def test_too_short(vocabulary: Path) -> None:
    with pytest.raises(UserError, match="text_length is 2; expected at least 3"):
        load_tokenizer(str(vocabulary), 2)
