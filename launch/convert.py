"""Converts between published PyTorch checkpoints and ours.

`python launch/convert.py --input=r2d2_vitl.pth --output=models/r2d2_vitl`, and back with another `--output=....pth`.
"""

import logging
import sys
from pathlib import Path

import jax
from absl import app, flags

from r2d2_jax.convert.conversion import STUDENT, TEACHER, open_model, write_model, write_rest
from r2d2_jax.errors import UserError

INPUT = flags.DEFINE_string("input", None, "A published .pth or .safetensors, a converted folder, or a run's workdir.")
OUTPUT = flags.DEFINE_string("output", None, "A .pth or .safetensors in the published layout; else a folder of ours.")
WEIGHTS = flags.DEFINE_enum("weights", STUDENT, [STUDENT, TEACHER], "Which weights of a run.")
REST = flags.DEFINE_string("rest", None, "Also write a run's teacher, queue, optimizer and MLM head: a .safetensors.")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "The WordPiece vocab.txt of the model, to be kept with it.")
IMAGE_HEADS = flags.DEFINE_integer("image_heads", None, "Heads of the image tower; one per 64 channels if not given.")
TEXT_HEADS = flags.DEFINE_integer("text_heads", None, "Heads of text tower and cross encoders; likewise.")
flags.mark_flags_as_required(["input", "output"])


def main(_: list[str]) -> None:
    """Flags in, library calls out."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    jax.config.update("jax_platforms", "cpu")
    source, target = Path(str(INPUT.value)), Path(str(OUTPUT.value))
    try:
        vocabulary = Path(VOCABULARY.value) if VOCABULARY.value else None
        model = open_model(
            source,
            weights=WEIGHTS.value,
            image_heads=IMAGE_HEADS.value,
            text_heads=TEXT_HEADS.value,
            vocabulary=vocabulary,
        )
        write_model(model, target)
        if REST.value:
            write_rest(source, Path(REST.value))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{target}: {model.summary()}")


if __name__ == "__main__":
    app.run(main)
