"""Flickr30k-CNA (CCMB): Flickr30k with Chinese captions by professional translators, five an image.

    FOLDER/                                --annotations
        train/flickr30k_cna_train.txt
        val/flickr30k_cna_val.txt
        test/flickr30k_cn_test.txt         or flickr30k_cna_test.txt
    Flickr30k-images/6228559981.jpg        --images: Flickr30k's own folder

    6228559981<tab>一个孩子跑过喷泉。           train, val
    1007129816#zhm#0<tab>...                   test; also 1007129816.jpg#0

Folders and names are certain (the published code), but for the test file: users' downloads have cn, the code has cna.
The form of the training lines is certain (the page of the corpus), that of the test lines was seen only through others'
readers; both are read in every file. About 148,909, 5,000 and 5,000 lines.
"""

from pathlib import Path

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.annotation_corpus import LineCorpus
from r2d2_jax.preparation.corpora.formats.fields import as_text, columns
from r2d2_jax.preparation.corpora.zero import HOMEPAGE
from r2d2_jax.preparation.examples import Annotation


class Flickr30kCna(LineCorpus):
    """Captions, tab-separated, beside Flickr30k's images."""

    name = "flickr30k_cna"
    description = "Flickr30k-CNA: photographs with five Chinese captions each, by professional translators."
    homepage = HOMEPAGE

    def check(self) -> None:
        """Checks that all three files exist, the test file under one name only."""
        super().check()
        both = [path for path in self._test_files() if path.is_file()]
        if len(both) > 1:
            raise UserError(
                f"{' and '.join(map(str, both))} are both there; they are names of the same file, move one of them away"
            )

    def files(self) -> list[tuple[str, Path]]:
        """One file a split."""
        found = [(split, self.annotations / split / f"flickr30k_cna_{split}.txt") for split in ("train", "val")]
        usual, other = self._test_files()
        return [*found, ("test", other if other.is_file() else usual)]

    def parse(self, line: str) -> Annotation:
        """Reads a line of either form."""
        key, caption = columns(line, 2, "ID<tab>CAPTION or ID#zhm#N<tab>CAPTION")
        key = as_text(key, "the image's id")
        image = key.partition("#")[0].removesuffix(".jpg")
        return Annotation(
            f"{image}.jpg", (as_text(caption, "the caption"),), image_id=image, unique=key if "#" in key else ""
        )

    def _test_files(self) -> tuple[Path, Path]:
        folder = self.annotations / "test"
        return folder / "flickr30k_cn_test.txt", folder / "flickr30k_cna_test.txt"
