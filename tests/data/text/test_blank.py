"""A caption of which nothing can be seen is as good as none."""

import pytest

from r2d2_jax.data.text.blank import is_blank
from r2d2_jax.data.text.tokenizer import Tokenizer

NO_TOKEN = {
    "nothing": "",
    "spaces of every kind": " \t\n\r\x0b\u0085\u00a0\u2003\u2028\u202f\u3000",
    "zero-width space": "\u200b",
    "byte-order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "word joiner and invisible separator": "\u2060\u2063",
    "joiners": "\u200c\u200d",
    "marks of direction": "\u200e\u200f\u202a\u202e\u2066\u2069\u061c",
    "variation selectors": "\ufe0f\ufe0e\U000e0100",
    "combining marks alone": "\u0301\u3099\u034f",
    "control characters": "\0\x01\x1c\x7f",
    "private use": "\ue000\U000f0000",
    "a replacement character": "\ufffd",
    "tags": "\U000e0001\U000e0061",
    "all of it": " \u200b\u3000\ufeff\u00ad\u0301 ",
}
FILLERS = "\u3164\uffa0\u115f\u1160\u2800"
SEEN = ["狗", "\u200b狗", "\ufeff \u00ad1", "。", "😀", "❤\ufe0f", "e\u0301", "\u3164狗", "𠀀", "\ud83d", "\u20e3", "-"]


@pytest.mark.parametrize("name", NO_TOKEN)
def test_a_text_without_tokens_is_blank(tokenizer: Tokenizer, name: str) -> None:
    assert is_blank(NO_TOKEN[name])
    assert tokenizer([NO_TOKEN[name]])[1].sum() == 2, "CLS and SEP"


def test_letters_that_look_like_nothing_are_blank() -> None:
    assert all(map(is_blank, (*FILLERS, FILLERS, f" {FILLERS}\u200b")))


@pytest.mark.parametrize("text", SEEN)
def test_what_can_be_seen_is_a_text(text: str) -> None:
    assert not is_blank(text)


def test_blank_is_every_character_without_a_token(tokenizer: Tokenizer) -> None:
    """In all of Unicode, the fillers aside."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code) not in FILLERS]
    lengths = [len(encoding.ids) for encoding in tokenizer.backend().encode_batch_fast(characters)]
    assert [is_blank(character) for character in characters] == [length == 2 for length in lengths]
