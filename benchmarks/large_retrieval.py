"""Retrieval of large galleries within a memory limit: peak memory, time, what is computed twice, what a kill loses.

    python benchmarks/large_retrieval.py --part=nearest                        # cosines and top k of 5,000 x 25,000
    python benchmarks/large_retrieval.py --part=pairs --sizes=64x128,128x256   # a child process for each size
    python benchmarks/large_retrieval.py --part=kill --sizes=64x128            # SIGKILL in the middle, and start again
    python benchmarks/large_retrieval.py --part=plan --memory_limit=8          # what 5,000 x 25,000 would need

Models have random weights and the widths of the published ones, images and texts are random, and the ground truth is
random too: costs depend on none of these. `--layers` makes towers and cross encoders shallower and leaves all sizes of
tokens as they are. `--memory_limit` is in GiB; without one the smallest that is possible is taken, so that everything
is done in blocks. The peak is that of the whole child process, as the kernel counts it.
"""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from asking import SIZES, published_sizes

from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.convert.naming import our_shapes
from r2d2_jax.evaluation import gallery, retrieval
from r2d2_jax.evaluation.gallery import Gallery
from r2d2_jax.evaluation.ground_truth import DIRECTIONS, GroundTruth
from r2d2_jax.evaluation.memory import plan_memory, retrieval_needs, smallest_limit
from r2d2_jax.evaluation.nearest import nearest
from r2d2_jax.evaluation.retrieval import RetrievalSettings, evaluate_retrieval
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.models.r2d2 import R2D2, abstract_params
from r2d2_jax.sharding import make_mesh, state_shardings
from r2d2_jax.trees import nested

GIB = 2**30

PART = flags.DEFINE_enum("part", "nearest", ["nearest", "pairs", "kill", "plan", "child"], "What is measured.")
GALLERY = flags.DEFINE_string("gallery", "5000x25000", "Images x texts of the parts nearest and plan.")
GALLERIES = flags.DEFINE_list("sizes", ["32x64", "64x128"], "Images x texts of the other parts.")
MODEL = flags.DEFINE_enum("model", "vitl", SIZES, "Whose widths the model has.")
LAYERS = flags.DEFINE_integer("layers", 0, "Layers of each tower and cross encoder; 0 for the published ones.")
RERANK = flags.DEFINE_integer("rerank", 128, "Candidates per query.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 8, "Images, texts or pairs of a forward.", lower_bound=1)
BLOCK = flags.DEFINE_integer("batches_per_block", gallery.BATCHES_PER_BLOCK, "Batches of a finished block.")
LIMIT = flags.DEFINE_float("memory_limit", None, "GiB; by default the smallest that is possible.")
WORK = flags.DEFINE_string("work", None, "Folder of finished blocks, of a child.")


def main(_: list[str]) -> None:
    """Prints what was measured."""
    if PART.value == "child":
        print(json.dumps(child(*sizes(GALLERIES.value[0]))), flush=True)
    elif PART.value == "nearest":
        measure_nearest(*sizes(GALLERY.value))
    elif PART.value == "plan":
        print_plan(*sizes(GALLERY.value))
    else:
        for size in GALLERIES.value:
            (measure_pairs if PART.value == "pairs" else measure_kill)(size)


def sizes(text: str) -> tuple[int, int]:
    """Images and texts of "5000x25000"."""
    images, texts = map(int, text.split("x"))
    return images, texts


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- cosines and top k ----------------------------------------------------------------------------------------------


def measure_nearest(images: int, texts: int) -> None:
    """Both directions with random embeddings of the published size."""
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((count, 768), np.float32) for count in (images, texts))
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    truth, mesh = random_truth(images, texts), make_mesh(MeshConfig())
    before = peak_bytes()
    for direction in DIRECTIONS:
        start = time.perf_counter()
        found = nearest(direction, truth, image, text, RERANK.value, mesh)
        seconds, more = time.perf_counter() - start, (peak_bytes() - before) / GIB
        print(
            f"{direction}: {len(found.queries)} queries x {truth.candidates(direction)} candidates, the best "
            f"{found.candidates.shape[1]} of each: {seconds:.1f} s; peak memory rose by {more:.2f} GiB, the matrix has "
            f"{images * texts * 4 / GIB:.2f}",
            flush=True,
        )


def random_truth(images: int, texts: int) -> GroundTruth:
    """Every text belongs to a random image."""
    owner = np.random.default_rng(1).integers(0, images, texts)
    return GroundTruth(images, texts, np.stack([owner, np.arange(texts)], axis=1))


# --- what a large one would need ------------------------------------------------------------------------------------


def print_plan(images: int, texts: int) -> None:
    """What is planned for galleries of this size; the forwards are compiled, and no parameters are made."""
    config = chosen_sizes()
    model, mesh = R2D2(config, masked_lm=False), make_mesh(MeshConfig())
    shapes = abstract_params(model)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        state_shardings(shapes, mesh),
    )
    split: Any = RandomSplit(config, images, texts)
    candidates = images * min(RERANK.value, texts) + texts * min(RERANK.value, images)
    needs = retrieval_needs(Scorer(model, mesh, BATCH.value).encoder, config, params, split, candidates, measured=True)
    least = smallest_limit(needs)
    plan = plan_memory(needs, least if LIMIT.value is None else int(LIMIT.value * GIB))
    blocks = -(-images // plan.images)
    print(
        f"{images} x {texts}, GiB: {listed(needs.fixed)}; the smallest limit is {gib(least)}, all tokens are "
        f"{gib(needs.tokens)}\n  within {LIMIT.value or least / GIB:.2f}: blocks of {plan.images} images and "
        f"{plan.texts} texts; at most {candidates} pairs, and again {images} images and {blocks * texts} texts"
    )


def gib(value: float | None) -> str:
    """A number of bytes in GiB."""
    return "unknown" if value is None else f"{value / GIB:.2f}"


def listed(needs: dict[str, int]) -> str:
    """What needs how much."""
    return ", ".join(f"{name} {gib(size)}" for name, size in needs.items())


# --- a whole evaluation, in a child ---------------------------------------------------------------------------------


class RandomSplit:
    """Random pixels and token ids; a picture is a function of its number."""

    def __init__(self, config: ModelConfig, images: int, texts: int) -> None:
        rng = np.random.default_rng(0)
        self.num_images, self._side = images, config.image.image_size
        self.image_ids = self.picture_checksums = [str(number) for number in range(images)]
        self.input_ids = rng.integers(0, config.text.vocabulary_size, (texts, config.text.text_length), np.int32)
        self.attention_mask = np.ones_like(self.input_ids, bool)
        self.captions = [str(number) for number in range(texts)]
        self.pairs = random_truth(images, texts).pairs.astype(np.int32)

    def image_batches(
        self, batch_size: int, own: np.ndarray | None = None, images: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """As an `EvaluationSplit` gives them."""
        chosen = np.arange(self.num_images) if images is None else images
        shape = (self._side, self._side, 3)
        for start in range(0, len(chosen), batch_size):
            batch = np.zeros((batch_size, *shape), np.uint8)
            for row, number in enumerate(chosen[start : start + batch_size]):
                batch[row] = np.random.default_rng(int(number)).integers(0, 256, shape, np.uint8)
            yield batch


def chosen_sizes() -> ModelConfig:
    """The published sizes, with fewer layers if asked."""
    sizes = published_sizes(MODEL.value, "float32")
    if not LAYERS.value:
        return sizes
    parts = {
        part: dataclasses.replace(getattr(sizes, part), layers=LAYERS.value) for part in ("image", "text", "cross")
    }
    return dataclasses.replace(sizes, **parts)


def child(images: int, texts: int) -> dict[str, Any]:
    """Evaluates once and says what it took."""
    gallery.BATCHES_PER_BLOCK = BLOCK.value
    config, rng = chosen_sizes(), np.random.default_rng(0)
    scorer = Scorer(R2D2(config, masked_lm=False), make_mesh(MeshConfig()), BATCH.value)
    place = lambda shape: 0.02 * rng.standard_normal(shape, np.float32)  # noqa: E731
    shapes = {path: shape for path, shape in our_shapes(config).items() if not path[0].startswith("masked_lm")}
    params = scorer.encoder.placed(nested({path: place(shape) for path, shape in shapes.items()}))
    split: Any = RandomSplit(config, images, texts)
    candidates = images * min(RERANK.value, texts) + texts * min(RERANK.value, images)
    needs = retrieval_needs(scorer.encoder, config, params, split, candidates, measured=True)
    limit = smallest_limit(needs) if LIMIT.value is None else int(LIMIT.value * GIB)
    plan, loaded = plan_memory(needs, limit), peak_bytes()
    seconds = {name: timed(Gallery, name) for name in ("__init__", "match", "_encode")}
    seconds["nearest"] = timed(retrieval, "nearest")
    work = Path(WORK.value) if WORK.value else None
    settings = RetrievalSettings(rerank=RERANK.value, memory_limit=limit, work=work)
    report = evaluate_retrieval(scorer, params, split, settings)
    again = {"images": report.forwards["images"] - images, "texts": report.forwards["texts"] - texts}
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "limit": limit,
        "needs": needs.fixed,
        "all tokens": needs.tokens,
        "plan": f"{plan.images} images, {plan.texts} texts, {plan.keep.name}",
        "peak": peak_bytes(),
        "loaded": loaded,
        "device peak": stats.get("peak_bytes_in_use"),
        "forwards": report.forwards,
        "again": again,
        "seconds": {name: sum(spent) for name, spent in seconds.items()},
        "recall": [report.dual, report.cross, report.reranked],
    }


def timed(owner: Any, name: str) -> list[float]:
    """Replaces a function by one that also appends the seconds of each call to what is returned."""
    function: Callable[..., Any] = getattr(owner, name)
    spent: list[float] = []

    def measured(*inputs: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*inputs, **named)
        finally:
            spent.append(time.perf_counter() - start)

    setattr(owner, name, measured)
    return spent


def start_child(size: str, work: Path | None = None) -> subprocess.Popen[str]:
    """This program once more, as `child`, with the same flags."""
    flags_of = (MODEL, LAYERS, RERANK, BATCH, BLOCK, LIMIT)
    given = [f"--{flag.name}={flag.value}" for flag in flags_of if flag.value is not None]
    command = [
        sys.executable,
        __file__,
        "--part=child",
        f"--sizes={size}",
        *given,
        *([f"--work={work}"] if work else []),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a child has said."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the child ended with status {process.returncode}")
    return dict(json.loads(output.splitlines()[-1]))


def measure_pairs(size: str) -> None:
    """Peak memory beside its limit, and where the time goes."""
    found = result(start_child(size))
    seconds, forwards = found["seconds"], found["forwards"]
    again = max(0.0, seconds["_encode"] - seconds["__init__"])
    scored = seconds["match"] - again
    lines = [
        f"{size}: limit {gib(found['limit'])} GiB, peak {gib(found['peak'])}, before the evaluation "
        f"{gib(found['loaded'])}, on the device {gib(found['device peak'])}",
        f"  planned: {listed(found['needs'])}; all tokens together are {gib(found['all tokens'])}",
        f"  blocks of {found['plan']}; embeddings {seconds['__init__']:.1f} s, top k {seconds['nearest']:.2f} s",
        f"  {forwards['pairs']} pairs {scored:.1f} s, {forwards['pairs'] / scored:.1f} a second; tokens again "
        f"{again:.1f} s, {again / (again + scored + seconds['__init__']):.0%} of all, for {found['again']['images']} "
        f"images and {found['again']['texts']} texts",
    ]
    print("\n".join(lines), flush=True)


# --- a kill ---------------------------------------------------------------------------------------------------------


def measure_kill(size: str) -> None:
    """Kills a child once half of its blocks of pairs are done, and starts it again."""
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = result(start_child(size, Path(folder) / "undisturbed"))
        blocks = len(list((Path(folder) / "undisturbed").glob("pairs-*.npy")))
        work = Path(folder) / "killed"
        process = start_child(size, work)
        while process.poll() is None and len(list(work.glob("pairs-*.npy"))) < blocks // 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = sum(len(np.load(path)) for path in work.glob("pairs-*.npy"))
        again = result(start_child(size, work))
        same = all(
            path.read_bytes() == (work / path.name).read_bytes()
            for path in (Path(folder) / "undisturbed").glob("*.npy")
        )
    pairs, after = undisturbed["forwards"]["pairs"], again["forwards"]
    lines = [
        f"{size}: killed with {done} of {pairs} pairs done in {blocks // 2} of {blocks} blocks",
        f"  started again it scored {after['pairs']} pairs and encoded {after['images']} images and {after['texts']} "
        f"texts; the kill cost at most a block of {BLOCK.value * BATCH.value} pairs",
        f"  every block is {'' if same else 'NOT '}the undisturbed one bit by bit, and recall is "
        f"{'the same' if again['recall'] == undisturbed['recall'] else 'ANOTHER'}",
    ]
    print("\n".join(lines), flush=True)
    if not same or done + after["pairs"] != pairs or again["recall"] != undisturbed["recall"]:
        sys.exit("the restarted evaluation differs")


if __name__ == "__main__":
    app.run(main)
