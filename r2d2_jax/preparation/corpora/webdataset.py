"""One's own images and texts in tars, as WebDataset and img2dataset write them.

    FOLDER/
        00000.tar  00001.tar  ...         the training split
        validation/00000.tar  ...         any other split, in a folder of its name

Tars may be compressed (.tar.gz, .tgz, .tar.bz2, .tar.xz). Each sample is an image and a text, as consecutive files of
one name:

    000000000.jpg   000000000.txt         a caption
    000000001.png   000000001.json        {"caption": "两只狗在路上打架。"} or {"captions": ["...", "..."]}

Texts are taken from the .txt and from the fields text, caption and captions of the .json, or from --text_fields ("txt"
is the .txt). An image's identity is the field image_id, if there is one, otherwise ARCHIVE#KEY: keys need not be unique
over all archives. This is the published format of WebDataset, read by its rules; files with other extensions are
skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.archive_corpus import ArchiveCorpus
from r2d2_jax.preparation.corpora.corpus import SPLIT_ALIASES, split_problem
from r2d2_jax.preparation.corpora.formats.fields import as_text
from r2d2_jax.preparation.corpora.formats.parquet import parquet_files
from r2d2_jax.preparation.corpora.formats.samples import Found
from r2d2_jax.preparation.corpora.formats.tars import TAR_SUFFIXES, tar_samples


class WebDataset(ArchiveCorpus):
    """Tars of images with texts."""

    name = "webdataset"
    description = "Images with their texts, from tars."
    default_text_fields = ("txt", "text", "caption", "captions")

    def check(self) -> None:
        """Checks that there are tars, in folders whose names can name a split."""
        super().check()
        archives = self.archives()
        for split in archives:
            if problem := split_problem(split):
                raise UserError(f"folder {self.images}/{split} holds tars, but {problem}")
        if not archives:
            hint = ". For its Parquet files use --corpus=huggingface" if parquet_files(self.images) else ""
            raise UserError(
                f"{self.images} holds no tar ({', '.join(TAR_SUFFIXES)}), nor does a folder in it; "
                f"expected FOLDER/00000.tar for the training split and FOLDER/SPLIT/00000.tar for others{hint}"
            )

    def archives(self) -> dict[str, list[Path]]:
        """The tars in the folder itself, then those in its subfolders."""
        found: dict[str, list[Path]] = {"train": _tars(self.images)}
        for folder in sorted(path for path in self.images.glob("*") if path.is_dir()):
            found.setdefault(SPLIT_ALIASES.get(folder.name, folder.name), []).extend(_tars(folder))
        return {split: tars for split, tars in found.items() if tars}

    def samples(self, archive: Path) -> Iterator[Found]:
        """The samples of a tar."""
        return tar_samples(archive)

    def image_id(self, archive: Path, key: str, fields: dict[str, Any]) -> str:
        """The field image_id, else the sample's place."""
        if fields.get("image_id") is not None:
            return as_text(fields["image_id"], '"image_id"')
        return f"{self.name_in_corpus(archive)}#{key}"


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.endswith(TAR_SUFFIXES) and path.name[0] != ".")
