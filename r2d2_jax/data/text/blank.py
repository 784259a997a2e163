"""Texts that say nothing."""

from tokenizers import normalizers

# What looks like nothing and yet is a letter or a symbol to BERT: the Hangul fillers and Braille's empty pattern.
_SPACE_OR_FILLER = " \u115f\u1160\u3164\uffa0\u2800"
_CLEANING = normalizers.BertNormalizer()


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: the tokenizer gives no token for it, or tokens of invisible letters alone.

    The tokenizer drops control, format and private characters, such as U+200B, U+FEFF and U+00AD, and combining marks,
    and splits at every kind of space.
    """
    # Nearly always the first character tells; cleaning a whole caption takes 15 microseconds.
    return not (_visible(text[:1]) or _visible(text))


def _visible(text: str) -> str:
    encodable = text.encode(errors="replace").decode()  # half a surrogate pair is damage, not a blank
    return _CLEANING.normalize_str(encodable).strip(_SPACE_OR_FILLER)
