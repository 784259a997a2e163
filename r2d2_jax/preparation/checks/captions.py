"""What can be said of captions: their length, and what the vocabulary does not know."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.preparation.checks.figures import Figures, Spread

LONG_WORD = "words of over 100 characters"  # which WordPiece does not look into
_LONGEST_WORD = 100  # of BERT's tokenizer
_CLS_AND_SEP = 2


@dataclass
class CaptionFigures(Figures):
    """Figures of captions.

    duplicated: those that stand before in the same record; counted by whoever sees the records.
    characters: length of each in characters. tokens: in tokens before any is cut off, with CLS and SEP, as text_length
        counts them.
    text_tokens: tokens without CLS and SEP. unknown_tokens: how many of these are [UNK].
    unknown_characters: the characters for whose sake they are.
    """

    count: int = 0
    duplicated: int = 0
    text_tokens: int = 0
    unknown_tokens: int = 0
    characters: Spread = field(default_factory=Spread)
    tokens: Spread = field(default_factory=Spread)
    unknown_characters: Counter[str] = field(default_factory=Counter)


class CaptionMeter:
    """Measures captions with a tokenizer, or, without one, their characters only."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        """Takes the tokenizer of the training."""
        self._backend = tokenizer.backend() if tokenizer else None
        self._unknown = tokenizer.unk_id if tokenizer else -1
        self._vocabulary = frozenset(tokenizer.vocabulary if tokenizer else ())

    def measure(self, captions: Sequence[str], figures: CaptionFigures) -> None:
        """Adds captions to the figures."""
        for caption in captions:
            figures.count += 1
            figures.characters.add(len(caption))
        if self._backend is None:
            return
        for caption, encoding in zip(captions, self._backend.encode_batch_fast(list(captions)), strict=True):
            figures.tokens.add(len(encoding.ids))
            figures.text_tokens += len(encoding.ids) - _CLS_AND_SEP
            unknown = encoding.ids.count(self._unknown)
            if unknown:
                figures.unknown_tokens += unknown
                figures.unknown_characters.update(self._unknown_characters(caption))

    def _unknown_characters(self, caption: str) -> Iterator[str]:
        assert self._backend is not None
        # Offsets into what is already normalised: in the caption, the three dots of an ellipsis are one character.
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
