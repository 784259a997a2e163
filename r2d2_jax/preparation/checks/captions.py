"""Measures captions: their length, and the characters that the vocabulary lacks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.preparation.checks.figures import Figures, Spread

LONG_WORD = "words of over 100 characters"  # WordPiece turns them into one [UNK] as a whole
_LONGEST_WORD = 100  # the limit of BERT's tokenizer
_CLS_AND_SEP = 2


@dataclass
class CaptionFigures(Figures):
    """Figures of captions.

    duplicated: captions that repeat an earlier one of the same record. identified: captions with a text_id. The caller
        counts both.
    characters: lengths in characters. tokens: lengths in tokens before any cut, with CLS and SEP, as for text_length.
    text_tokens: tokens without CLS and SEP. unknown_tokens: how many of these are [UNK].
    unknown_characters: the characters that became [UNK].
    """

    count: int = 0
    duplicated: int = 0
    identified: int = 0
    text_tokens: int = 0
    unknown_tokens: int = 0
    characters: Spread = field(default_factory=Spread)
    tokens: Spread = field(default_factory=Spread)
    unknown_characters: Counter[str] = field(default_factory=Counter)


class CaptionMeter:
    """Measures captions with a tokenizer, or, without one, their characters only."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        """Takes the tokenizer of the training."""
        self._tokens = _TokenMeter(tokenizer) if tokenizer else None

    def measure(self, captions: Sequence[str], figures: CaptionFigures) -> None:
        """Adds captions to the figures."""
        for caption in captions:
            figures.count += 1
            figures.characters.add(len(caption))
        if self._tokens:
            self._tokens.measure(captions, figures)


class _TokenMeter:
    """Measures captions in tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend, self._unknown = tokenizer.backend(), tokenizer.unk_id
        self._vocabulary = frozenset(tokenizer.vocabulary)

    def measure(self, captions: Sequence[str], figures: CaptionFigures) -> None:
        for caption, encoding in zip(captions, self._backend.encode_batch_fast(list(captions)), strict=True):
            figures.tokens.add(len(encoding.ids))
            figures.text_tokens += len(encoding.ids) - _CLS_AND_SEP
            unknown = encoding.ids.count(self._unknown)
            if unknown:
                figures.unknown_tokens += unknown
                figures.unknown_characters.update(self._unknown_characters(caption))

    def _unknown_characters(self, caption: str) -> Iterator[str]:
        # Offsets count characters of the normalised text: there, the ellipsis of a caption is three dots.
        normalized = self._backend.normalizer.normalize_str(caption)
        encoding = self._backend.encode(normalized)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == self._unknown:
                yield from self._unknown_in(normalized[start:end])

    def _unknown_in(self, word: str) -> Iterator[str]:
        if len(word) > _LONGEST_WORD:
            yield LONG_WORD
            return
        for position, character in enumerate(word):
            if (f"##{character}" if position else character) not in self._vocabulary:
                yield character
