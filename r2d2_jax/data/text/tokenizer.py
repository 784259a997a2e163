"""WordPiece tokens of Chinese text, from a vocabulary file."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import tokenizers
from tokenizers import normalizers

from r2d2_jax.data.text.words import word_numbers
from r2d2_jax.errors import UserError

_HUB_NAME = r"[\w-][\w.-]*(/[\w.-]+)?"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The Chinese punctuation that the vocabulary of RoBERTa-wwm-ext lacks, and the nearest that it has (our decision).
_PUNCTUATION = {"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "—": "-"}


def load_tokenizer(
    vocabulary: str, text_length: int, *, map_punctuation: bool = True, number_words: bool = False
) -> "Tokenizer":
    """Loads a BERT tokenizer that lower-cases and makes every Chinese character a word of its own.

    Args:
        vocabulary: a WordPiece vocab.txt, a folder that holds one, or a name on the Hugging Face hub.
        text_length: `l`, the number of tokens that every text is padded or cut to.
        map_punctuation: map quotation marks, ellipsis and dash that the vocabulary lacks to ASCII, instead of
            letting them become [UNK] as the published code does (our decision).
        number_words: training batches also say which tokens are one word.

    Raises:
        UserError: there is no such vocabulary, or it lacks a special token.
    """
    path = Path(vocabulary).expanduser()
    if path.is_dir():
        path = path / "vocab.txt"
    if path.is_file():
        backend = _from_file(path)
    elif path.suffix == ".txt" or not re.fullmatch(_HUB_NAME, vocabulary):
        raise UserError(
            f"vocabulary {path} does not exist; expected a WordPiece vocab.txt with one token a line. Set "
            "data.vocabulary to such a file, to a folder that holds one, or to a hub name"
        )
    else:
        backend = _from_hub(vocabulary)
    return Tokenizer(backend, text_length, vocabulary, map_punctuation, number_words)


def tokenizer_of(tokens: Sequence[str], text_length: int, *, map_punctuation: bool = True) -> "Tokenizer":
    """`load_tokenizer` of a vocabulary that is in memory: the tokens in the order of their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
        return load_tokenizer(str(path), text_length, map_punctuation=map_punctuation)


class Tokenizer:
    """Turns texts into padded token arrays; can be pickled, and called from several threads.

    Attributes:
        text_length: `l`.
        vocab_size: `v`, number of tokens in the vocabulary.
        numbers_words: whether `columns` says which tokens are one word.
        pad_id, unk_id, cls_id, sep_id, mask_id: the special tokens' numbers.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        text_length: int,
        vocabulary: str,
        map_punctuation: bool,
        number_words: bool,
    ) -> None:
        if text_length < 3:
            raise UserError(f"text_length is {text_length}; expected at least 3: CLS, one token, SEP")
        tokens = backend.get_vocab(with_added_tokens=False)
        absent = [token for token in SPECIAL_TOKENS if token not in tokens]
        if absent:
            raise UserError(
                f"vocabulary {vocabulary} has no {', '.join(absent)}; expected a WordPiece vocabulary with "
                f"{', '.join(SPECIAL_TOKENS)}. Use the vocab.txt that belongs to the text tower"
            )
        self.text_length, self.numbers_words = text_length, number_words
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (tokens[token] for token in SPECIAL_TOKENS)
        if map_punctuation:
            replaced = [normalizers.Replace(*pair) for pair in _PUNCTUATION.items() if pair[0] not in tokens]
            backend.normalizer = normalizers.Sequence([*replaced, backend.normalizer])
        self._backend = backend
        self._take_names_for_text()
        self._backend.enable_truncation(text_length)
        self._backend.enable_padding(length=text_length, pad_id=self.pad_id, pad_token="[PAD]")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._take_names_for_text()

    def _take_names_for_text(self) -> None:
        # A text that says "[SEP]" does not end there. The backend forgets this when it is pickled.
        self._backend.encode_special_tokens = True

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Numbers of the tokens that are no text: PAD, UNK, CLS, SEP, MASK."""
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens in the order of their numbers."""
        return tuple(self.tokens(range(self.vocab_size)))

    def backend(self) -> tokenizers.Tokenizer:
        """A copy without padding and cutting, for use beside ours; it maps punctuation as ours does."""
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        copy.encode_special_tokens = self._backend.encode_special_tokens
        copy.no_padding()
        copy.no_truncation()
        return copy

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises `t` texts.

        Returns:
            input_ids int32 [t l]: CLS, the text's tokens, SEP, padding; the end of a longer text is cut off.
            attention_mask bool [t l]: False on padding.
        """
        arrays = self._arrays(self._backend.encode_batch_fast(list(texts)))
        return arrays["input_ids"], arrays["attention_mask"]

    def columns(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What `t` texts are in a training batch.

        Returns:
            input_ids int32 [t l] and attention_mask bool [t l], as above, and, if words are numbered, word int32 [t l],
            as `word_numbers` gives it.
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


def _from_file(path: Path) -> tokenizers.Tokenizer:
    # Imported here because a process that decodes images never needs it, and told not to advise to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    try:
        return transformers.BertTokenizer(str(path)).backend_tokenizer
    except Exception as error:
        raise UserError(
            f"vocabulary {path} cannot be read ({error}); expected a WordPiece vocab.txt in UTF-8 with one token a line"
        ) from error


def _from_hub(name: str) -> tokenizers.Tokenizer:
    # Only the vocabulary is fetched: where a hub name is wrong, transformers makes up a tokenizer of five tokens.
    try:
        path = huggingface_hub.hf_hub_download(name, "vocab.txt")
    except Exception as error:
        raise UserError(
            f"vocabulary {name!r} is neither a file or folder here nor a model whose vocab.txt the Hugging "
            f"Face hub gave ({error}). Correct data.vocabulary, or download vocab.txt and name its path"
        ) from error
    return _from_file(Path(path))
