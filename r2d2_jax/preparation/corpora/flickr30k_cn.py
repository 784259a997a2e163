"""Flickr30k-CN (Lan, Li, Dong 2017): Flickr30k with Chinese captions, five an image.

    FOLDER/                                                      --annotations
        flickr30kzhbbosontrain/TextData/seg.flickr30kzhbbosontrain.caption.txt
        flickr30kzhbbosonval/TextData/seg.flickr30kzhbbosonval.caption.txt
        flickr30kzhmbosontest/TextData/seg.flickr30kzhmbosontest.caption.txt
    flickr30k-images/1000092795.jpg                              --images: Flickr30k's own folder

Training and validation (zhb) are machine translations, test (zhm) is translated by people. The text is segmented into
words; in test each has its part of speech:

    1000092795#zhb#0 两个 年轻人 在 院子 里
    1007129816#zhm#0 男人:n 戴:v 着:u 橙色:n 帽子:n

All of this is known only from others' readers, several of which agree. 29,783, 1,000 and 1,000 images.
The text is joined back: blanks between words go, except between two words of Latin letters or digits. One reader takes
double blanks in zhb for lost commas; that is not followed here. Chinese-CLIP's form of this set is read by
--corpus=chinese_clip.
"""

import re
from pathlib import Path

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.corpora.annotation_corpus import LineCorpus
from r2d2_jax.preparation.corpora.formats.fields import as_text
from r2d2_jax.preparation.examples import Annotation

_FOLDERS = {"train": "flickr30kzhbbosontrain", "val": "flickr30kzhbbosonval", "test": "flickr30kzhmbosontest"}
_LINE = re.compile(r"(?P<key>(?P<image>\w+)(?:\.jpg)?#(?P<language>zh[bm])#\d+)\s+(?P<words>\S.*)")
_PART_OF_SPEECH = re.compile(r":[A-Za-z_]+$")
_BLANK_OF_CHINESE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")


class Flickr30kCn(LineCorpus):
    """Segmented captions beside Flickr30k's images."""

    name = "flickr30k_cn"
    description = "Flickr30k-CN: photographs with five Chinese captions each, translated from English."
    homepage = "https://github.com/li-xirong/cross-lingual-cap"

    def files(self) -> list[tuple[str, Path]]:
        """One file a split."""
        return [
            (split, self.annotations / name / "TextData" / f"seg.{name}.caption.txt")
            for split, name in _FOLDERS.items()
        ]

    def parse(self, line: str) -> Annotation:
        """Reads a line and joins its words."""
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise UnusableRecord("not a caption; expected ID#zhb#N or ID#zhm#N, a blank, and words")
        words = match["words"].split()
        if match["language"] == "zhm":
            words = [_PART_OF_SPEECH.sub("", word) for word in words]
        image = match["image"]
        return Annotation(f"{image}.jpg", (as_text(joined(words), "the caption"),), image_id=image, unique=match["key"])


def joined(words: list[str]) -> str:
    """Joins the words of a segmented text."""
    return _BLANK_OF_CHINESE.sub("", " ".join(words))
