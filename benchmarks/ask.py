"""How many images and texts a second a model encodes, and how many pairs it matches, on the devices at hand.

    python benchmarks/ask.py                  # ViT-B and ViT-L, random weights, float32
    python benchmarks/ask.py --models=vitl --batch_size=64 --dtype=bfloat16

Images are uint8 of the model's size, texts full. Medians of --repeats batches after one that compiles.
"""

import jax
import numpy as np
from absl import app, flags
from asking import SIZES, median, published_sizes, random_ranker

from r2d2_jax.config.model import ModelConfig

MODELS = flags.DEFINE_multi_enum("models", list(SIZES), list(SIZES), "Sizes of the published models.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images, texts or pairs of a forward.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the model computes in.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Batches that are timed.", lower_bound=1)


def main(_: list[str]) -> None:
    """Prints a line for each model."""
    for name in MODELS.value:
        found = rates(published_sizes(name, DTYPE.value), BATCH_SIZE.value, REPEATS.value)
        listed = ", ".join(f"{rate:.2f} {what}" for what, rate in found.items())
        print(f"{name}, {DTYPE.value}, {jax.devices()[0].device_kind}: {listed} a second", flush=True)


def rates(sizes: ModelConfig, batch_size: int, repeats: int) -> dict[str, float]:
    """Images and texts encoded and pairs matched in a second, by a model of random weights."""
    model, rng = random_ranker(sizes, batch_size), np.random.default_rng(0)
    side, length = sizes.image.image_size, sizes.text.text_length
    images = rng.integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    ids = rng.integers(0, sizes.text.vocabulary_size, (batch_size, length))
    mask = np.ones((batch_size, length), bool)
    image, text = model.encode_image(images, tokens=True), model.encode_text(ids, mask, tokens=True)
    seconds = {
        "images": median(lambda: model.encode_image(images), repeats),
        "texts": median(lambda: model.encode_text(ids, mask), repeats),
        "pairs": median(lambda: model.match_tokens(image.host_tokens, text.host_tokens, mask), repeats),
    }
    return {what: batch_size / time_of_one for what, time_of_one in seconds.items()}


if __name__ == "__main__":
    app.run(main)
