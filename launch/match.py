"""How well texts match images.

`python launch/match.py --model=models/r2d2_vitl --image=photo.jpg --text 乔丹投篮 乔丹运球`
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

import r2d2_jax
from r2d2_jax.inference import Ranker
from r2d2_jax.launch.program import run


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="How well texts match images.", allow_abbrev=False)
    model = "A published file, a converted or transformers folder, or a run's workdir."
    parser.add_argument("--model", required=True, help=model)
    parser.add_argument("--image", required=True, nargs="+", help="One image file or several.")
    parser.add_argument("--text", required=True, nargs="+", help="One text or several.")
    parser.add_argument("--vocabulary", help="The model's vocab.txt, where it came without one.")
    parser.add_argument("--weights", default="student", choices=["student", "teacher"], help="Which weights of a run.")
    parser.add_argument("--image_heads", type=int, help="Of a published file of unusual sizes.")
    parser.add_argument("--text_heads", type=int, help="Likewise: text tower and cross encoders.")
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints match probability and cosine of every image with every text, the best match of each image first.

    Returns the exit status.
    """
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> None:
    asked = parsed(arguments)
    model = r2d2_jax.load(
        asked.model,
        vocabulary=asked.vocabulary,
        weights=asked.weights,
        image_heads=asked.image_heads,
        text_heads=asked.text_heads,
    )
    print(table(model, asked.image, asked.text))


def table(model: Ranker, images: list[str], texts: list[str]) -> str:
    """Match probability, where the model has cross encoders, and cosine of every image with every text."""
    scores = model.score_all(images, texts)
    best = scores.cosine if scores.match is None else scores.match
    lines = []
    for row, image in enumerate(images):
        lines.append(image)
        for column in np.argsort(-best[row]):
            match = "" if scores.match is None else f"match {scores.match[row, column]:.4f}  "
            lines.append(f"  {match}cosine {scores.cosine[row, column]:+.4f}  {texts[column]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
