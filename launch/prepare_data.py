"""Prepares a dataset from a folder of images and a JSON-lines file, or makes the demonstration data.

    python launch/prepare_data.py --images=photos --annotations=captions.jsonl --vocabulary=vocab.txt --output=data/mine
    python launch/prepare_data.py --demo --output=data/demo
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from r2d2_jax.data.sources import Preparation, prepare_dataset
from r2d2_jax.data.synthetic import write_demonstration
from r2d2_jax.errors import UserError

_IMAGES = flags.DEFINE_string("images", "", "Folder of the images.")
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", "", 'JSON-lines file with lines like {"image": "a.jpg", "captions": ["..."], "split": "train"}.')
_OUTPUT = flags.DEFINE_string("output", "", "Folder to hold the dataset.")
_VOCABULARY = flags.DEFINE_string("vocabulary", "", "A WordPiece vocab.txt to copy beside the dataset.")
_SHARDS = flags.DEFINE_integer("shards", 1, "Number of files a split.")
_MAX_BROKEN_SHARE = flags.DEFINE_float("max-broken-share", 0.01, "Largest tolerated share of unusable lines.")
_DEMO = flags.DEFINE_bool("demo", False, "Draw the demonstration data instead of reading images.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the demonstration data.")


def main(arguments: Sequence[str]) -> None:
    """Checks the flags, prepares, and prints what was written."""
    try:
        if len(arguments) > 1:
            raise UserError(f"unknown argument {arguments[1]!r}; every setting is a flag, like --output=FOLDER")
        print(_prepare())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _prepare() -> str:
    if not _OUTPUT.value:
        raise UserError("--output is not set; name the folder that is to hold the dataset")
    if _DEMO.value:
        return Preparation(tuple(write_demonstration(_OUTPUT.value, _SEED.value))).table()
    if not _IMAGES.value or not _ANNOTATIONS.value:
        raise UserError("--images and --annotations are not both set; set them, or --demo for the demonstration data")
    preparation = prepare_dataset(
        _IMAGES.value,
        _ANNOTATIONS.value,
        _OUTPUT.value,
        vocabulary=_VOCABULARY.value,
        shards=_SHARDS.value,
        max_broken_share=_MAX_BROKEN_SHARE.value,
    )
    return preparation.table()


if __name__ == "__main__":
    app.run(main)
