"""Tokens of one word have one number, whatever the text is made of."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from r2d2_jax.data.train_batches import train_batches

CHARACTERS = '白色的小女孩衬衫T恤在路上打架两只狗，。.-+%"猫寸手机'
PIECES = (
    "iphone",
    "##15",
    "pro",
    "cafe",
    "138",
    "##001",
    "##38",
    "##000",
    "wi",
    "fi",
    "c",
    "3",
    "5",
    "100",
    "t",
    "ａ",
    "##ｂ",
    "か",
    "##わ",
    "##いい",
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *dict.fromkeys(CHARACTERS), *PIECES]) + "\n", encoding="utf-8")
    return path


def tokenizer_of_words(vocabulary: Path, text_length: int = 32) -> Tokenizer:
    return load_tokenizer(str(vocabulary), text_length, number_words=True)


def columns_of(tokenizer: Tokenizer, text: str) -> dict[str, np.ndarray]:
    """Those of one text, taken out of several."""
    return {name: column[1] for name, column in tokenizer.columns(["狗", text, "两只"]).items()}


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text, the tokens of each joined by a blank."""
    columns = columns_of(tokenizer, text)
    length = int(columns["attention_mask"].sum()) - 2
    assert columns["word"].shape == (tokenizer.text_length,)
    assert columns["word"].dtype == np.int32
    assert not columns["word"][[0, *range(length + 1, tokenizer.text_length)]].any()
    tokens = tokenizer.tokens(columns["input_ids"][1 : length + 1])
    pairs = list(zip(columns["word"][1 : length + 1].tolist(), tokens, strict=True))
    found = [" ".join(token for _, token in group) for _, group in itertools.groupby(pairs, lambda pair: pair[0])]
    assert sorted({number for number, _ in pairs}) == list(range(len(found))), "numbered from 0, without a gap"
    return found


@pytest.mark.parametrize(
    "text, expected",
    [
        ("两只狗在路上打架。", ["两 只", "狗", "在", "路 上", "打 架", "。"]),
        ("白色T恤的小女孩", ["白 色", "t 恤", "的", "小 女 孩"]),
        ("iPhone15 Pro手机", ["iphone ##15", "pro", "手 机"]),
        ("café的猫", ["cafe", "的", "猫"]),
        ("13800138000", ["138 ##001 ##38 ##000"]),
        ("3.5寸100%", ["3 . 5", "寸", "100 %"]),
        ("Wi-Fi C++", ["wi - fi", "c + +"]),
        ("“狗”……", ['"', "狗", '"', ". . .", ". . ."]),
        ("狗——猫", ["狗", "-", "-", "猫"]),
        ("😀😀衬衫", ["[UNK]", "衬 衫"]),
        ("鸟在路上", ["[UNK]", "在", "路 上"]),
        ("小女儿", ["小 女 [UNK]"]),
        ("ＡＢ 猫", ["ａ ##ｂ", "猫"]),
        ("かわいい猫", ["か ##わ ##いい", "猫"]),
        ("  ", []),
        ("", []),
    ],
)
def test_words_of_all_kinds(words: Path, text: str, expected: list[str]) -> None:
    assert spelled(tokenizer_of_words(words), text) == expected


def test_the_end_of_a_longer_text_is_cut_in_the_middle_of_a_word(words: Path) -> None:
    text = "白色T恤的小女孩在路上"
    assert spelled(tokenizer_of_words(words, 9), text) == ["白 色", "t 恤", "的", "小 女"]
    for length in range(3, 20):
        whole, cut = (columns_of(tokenizer_of_words(words, size), text) for size in (32, length))
        kept = slice(0, min(length - 1, 12))
        np.testing.assert_array_equal(cut["input_ids"][kept], whole["input_ids"][kept])
        np.testing.assert_array_equal(cut["word"][kept], whole["word"][kept])


def test_the_tokens_are_those_without_words(words: Path) -> None:
    texts = [
        "“狗”……——",
        "😀😀衬衫",
        "ＡＢ 猫かわいい",
        "İ ﬁ 한국어 Привет ①② x² e\u0301",
        "\ufeff狗\x00猫\u200b鸟",
        "[SEP]狗[MASK] [sep]",
        "",
        "小女孩" * 20,
    ]
    numbering = tokenizer_of_words(words)
    input_ids, attention_mask = numbering(texts)
    for row, text in enumerate(texts):
        columns = columns_of(numbering, text)
        np.testing.assert_array_equal(columns["input_ids"], input_ids[row])
        np.testing.assert_array_equal(columns["attention_mask"], attention_mask[row])
        plain = columns_of(load_tokenizer(str(words), 32), text)
        assert plain.keys() == {"input_ids", "attention_mask"}
        assert all((plain[name] == columns[name]).all() for name in plain)


def test_real_captions(shared: Path) -> None:
    tokenizer = tokenizer_of_words(shared / "tokenizer" / "vocab.txt", 64)
    assert spelled(tokenizer, "穿着连衣裙的小女孩。") == ["穿 着", "连 衣 裙", "的", "小 女 孩", "。"]
    assert spelled(tokenizer, "这道菜麻辣鲜香，虾肉细嫩多汁") == [
        "这",
        "道 菜",
        "麻 辣",
        "鲜 香",
        "，",
        "虾 肉",
        "细 嫩",
        "多 汁",
    ]


def test_a_pickled_copy_numbers_alike(words: Path) -> None:
    tokenizer = tokenizer_of_words(words)
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.columns(["两只狗打架"])["word"], tokenizer.columns(["两只狗打架"])["word"])


def test_batches_with_words_are_the_same_from_any_process(words: Path, source: RecordSource) -> None:
    """And beside the words they are what they are without."""
    settings = {"image_size": 16, "batch_size": 4, "seed": 1, "first_step": 0}
    taken = []
    for numbered, workers in ((True, 0), (True, 1), (False, 0)):
        tokenizer = load_tokenizer(str(words), 8, number_words=numbered)
        stream = train_batches(Mixture([source]), tokenizer, DataConfig("", workers=workers), **settings)
        taken.append([{key: np.array(value) for key, value in batch.items()} for batch in itertools.islice(stream, 5)])
        stream.close()
    here, spawned, without = taken
    for one, other, plain in zip(here, spawned, without, strict=True):
        assert one.keys() == other.keys() == plain.keys() | {"word"}
        assert (one["word"].shape, one["word"].dtype) == ((4, 8), np.int32)
        for key, value in one.items():
            np.testing.assert_array_equal(other[key], value, err_msg=key)
            np.testing.assert_array_equal(plain.get(key, value), value, err_msg=key)


def test_the_dictionary_is_loaded_only_where_words_are_numbered(reading_process: dict[str, Any]) -> None:
    assert "rjieba" not in reading_process["modules"]
    assert "rjieba" in reading_process["modules_with_words"]
