"""WordPiece tokens of Chinese text, from a vocabulary file."""

from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from r2d2_jax.data.text.words import word_numbers
from r2d2_jax.errors import UserError
from r2d2_jax.vocabulary import SPECIAL_TOKENS, Vocabulary, find_vocabulary, read_vocabulary

# The library's own result takes 8 kB a text of 64 tokens, our arrays 0.3; so it is made of a few at a time.
TEXTS_AT_ONCE = 1024
# The Chinese punctuation that the vocabulary of RoBERTa-wwm-ext lacks, and the nearest mark that it has; our decision.
_PUNCTUATION = {"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "—": "-"}


def load_tokenizer(
    vocabulary: str, text_length: int, *, map_punctuation: bool = True, number_words: bool = False
) -> "Tokenizer":
    """Loads a BERT tokenizer: it lower-cases and makes every Chinese character a word of its own.

    Args:
        vocabulary: a WordPiece vocab.txt, a folder that holds one, or a name on the Hugging Face hub.
        text_length: `l`, the number of tokens to which every text is padded or cut.
        map_punctuation: map quotation marks, ellipsis and dash that the vocabulary lacks to ASCII; in the published
            code they become [UNK] (our decision).
        number_words: training batches also say which tokens are one word.

    Raises:
        UserError: there is no such vocabulary, or it lacks a special token.
    """
    tokens = read_vocabulary(find_vocabulary(vocabulary))
    return Tokenizer(tokens, text_length, map_punctuation, number_words)


def tokenizer_of(tokens: Sequence[str], text_length: int, *, map_punctuation: bool = True) -> "Tokenizer":
    """`load_tokenizer` for a vocabulary in memory: the tokens in the order of their numbers."""
    vocabulary = tokens if isinstance(tokens, Vocabulary) else Vocabulary(tokens)
    return Tokenizer(vocabulary, text_length, map_punctuation, number_words=False)


class Tokenizer:
    """Turns texts into padded token arrays; it can be pickled, and several threads may call it.

    Attributes:
        vocabulary: the tokens in the order of their numbers.
        text_length: `l`.
        numbers_words: whether `columns` says which tokens are one word.
        pad_id, unk_id, cls_id, sep_id, mask_id: the special tokens' numbers.
    """

    def __init__(self, vocabulary: Vocabulary, text_length: int, map_punctuation: bool, number_words: bool) -> None:
        if text_length < 3:
            raise UserError(f"text_length is {text_length}; expected at least 3: CLS, one token, SEP")
        ids = vocabulary.ids
        self._backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        self.vocabulary, self.text_length, self.numbers_words = vocabulary, text_length, number_words
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        self._make_bert()
        if map_punctuation:
            replaced = [normalizers.Replace(*pair) for pair in _PUNCTUATION.items() if pair[0] not in ids]
            self._backend.normalizer = normalizers.Sequence([*replaced, normalizers.BertNormalizer()])
        self._backend.enable_truncation(text_length)
        self._backend.enable_padding(length=text_length, pad_id=self.pad_id, pad_token="[PAD]")

    def _make_bert(self) -> None:
        """Sets BERT's steps around WordPiece. No special token is added, so "[SEP]" in a text is text."""
        self._backend.normalizer = normalizers.BertNormalizer()
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.decoder = decoders.WordPiece()
        self._backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Numbers of the tokens that are no text: PAD, UNK, CLS, SEP, MASK."""
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

    @property
    def vocab_size(self) -> int:
        """`v`, the largest number of a token and one more: the rows that the table of embeddings needs."""
        return len(self.vocabulary)

    def backend(self) -> tokenizers.Tokenizer:
        """A copy that neither pads nor cuts; it maps punctuation as this tokenizer does."""
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        copy.no_padding()
        copy.no_truncation()
        return copy

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises `t` texts.

        Returns:
            input_ids int32 [t l]: CLS, the text's tokens, SEP, padding; the end of a longer text is cut off.
            attention_mask bool [t l]: False on padding.
        """
        starts = range(0, max(1, len(texts)), TEXTS_AT_ONCE)
        batches = (texts[start : start + TEXTS_AT_ONCE] for start in starts)
        parts = [self._arrays(self._backend.encode_batch_fast(list(batch))) for batch in batches]
        ids, masks = (np.concatenate([part[name] for part in parts]) for name in ("input_ids", "attention_mask"))
        return ids, masks

    def columns(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The columns of a training batch for `t` texts.

        Returns:
            input_ids int32 [t l] and attention_mask bool [t l], as above; if words are numbered, also word int32 [t l]
            from `word_numbers`.
        """
        if not self.numbers_words:
            return self._arrays(self._backend.encode_batch_fast(list(texts)))
        encodings = self._backend.encode_batch(list(texts))  # the fast one gives no offsets
        numbers = [word_numbers(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        return self._arrays(encodings) | {"word": np.array(numbers, np.int32).reshape(len(texts), self.text_length)}

    def offsets(self, text: str) -> np.ndarray:
        """int32 [l 2], the first character of each token of a text and the one after its last; equal where it has none.

        CLS, SEP and padding have none, and what is cut off is not there.
        """
        return np.array(self._backend.encode(text).offsets, np.int32)

    def _arrays(self, encodings: Sequence[tokenizers.Encoding]) -> dict[str, np.ndarray]:
        shape = (len(encodings), self.text_length)
        return {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int32).reshape(shape),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], bool).reshape(shape),
        }

    def tokens(self, input_ids: Sequence[int]) -> list[str]:
        """The tokens with these numbers; "" for a number that is not in the vocabulary."""
        return [self.vocabulary[token] if 0 <= token < self.vocab_size else "" for token in map(int, input_ids)]
