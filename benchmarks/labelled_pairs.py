"""Makes labelled pairs for matching of photographs with captions: half true, half another photograph's caption.

    python benchmarks/labelled_pairs.py --annotations=captions.jsonl --images=photos --model=runs/flickr8k_cn \
        --output=pairs.jsonl

Every caption is used twice: with its own photograph (label 1) and with another one (label 0). Half of the wrong ones
are hard: one of the `--nearest` photographs whose embeddings are closest to the caption's; the others are drawn from
all. Photographs that have a caption of the same characters are never wrong ones. The lines are what
`launch/prepare_data.py --corpus=pairs` reads; splits stay as they are. All choices are our decision.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import r2d2_jax


def main() -> None:
    """Writes the pairs and prints how many there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help='Lines {"image", "captions", "split"}.')
    parser.add_argument("--images", type=Path, required=True, help="The folder of the photographs.")
    parser.add_argument("--model", required=True, help="A model whose dual encoder finds hard ones.")
    parser.add_argument("--output", type=Path, required=True, help="The file to write.")
    parser.add_argument("--captions", type=int, default=1, help="How many captions of a photograph are used.")
    parser.add_argument("--nearest", type=int, default=20, help="From how many hard ones one is drawn.")
    asked = parser.parse_args()
    lines = [json.loads(line) for line in asked.annotations.read_text(encoding="utf-8").splitlines()]
    model = r2d2_jax.load(asked.model, batch_size=256)
    rng = np.random.default_rng(0)
    written = 0
    with asked.output.open("w", encoding="utf-8") as file:
        for split in dict.fromkeys(line["split"] for line in lines):
            of_split = [line for line in lines if line["split"] == split]
            for pair in pairs(model, asked.images, of_split, asked.captions, asked.nearest, rng):
                file.write(json.dumps(pair | {"split": split}, ensure_ascii=False) + "\n")
                written += 1
    print(f"{written} pairs in {asked.output}")


def pairs(
    model: Any, images: Path, lines: list[dict[str, Any]], captions: int, nearest: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """The pairs of one split, a true one and a wrong one of each caption in turn."""
    image = model.encode_image([images / line["image"] for line in lines]).embed
    texts = [(row, text) for row, line in enumerate(lines) for text in line["captions"][:captions]]
    text = model.encode_text([text for _, text in texts]).embed
    photographs_with: dict[str, set[int]] = {}
    for row, line in enumerate(lines):
        for caption in line["captions"]:
            photographs_with.setdefault(caption, set()).add(row)
    for place, (row, caption) in enumerate(texts):
        right = list(photographs_with[caption])
        similarity = image @ text[place]
        similarity[right] = -np.inf
        closest = np.argsort(-similarity)[:nearest]
        wrong = rng.choice(closest if place % 2 else np.setdiff1d(np.arange(len(lines)), right))
        yield {"image": lines[row]["image"], "text": caption, "label": 1}
        yield {"image": lines[wrong]["image"], "text": caption, "label": 0}


if __name__ == "__main__":
    main()
