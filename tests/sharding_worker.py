"""What eight devices do, for `test_sharding.py`: one JSON line for each mesh.

    python sharding_worker.py 8x1 2x4

"collectives": {"all-gather 56 48": 4, ...}, the number of collectives of each kind and result shape in the optimised
train step, of those alone that move rows of the batch. That a shape has rows can be told from its sizes: the global
batch is 8 * 7, and nothing else has a size that 7 divides.
"masks": arrays of that program as large as a mask of dropout, "u32[21,2,17,9]": with one device's rows, and with all.
"whole_words": texts of which `mask_words` masks words, and how many collectives it has beyond those of `mask_tokens`.
"rows_of_all_devices": rows that it takes for each of `draws`, and the gradient of their weighted sum; "rows_in_pieces":
the same, with columns in pieces of two sizes; "kinds_in_pieces": the kinds of collectives that it has.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from small_model import TOKENS, small_config, small_rows, small_words

from r2d2_jax import sharding
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.losses.masked_lm import mask_tokens, mask_words
from r2d2_jax.planning.hlo import parse
from r2d2_jax.planning.traffic import KINDS
from r2d2_jax.sharding import batch_sharding, rows_of_all_devices
from r2d2_jax.train.plan import step_plan

DEVICES, ROWS = 8, 7
PIECE = 200  # bytes; of 24 rows of float32 these are two columns for a device, which has three
# Wider than a device's rows are many: XLA then finds it cheaper to move activations than kernels, if it may choose.
WIDE = {"width": 64, "layers": 2, "heads": 2, "mlp_width": 128}
CONFIG = small_config(
    {
        "model": {
            "image": {"image_size": 32, **WIDE},
            "text": {"vocabulary_size": 320, "text_length": 11, "dropout": 0.1, **WIDE},
            "cross": WIDE | {"layers": 3, "dropout": 0.1},
        },
        "train": {"batch_size": DEVICES * ROWS},
        "loss": {"queue_length": 80},
    }
)


def collectives(program: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields kind and shape of every array that a collective of an HLO text makes, loops not multiplied out."""
    for computation in parse(program).computations.values():
        for instruction in computation.instructions.values():
            if (kind := instruction.opcode.removesuffix("-start")) in KINDS:
                yield from ((kind, shape.dims) for shape in instruction.shapes)


def collectives_of_rows(program: str) -> Counter[str]:
    """Kind and result shape of every collective in an HLO text that moves rows of the batch, with its number."""
    found = ((kind, shape) for kind, shape in collectives(program) if any(size % ROWS == 0 for size in shape))
    return Counter(" ".join([kind, *map(str, shape)]) for kind, shape in found)


def masks(program: str) -> dict[str, list[str]]:
    """Arrays of several tokens or heads for each row, of pairs or of triples: what dropout draws for them."""
    arrays = sorted(set(re.findall(r"\b\w+\[\d+(?:,\d+)+\]", program)))

    def with_rows(rows: int) -> list[str]:
        shape = re.compile(rf"\w+\[({rows}|{3 * rows}),([2-9]|\d\d+),\d+(,\d+)?\]")
        return [array for array in arrays if shape.fullmatch(array)]

    return {"own": with_rows(ROWS), "all": with_rows(DEVICES * ROWS)}


def taken(mesh: Mesh) -> tuple[jax.stages.Compiled, list[tuple[jax.Array, jax.Array]]]:
    """A program that takes rows of a random array, with the gradient of their weighted sum, and its `draws`."""
    rows, (values, weights) = batch_sharding(mesh), np.random.default_rng(0).normal(size=(2, 24, 3, 7))

    @partial(jax.grad, has_aux=True)
    def weighted(values: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = rows_of_all_devices(values, index, mesh)
        return jnp.sum(found * weights), found

    inputs = [(jax.device_put(values.astype(np.float32), rows), jax.device_put(index, rows)) for index in draws()]
    return jax.jit(weighted).lower(*inputs[0]).compile(), inputs


def rows_taken(mesh: Mesh) -> list[dict[str, Any]]:
    """The rows of each of `draws`, and the gradient of their weighted sum."""
    program, inputs = taken(mesh)
    return [
        {"rows": np.asarray(rows).tolist(), "gradient": np.asarray(gradient).tolist()}
        for gradient, rows in (program(*of_draw) for of_draw in inputs)
    ]


def draws() -> list[np.ndarray]:
    """Which of 24 rows are wanted: any, all the same one, a few, and each once in the reverse order."""
    rng = np.random.default_rng(1)
    wanted = [rng.integers(0, 24, 24), np.full(24, 23), rng.integers(6, 9, 24), np.arange(24)[::-1]]
    return [index.astype(np.int32) for index in wanted]


def whole_words(mesh: Mesh) -> dict[str, Any]:
    """Texts split over the devices, with words masked."""
    rows = small_rows(0, 24)
    maskable = rows["attention_mask"] & ~np.isin(rows["input_ids"], [TOKENS.cls_id, TOKENS.sep_id])
    texts = [jax.device_put(part, batch_sharding(mesh)) for part in (rows["input_ids"], maskable, small_words(0, 24))]
    key = jax.random.key(0)

    def compiled(function: Any, *inputs: jax.Array) -> jax.stages.Compiled:
        masked = jax.jit(lambda key, *inputs: function(key, *inputs, TOKENS.mask_id, 0.15).input_ids)
        return masked.lower(key, *inputs).compile()

    words, tokens = compiled(mask_words, *texts), compiled(mask_tokens, *texts[:2])
    more = len(list(collectives(words.as_text()))) - len(list(collectives(tokens.as_text())))
    return {"input_ids": np.asarray(words(key, *texts)).tolist(), "more_collectives": more}


def main() -> None:
    """Meshes in, a line for each."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    for axes in sys.argv[1:]:
        plan = step_plan(CONFIG, jax.devices(), MeshConfig(*map(int, axes.split("x"))))
        program, mesh = plan.compiled().as_text(), plan.mesh
        found = {"collectives": collectives_of_rows(program), "rows_of_all_devices": rows_taken(mesh)}
        with mock.patch.object(sharding, "EXCHANGED_BYTES", PIECE):
            found["rows_in_pieces"] = rows_taken(mesh)
            found["kinds_in_pieces"] = sorted({kind for kind, _ in collectives(taken(mesh)[0].as_text())})
        found["masks"] = masks(program)
        print(json.dumps(found | {"whole_words": whole_words(mesh)}))


if __name__ == "__main__":
    main()
