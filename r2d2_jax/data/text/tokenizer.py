"""WordPiece tokens of Chinese text, from a vocabulary file."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from r2d2_jax.data.text.words import word_numbers
from r2d2_jax.errors import UserError

_HUB_NAME = r"[\w-][\w.-]*(/[\w.-]+)?"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

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
    path = Path(vocabulary).expanduser()
    if path.is_dir():
        path = path / "vocab.txt"
    if path.is_file():
        model = _from_file(path)
    elif path.suffix == ".txt" or not re.fullmatch(_HUB_NAME, vocabulary):
        raise UserError(
            f"vocabulary {path} does not exist; expected a WordPiece vocab.txt with one token a line. Set "
            "data.vocabulary to such a file, to a folder that holds one, or to a hub name"
        )
    else:
        model = _from_hub(vocabulary)
    return Tokenizer(model, text_length, vocabulary, map_punctuation, number_words)


def tokenizer_of(tokens: Sequence[str], text_length: int, *, map_punctuation: bool = True) -> "Tokenizer":
    """`load_tokenizer` for a vocabulary in memory: the tokens in the order of their numbers."""
    # Without blanks at the end, as in a file's lines: a token of RoBERTa-wwm's vocabulary is a line separator.
    numbers = {token.rstrip(): number for number, token in enumerate(tokens)}
    return Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"), text_length, "in memory", map_punctuation, False)


class Tokenizer:
    """Turns texts into padded token arrays; it can be pickled, and several threads may call it.

    Attributes:
        text_length: `l`.
        vocab_size: `v`, number of tokens in the vocabulary.
        numbers_words: whether `columns` says which tokens are one word.
        pad_id, unk_id, cls_id, sep_id, mask_id: the special tokens' numbers.
    """

    def __init__(
        self,
        model: models.WordPiece,
        text_length: int,
        vocabulary: str,
        map_punctuation: bool,
        number_words: bool,
    ) -> None:
        if text_length < 3:
            raise UserError(f"text_length is {text_length}; expected at least 3: CLS, one token, SEP")
        self._backend = tokenizers.Tokenizer(model)
        tokens = self._backend.get_vocab()
        absent = [token for token in SPECIAL_TOKENS if token not in tokens]
        if absent:
            raise UserError(
                f"vocabulary {vocabulary} has no {', '.join(absent)}; expected a WordPiece vocabulary with "
                f"{', '.join(SPECIAL_TOKENS)}. Use the vocab.txt that belongs to the text tower"
            )
        self.text_length, self.numbers_words = text_length, number_words
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (tokens[token] for token in SPECIAL_TOKENS)
        self._make_bert()
        if map_punctuation:
            replaced = [normalizers.Replace(*pair) for pair in _PUNCTUATION.items() if pair[0] not in tokens]
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
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens in the order of their numbers."""
        return tuple(self.tokens(range(self.vocab_size)))

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

    def _arrays(self, encodings: Sequence[tokenizers.Encoding]) -> dict[str, np.ndarray]:
        shape = (len(encodings), self.text_length)
        return {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int32).reshape(shape),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], bool).reshape(shape),
        }

    def tokens(self, input_ids: Sequence[int]) -> list[str]:
        """The tokens with these numbers; "" for a number that is not in the vocabulary."""
        return [self._backend.id_to_token(int(token)) or "" for token in input_ids]


def _from_file(path: Path) -> models.WordPiece:
    try:
        return models.WordPiece.from_file(str(path), unk_token="[UNK]")
    except Exception as error:
        raise UserError(
            f"vocabulary {path} cannot be read ({error}); expected a WordPiece vocab.txt in UTF-8 with one token a line"
        ) from error


def _from_hub(name: str) -> models.WordPiece:
    try:
        path = huggingface_hub.hf_hub_download(name, "vocab.txt")
    except Exception as error:
        raise UserError(
            f"vocabulary {name!r} is neither a file or folder here nor a model whose vocab.txt the Hugging "
            f"Face hub gave ({error}). Correct data.vocabulary, or download vocab.txt and name its path"
        ) from error
    return _from_file(Path(path))
