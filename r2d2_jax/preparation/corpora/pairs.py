"""Your own pairs of an image and a text that match or do not, in a folder and a JSON-lines file.

Each line describes one pair:

    {"image": "a.jpg", "text": "两只狗在路上打架。", "label": 1, "split": "train", "image_id": "42"}

"label" is 1 (match) or 0 (no match). "image", "split" and "image_id" are as in json_lines; an image may be in any
number of pairs, and its "image_id" must then be the same in all of them. A text in a list, "captions": ["..."], is read
as well.
"""

from pathlib import Path
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.labelled_pairs import MATCH_NAMES
from r2d2_jax.preparation.corpora.annotation_corpus import LineCorpus
from r2d2_jax.preparation.corpora.formats.fields import json_object, text_of, texts_of
from r2d2_jax.preparation.corpora.formats.lines import refuse_array
from r2d2_jax.preparation.corpora.json_lines import image_id_of
from r2d2_jax.preparation.examples import Annotation

EXPECTED = '{"image": "a.jpg", "text": "...", "label": 1, "split": "train"}'
_LABELS = {"0": 0, "1": 1}


def match_label(entry: dict[str, Any]) -> int:
    """The label of a pair, as a number or as text; raises UnusableRecord if it is neither 0 nor 1."""
    label = entry["label"]
    if isinstance(label, bool) or str(label) not in _LABELS:
        raise UnusableRecord(f'"label" is {label!r}; expected 1 (match) or 0 (no match)')
    return _LABELS[str(label)]


class Pairs(LineCorpus):
    """A folder of images and a JSON-lines file of labelled pairs."""

    name = "pairs"
    description = "Images with texts that match or do not, from a folder and a JSON-lines file."
    grouped = False
    class_names = MATCH_NAMES

    def check(self) -> None:
        """Checks that the file is not a JSON array."""
        super().check()
        for path in self.inputs():
            refuse_array(path, EXPECTED)

    def files(self) -> list[tuple[str, Path]]:
        """The one file; each line names its split."""
        return [("", self.annotations)]

    def parse(self, line: str) -> Annotation:
        """Reads one line."""
        try:
            entry = json_object(line, "image", "label", "split")
            text = _text(entry)
        except UnusableRecord as error:
            raise UnusableRecord(f"{error}; expected {EXPECTED}") from error
        return Annotation(
            text_of(entry, "image"), (text,), text_of(entry, "split"), image_id_of(entry), label=match_label(entry)
        )


def _text(entry: dict[str, Any]) -> str:
    if "text" in entry:
        return text_of(entry, "text")
    if "captions" not in entry:
        raise UnusableRecord('no "text"')
    texts = texts_of(entry, "captions")
    if len(texts) > 1:
        raise UnusableRecord(f"{len(texts)} captions for one label")
    return texts[0]
