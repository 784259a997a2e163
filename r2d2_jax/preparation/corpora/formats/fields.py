"""Checked values of annotations: objects with the keys they need, texts, columns."""

import json
import re
from collections.abc import Sequence
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.text.blank import is_blank

_NO_TEXT = re.compile("[\\ud800-\\udfff\\0]")


def json_object(text: str, *keys: str) -> dict[str, Any]:
    """One JSON object that has all of `keys`.

    Raises:
        UnusableRecord: it is not an object, or lacks a key.
    """
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableRecord(f"invalid JSON ({error})") from error
    return with_keys(entry, *keys)


def with_keys(entry: Any, *keys: str) -> dict[str, Any]:
    """Returns the entry if it is an object with all of `keys`; raises UnusableRecord if not."""
    if not isinstance(entry, dict):
        raise UnusableRecord("not a JSON object")
    absent = [f'"{key}"' for key in keys if key not in entry]
    if absent:
        raise UnusableRecord(f"no {', '.join(absent)}")
    return entry


def text_of(entry: dict[str, Any], key: str) -> str:
    """The text under a key, stripped; raises UnusableRecord if it is blank or no text."""
    return as_text(entry[key], f'"{key}"')


def texts_of(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    """The texts of a list under a key; raises UnusableRecord if it is empty or holds anything else."""
    if not isinstance(entry[key], list) or not entry[key]:
        raise UnusableRecord(f'"{key}" is not a list with at least one text')
    return tuple(as_text(text, f'a text of "{key}"') for text in entry[key])


def chosen_texts(entry: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    """The texts under any of the keys, each a text or a list of texts; equal ones once, without empty ones.

    Floats are ignored: tables store NaN for missing text.

    Args:
        entry: may spell the keys in lower case.
        keys: the keys, in the order of the texts.

    Raises:
        UnusableRecord: there is no text at all, or a value is neither a text nor empty.
    """
    texts: dict[str, None] = {}
    numbers = []
    for key in keys:
        value = entry.get(key, entry.get(key.lower()))
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, float):
                numbers.append(key)
            elif text is not None and not (isinstance(text, str) and is_blank(text)):
                texts[as_text(text, f'"{key}"')] = None
    if not texts and numbers:
        raise UnusableRecord(f'"{numbers[0]}" is not a text')
    if not texts:
        raise UnusableRecord(f"no text in {', '.join(keys)}; there is {', '.join(map(str, entry)) or 'nothing'}")
    return tuple(texts)


def as_text(value: Any, what: str) -> str:
    """The value as a stripped text; `what` names it in the message. Whole numbers, as image ids often are, become text.

    Raises:
        UnusableRecord: it is no text, or blank, or contains half a surrogate pair or a NUL.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UnusableRecord(f"{what} is not a text")
    text = value.strip()
    if is_blank(text):
        raise UnusableRecord(f"{what} is empty")
    if _NO_TEXT.search(text):  # JSON can say \u0000, and \ud83d without its other half
        raise UnusableRecord(f"{what} has half a surrogate pair or a NUL in it")
    return text


def readable(name: str) -> str:
    """A file's name as valid text: bytes that are no UTF-8, such as GBK's, become \\xe9.

    Names that differ stay different, as they would not with replacement characters; our decision.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def columns(line: str, count: int, form: str) -> list[str]:
    """The tab-separated columns of a line.

    Raises:
        UnusableRecord: there are more or fewer than `count`; `form` shows what a line looks like.
    """
    cells = line.split("\t")
    if len(cells) != count:
        raise UnusableRecord(f"{len(cells)} tab-separated columns, expected {count}: {form}")
    return cells
