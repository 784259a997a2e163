"""Texts become the published tokenizer's tokens, and a wrong vocabulary is named."""

import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import transformers

from r2d2_jax.data.text import tokenizer as module
from r2d2_jax.data.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from r2d2_jax.errors import UserError


def test_padding_and_cutting(tokenizer: Tokenizer) -> None:
    input_ids, attention_mask = tokenizer(["一只狗", "一二三四五六七八九十", ""])
    assert (input_ids.dtype, input_ids.shape, attention_mask.dtype) == (np.int32, (3, 8), bool)
    assert tokenizer.tokens(input_ids[0]) == ["[CLS]", "一", "只", "狗", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert tokenizer.tokens(input_ids[1]) == ["[CLS]", *"一二三四五六", "[SEP]"]
    np.testing.assert_array_equal(attention_mask, input_ids != tokenizer.pad_id)
    assert attention_mask.sum(axis=1).tolist() == [5, 8, 2]
    assert tokenizer([])[0].shape == (0, 8)


def test_many_texts_are_tokenised_a_few_at_a_time(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["一", "狗只", "", "一只狗", "二"]
    together = tokenizer(texts)
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    calls: list[int] = []
    arrays = Tokenizer._arrays
    monkeypatch.setattr(Tokenizer, "_arrays", lambda self, rows: calls.append(len(rows)) or arrays(self, rows))
    np.testing.assert_array_equal(tokenizer(texts), together)
    assert calls == [2, 2, 1]


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


ODD_TEXTS = (
    "",
    "   \t\r\n",
    "\u3000全角空格　和\u2028行\u2029",
    "ＡＢＣ１２３，。！",
    "國學與龍鳳，遊戲",
    "㍿𠀀𪚥\ue000豈龜",
    "😀👨\u200d👩\u200d👧🇨🇳☺️",
    "\ufeff狗\x00猫\u200b鸟\x07\ufffd\x7f",
    "Café İ ß ﬁ x² ①② e\u0301 ñ Å",
    "iPhone15Pro 3.5寸100% C++ don't -- a_b",
    "かわいい ガ 한국어 ภาษา עִברִית Привет",
    "a" * 99 + " " + "b" * 100 + " " + "c" * 101 + "狗" * 120,
    "[SEP]狗[MASK][sep] [PAD][UNK]##狗 [CLS",
    "“双”‘单’……——",
)


def random_texts(count: int) -> list[str]:
    """Texts of characters from all of Unicode, half of them Chinese."""
    generator = np.random.default_rng(0)
    codes = np.where(
        generator.random((count, 24)) < 0.5,
        generator.integers(0x4E00, 0xA000, (count, 24)),
        generator.integers(0, 0x30000, (count, 24)),
    )
    codes = np.where((codes >= 0xD800) & (codes < 0xE000), ord(" "), codes)
    return ["".join(map(chr, row)) for row in codes.tolist()]


def test_tokens_are_those_of_transformers(shared: Path) -> None:
    """Without our map of punctuation: every kind of text, and special tokens' names taken for text."""
    path = str(shared / "tokenizer" / "vocab.txt")
    theirs = transformers.BertTokenizer(path, split_special_tokens=True)
    texts = [*ODD_TEXTS, *random_texts(2000)]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=48)
    input_ids, attention_mask = load_tokenizer(path, 48, map_punctuation=False)(texts)
    for text, ours, other in zip(texts, input_ids.tolist(), expected["input_ids"], strict=True):
        assert ours == other, text
    np.testing.assert_array_equal(attention_mask, np.array(expected["attention_mask"], bool))


def test_words_and_offsets_are_those_of_transformers(shared: Path) -> None:
    """What numbers the words of a caption."""
    path = str(shared / "tokenizer" / "vocab.txt")
    theirs = transformers.BertTokenizer(path, split_special_tokens=True)(list(ODD_TEXTS), return_offsets_mapping=True)
    ours = load_tokenizer(path, 48, map_punctuation=False).backend().encode_batch(list(ODD_TEXTS))
    for row, encoding in enumerate(ours):
        assert encoding.word_ids == theirs.word_ids(row), ODD_TEXTS[row]
        assert encoding.offsets == theirs["offset_mapping"][row], ODD_TEXTS[row]


def test_a_vocabulary_in_memory_is_that_of_the_file(shared: Path) -> None:
    path = shared / "tokenizer" / "vocab.txt"
    texts = [*ODD_TEXTS, *random_texts(100)]
    for maps in (True, False):
        loaded = load_tokenizer(str(path), 48, map_punctuation=maps)
        made = tokenizer_of(path.read_text(encoding="utf-8").split("\n")[:-1], 48, map_punctuation=maps)
        assert made.vocabulary == loaded.vocabulary
        np.testing.assert_array_equal(made(texts)[0], loaded(texts)[0])


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
