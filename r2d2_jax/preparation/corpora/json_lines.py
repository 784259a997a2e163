"""Your own images in a folder, with a JSON-lines file of captions.

Each line describes one image:

    {"image": "a.jpg", "captions": ["两只狗在路上打架。", "花狗和黑狗要打架。"], "split": "train", "image_id": "42"}

"image" is a path inside the image folder, "captions" has at least one text, "split" is train, validation (or val) or
another name of letters, digits and underscores with a Latin letter first, and "image_id" may be left out or null: it is
the image's path then. "text_ids" may say which text each caption is, as long as "captions", with null for a caption of
no other image: ["q17", null]. Captions of one id in different lines are one text with several right images.
"""

from pathlib import Path
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.annotation_corpus import LineCorpus
from r2d2_jax.preparation.corpora.formats.fields import as_text, json_object, text_of, texts_of
from r2d2_jax.preparation.corpora.formats.lines import begins_with, refuse_array
from r2d2_jax.preparation.examples import Annotation

_PARQUET = b"PAR1"
EXPECTED = '{"image": "a.jpg", "captions": ["..."], "split": "train"}'


class JsonLines(LineCorpus):
    """A folder of images and a JSON-lines file."""

    name = "json_lines"
    description = "Images with their captions, from a folder and a JSON-lines file."

    def check(self) -> None:
        """Checks that the file is not a JSON array."""
        super().check()
        for path in self.inputs():
            refuse_array(path, EXPECTED)
            if begins_with(path, _PARQUET):
                raise UserError(
                    f"{path} is a Parquet file; expected one object a line, like {EXPECTED}. For Parquet files of "
                    "images with texts use --corpus=huggingface with --images=FOLDER"
                )

    def files(self) -> list[tuple[str, Path]]:
        """The one file; each line names its split."""
        return [("", self.annotations)]

    def parse(self, line: str) -> Annotation:
        """Reads one line."""
        try:
            entry = json_object(line, "image", "captions", "split")
        except UnusableRecord as error:
            raise UnusableRecord(f"{error}; expected {EXPECTED}") from error
        captions = texts_of(entry, "captions")
        image = text_of(entry, "image")
        split, ids = text_of(entry, "split"), _text_ids(entry, captions)
        return Annotation(image, captions, split, image_id_of(entry), unique=image, text_ids=ids)


def image_id_of(entry: dict[str, Any]) -> str:
    """The identity that a line gives its image; "" if it is the image's path."""
    return "" if entry.get("image_id") is None else text_of(entry, "image_id")


def _text_ids(entry: dict[str, Any], captions: tuple[str, ...]) -> tuple[str, ...]:
    ids = entry.get("text_ids")
    if ids is None:
        return ()
    if not isinstance(ids, list) or len(ids) != len(captions):
        raise UnusableRecord(
            f'"text_ids" is not a list of {len(captions)} ids, one for each caption (null for a caption without one)'
        )
    return tuple("" if text_id is None else as_text(text_id, 'an id of "text_ids"') for text_id in ids)
