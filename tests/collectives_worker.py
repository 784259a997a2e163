"""Compiles the train step for eight devices and prints, as JSON, what its collectives move between them.

    python collectives_worker.py 8x1 2x4

One line for each mesh: {"all-gather 56 11 64": 1, ...}, the number of collectives of each kind and result shape in the
optimised program, of those alone that move rows of the batch. A row's share in an array can be told from the shape:
the global batch is 8 * 7, and nothing else has a size that 7 divides.
"""

import json
import re
import sys
from collections import Counter

import jax
from small_model import TOKENS, small_config

from r2d2_jax.config import MeshConfig
from r2d2_jax.sharding import make_mesh
from r2d2_jax.train.compiled import compile_train_step
from r2d2_jax.train.state import make_recipe

DEVICES, ROWS = 8, 7
COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)(?:-start)?\("
)
# Wider than a device's rows are many: XLA then finds it cheaper to move activations than kernels, if it may choose.
WIDE = {"width": 64, "layers": 2, "heads": 2, "mlp_width": 128}
CONFIG = small_config(
    {
        "model": {
            "image": {"image_size": 32, **WIDE},
            "text": {"vocabulary_size": 320, "text_length": 11, **WIDE},
            "cross": WIDE | {"layers": 3},
        },
        "train": {"batch_size": DEVICES * ROWS},
        "loss": {"queue_length": 80},
    }
)


def collectives_of_rows(program: str) -> Counter[str]:
    """Kind and result shape of every collective in an HLO text that moves rows of the batch, with its number."""
    found: Counter[str] = Counter()
    for results, kind in COLLECTIVE.findall(program):
        for shape in re.findall(r"\w+\[([\d,]+)\]", results):
            sizes = shape.split(",")
            if any(int(size) % ROWS == 0 for size in sizes):
                found[" ".join([kind, *sizes])] += 1
    return found


def main() -> None:
    """Meshes in, a line for each."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    for axes in sys.argv[1:]:
        mesh = make_mesh(MeshConfig(*map(int, axes.split("x"))))
        recipe = make_recipe(CONFIG, TOKENS, mesh, total_steps=10, epoch_steps=2)
        print(json.dumps(collectives_of_rows(compile_train_step(CONFIG, recipe).as_text())))


if __name__ == "__main__":
    main()
