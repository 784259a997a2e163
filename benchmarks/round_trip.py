"""Published -> ours -> published at the sizes of the published checkpoints: bitwise equal, how long, how much memory.

    python benchmarks/round_trip.py                    # R2D2 ViT-L
    python benchmarks/round_trip.py --model=vitb --format=safetensors

The checkpoint has random weights in the published layout. Each conversion is a process of its own, so that its peak
memory is its own. Needs 10 GiB of disk for ViT-L. Exit status 1 if a tensor differs.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.reading import model_config
from r2d2_jax.convert.naming import our_shapes, their_shape
from r2d2_jax.convert.tensor_files import read_tensors, write_tensors
from r2d2_jax.convert.torch_r2d2 import blank_unused, published_places

MODEL = flags.DEFINE_enum("model", "vitl", ["vitl", "vitb", "prd2"], "R2D2 ViT-L, R2D2 ViT-B, or PRD2 ViT-L.")
FORMAT = flags.DEFINE_enum("format", "pth", ["pth", "safetensors"], "Of the published files.")
PROGRAM = Path(__file__).resolve().parents[1] / "launch" / "convert.py"


def main(_: list[str]) -> None:
    """Writes a random checkpoint, converts it in and out, and compares."""
    config = sizes(MODEL.value)
    with tempfile.TemporaryDirectory() as folder:
        first, ours, last = (Path(folder) / name for name in (f"in.{FORMAT.value}", "ours", f"out.{FORMAT.value}"))
        write_tensors(first, random_tensors(config))
        seconds = [converted(first, ours), converted(ours, last)]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        different = differing(first, last)
        size = first.stat().st_size / 2**30
    print(
        f"{MODEL.value}, {size:.2f} GiB as {FORMAT.value}: in {seconds[0]:.0f} s, out {seconds[1]:.0f} s, "
        f"peak memory {peak:.1f} GiB, {len(different)} tensors differ"
    )
    sys.exit(1 if different else 0)


def sizes(name: str) -> ModelConfig:
    """The sizes of a published model."""
    image = presets.vit_base() if name == "vitb" else presets.vit_large()
    values: ConfigDict = presets.article_model(image)
    if name == "prd2":
        values.cross.layers = 0
    return model_config(values.to_dict())


def random_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """A published state dict with random numbers in every float tensor."""
    rng, shapes = np.random.default_rng(0), our_shapes(config)
    tensors = {
        name: rng.standard_normal(their_shape(place, shapes[place.path]), np.float32)
        for name, place in published_places(config).items()
    }
    for name, tensor in blank_unused(config).items():
        floating = tensor.dtype == np.float32
        tensors[name] = rng.standard_normal(tensor.shape, np.float32) if floating else tensor
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def converted(source: Path, target: Path) -> float:
    """Runs launch/convert.py and returns the seconds it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, PROGRAM, f"--input={source}", f"--output={target}"], check=True)
    return time.perf_counter() - start


def differing(first: Path, last: Path) -> list[str]:
    """Names of the tensors that are not the same in both files, bit by bit."""
    left, right = read_tensors(first), read_tensors(last)
    same = {
        name
        for name in left.keys() & right.keys()
        if left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
    }
    return sorted((left.keys() | right.keys()) - same)


if __name__ == "__main__":
    app.run(main)
