"""Captions are measured in characters and tokens; unknown tokens are traced to the characters that cause them."""

import pytest

from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.preparation.checks.captions import LONG_WORD, CaptionFigures, CaptionMeter
from r2d2_jax.preparation.checks.figures import Spread


def measured(tokenizer: Tokenizer | None, *captions: str) -> CaptionFigures:
    figures = CaptionFigures()
    CaptionMeter(tokenizer).measure(captions, figures)
    return figures


def test_lengths(tokenizer: Tokenizer) -> None:
    figures = measured(tokenizer, "一只狗", "一二三四五六七八九十", "12只 狗")
    assert figures.count == 3
    assert dict(figures.characters.counts) == {3: 1, 10: 1, 5: 1}
    assert dict(figures.tokens.counts) == {5: 1, 12: 1, 6: 1}  # 1 ##2 只 狗, CLS and SEP, nothing cut
    assert figures.text_tokens == 3 + 10 + 4
    assert (figures.unknown_tokens, dict(figures.unknown_characters)) == (0, {})


@pytest.mark.parametrize(
    ("caption", "tokens", "characters"),
    [
        ("一只猫", 1, {"猫": 1}),
        ("猫和猫", 3, {"猫": 2, "和": 1}),
        ("红A1球", 1, {"a": 1}),  # one word, of which only the letter is unknown
        ("1é", 1, {"e": 1}),  # without its accent, as the tokenizer sees it
        ("😀狗", 1, {"😀": 1}),
        ("1" * 101, 1, {LONG_WORD: 1}),
    ],
)
def test_unknown_characters(tokenizer: Tokenizer, caption: str, tokens: int, characters: dict[str, int]) -> None:
    figures = measured(tokenizer, caption, "一")
    assert figures.unknown_tokens == tokens
    assert dict(figures.unknown_characters) == characters


def test_without_a_tokenizer_only_characters(tokenizer: Tokenizer) -> None:
    figures = measured(None, "一只猫")
    assert dict(figures.characters.counts) == {3: 1}
    assert figures.tokens == Spread()
