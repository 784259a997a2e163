"""The reference values of the published implementation, from the folder named in R2D2_REFERENCE_DIR."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from r2d2_jax.convert.tensor_files import read_tensors
from r2d2_jax.convert.torch_r2d2 import from_published
from r2d2_jax.models.store import Model

FOLDER = Path(os.environ.get("R2D2_REFERENCE_DIR", Path(__file__).parents[1] / "../shared/reference/tiny"))
ABSENT = f"no reference values in {FOLDER}; name their folder in R2D2_REFERENCE_DIR"


def reference(name: str) -> dict[str, np.ndarray]:
    """The tensors of one file of the folder; skips where it is absent."""
    if not (FOLDER / name).exists():
        pytest.skip(ABSENT)
    return read_tensors(FOLDER / name)


def reference_model() -> Model:
    """`checkpoint.pth`, with the head counts that no shape tells."""
    tensors = reference("checkpoint.pth")
    sizes = json.loads((FOLDER / "sizes.json").read_text())
    return from_published(tensors, "checkpoint.pth", image_heads=sizes["vision_heads"], text_heads=sizes["text_heads"])
