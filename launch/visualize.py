"""Draws where a model looks in a picture for the words of a sentence.

`python launch/visualize.py --checkpoint=runs/demo --image=photo.jpg --text=一只熊猫在吃竹子`
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import r2d2_jax
from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import opened, upright_rgb
from r2d2_jax.data.text.entities import entities, entity_in
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.evaluation.attention import AttentionMap, Reading, attention_maps, on_picture
from r2d2_jax.inputs import listed_texts
from r2d2_jax.launch.program import run
from r2d2_jax.paths import user_path
from r2d2_jax.plots.heat_maps import draw_heat_maps

logger = logging.getLogger(__name__)

LARGEST_SIDE = 800  # pixels of the picture in a panel


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Draws where a model looks in a picture for the words of a sentence.", allow_abbrev=False
    )
    model = "A run's workdir, a converted or transformers folder, or a published file."
    parser.add_argument("--checkpoint", required=True, help=model)
    parser.add_argument("--image", required=True, help="An image file.")
    parser.add_argument("--text", required=True, help="A sentence about it.")
    parser.add_argument("--entity", nargs="+", help="Words of the text; by default each thing that it names.")
    parser.add_argument("--output", help="The PNG file; by default IMAGE.attention.png in this folder.")
    layer = "Of the cross encoder, from 1; by default the last, with --gradient_weighted the middle one."
    parser.add_argument("--layer", type=int, help=layer)
    reading = parser.add_mutually_exclusive_group()
    reading.add_argument(
        "--plain", action="store_true", help="Attention of the words as it is: neither masked nor compared with others."
    )
    reading.add_argument(
        "--gradient_weighted", action="store_true", help="Attention times its gradient of the match, as in Grad-CAM."
    )
    reading.add_argument(
        "--occlusion",
        action="store_true",
        help="No attention: how much less probable the words are once a patch is covered. One forward for each patch.",
    )
    parser.add_argument("--vocabulary", help="The model's vocab.txt, where it came without one.")
    parser.add_argument("--weights", default="student", choices=["student", "teacher"], help="Which weights of a run.")
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the picture with a heat map for each entity, and prints the file's name; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> None:
    asked = parsed(arguments)
    output = _output(asked)
    found = _maps(asked)
    picture = _picture(asked.image)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    heat = [on_picture(each.patches, picture.height, picture.width) for each in found]
    titles = [_title(each) for each in found]
    print(draw_heat_maps(np.asarray(picture), heat, titles, asked.text, output))


def _title(found: AttentionMap) -> str:
    return found.entity.text + ("" if found.cls_share is None else f"\nCLS {100 * found.cls_share:.0f} %")


def _output(asked: argparse.Namespace) -> Path:
    """The file to write, checked before any work is done."""
    if asked.output is not None and (not asked.output or "://" in asked.output):
        raise UserError(f"--output is {asked.output!r}; expected a local PNG file")
    output = user_path(asked.output) if asked.output else Path(f"{Path(asked.image).stem}.attention.png")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output is {asked.output}; expected a name that ends in .png")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent} for --output={asked.output}; make it or name another")
    return output


def _maps(asked: argparse.Namespace) -> list[AttentionMap]:
    (text,) = listed_texts(asked.text)
    wanted = [entity_in(text, words) for words in asked.entity] if asked.entity else entities(text)
    if not wanted:
        raise UserError(f"the segmenter finds no thing in the text {text!r}; say which words with --entity")
    model = r2d2_jax.load(asked.checkpoint, vocabulary=asked.vocabulary, weights=asked.weights)
    logger.info("looking for %s", "、".join(entity.text for entity in wanted))
    return attention_maps(model, asked.image, [text] * len(wanted), wanted, _reading(asked), asked.layer)


def _reading(asked: argparse.Namespace) -> Reading:
    if asked.occlusion:
        return Reading.OCCLUSION
    if asked.gradient_weighted:
        return Reading.GRADIENT_WEIGHTED
    return Reading.PLAIN if asked.plain else Reading.RELATIVE


def _picture(path: str) -> Image.Image:
    """The picture upright in its own shape; the model has read the same file before."""
    try:
        with opened(user_path(path).read_bytes()) as image:
            return upright_rgb(image)
    except (OSError, UnusableRecord) as error:
        raise UserError(f"image {path}: {first_line(error)}; name a complete image file") from error


if __name__ == "__main__":
    sys.exit(main())
