"""Tiny configurations of every variant, random batches, a tiny prepared dataset: for tests of whole steps and runs."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from small_data import encode, example

from r2d2_jax.arrays import Batch
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.config.tasks import LossConfig
from r2d2_jax.preparation.writer import write_dataset
from r2d2_jax.sharding import make_mesh, replicated, state_shardings
from r2d2_jax.tasks import build_task
from r2d2_jax.tasks.pretraining import PretrainingMemory
from r2d2_jax.tasks.task import SpecialTokens
from r2d2_jax.train.compiled import abstract_batch
from r2d2_jax.train.optimizer import make_optimizer
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import TrainState, abstract_state, init_state
from r2d2_jax.train.step import train_step

TOKENS = SpecialTokens(mask_id=4, cls_id=2, sep_id=3, pad_id=0)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL_TOKENS, *"只狗红球", *(f"{prefix}{digit}" for prefix in ("", "##") for digit in range(10)))
VOCABULARY_SIZE, TEXT_LENGTH, BATCH_SIZE, QUEUE_LENGTH = 32, 10, 8, 20
SPEED_KEYS = ("pairs_per_second", "data_wait_share")

BASE: dict[str, Any] = {
    "model": {
        "image": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_width": 32},
        "text": {
            "vocabulary_size": VOCABULARY_SIZE,
            "text_length": TEXT_LENGTH,
            "width": 16,
            "layers": 2,
            "heads": 2,
            "mlp_width": 32,
            "max_positions": 12,
        },
        "cross": {"layers": 2, "width": 16, "heads": 2, "mlp_width": 32},
        "embed_size": 16,
        "dtype": "float32",
    },
    "loss": {"queue_length": QUEUE_LENGTH},
    "data": {"directory": "somewhere"},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"batch_size": BATCH_SIZE, "epochs": 4.0, "log_every": 2, "checkpoint_every": 0, "evaluate_every": 0},
    "evaluation": {"rerank_candidates": 4, "batch_size": 8},
}
NO_CROSS: dict[str, Any] = {
    "loss": {"fgr": False, "mlm": False},
    "model": {"cross": {"layers": 0}},
    "evaluation": {"rerank_candidates": 0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "without_et": {"loss": {"enhanced_training": False}},
    "without_tgd": {"loss": {"contrastive": "gcpr"}},
    "without_fgd": {"loss": {"fgd": False}},
    "without_twd": {"loss": {"contrastive": "gcpr", "fgd": False}},
    "without_fgr": {"loss": {"fgr": False}, "evaluation": {"rerank_candidates": 0}},
    "prd2": NO_CROSS,
    "trainable_image": {"model": {"freeze_image_tower": False}},
}
# Fine-tuning for retrieval, with the block of pre-training's terms at its defaults, as it must be.
RETRIEVAL: dict[str, Any] = {"task": "retrieval", "loss": {"queue_length": LossConfig().queue_length}}
# With dropout, as the published fine-tuning has it.
DROPPED: dict[str, Any] = {"model": {"text": {"dropout": 0.1}, "cross": {"dropout": 0.1}}}
# Fine-tuning for matching, likewise.
MATCHING: dict[str, Any] = {**RETRIEVAL, "task": "matching"}
# GCPR alone: the variant that compiles fastest.
CHEAPEST: dict[str, Any] = {**NO_CROSS, "loss": {"fgr": False, "mlm": False, "fgd": False, "contrastive": "gcpr"}}


def small_config(*changes: Mapping[str, Any]) -> Config:
    """`BASE` with nested changes laid over it, resolved."""
    return Config.from_config_dict(ConfigDict(config_values(*changes)))


def config_values(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """`BASE` with nested changes laid over it."""
    values = copy.deepcopy(BASE)
    for change in changes:
        _lay_over(values, change)
    return values


def _lay_over(values: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping):
            _lay_over(values.setdefault(key, {}), value)
        else:
            values[key] = value


def small_plan(
    config: Config,
    total_steps: int = 100,
    epoch_steps: int = 4,
    mesh: Mesh | None = None,
    text_ids: bool | None = None,
) -> StepPlan:
    """Task and optimizer with the small vocabulary, on the first device alone unless there is a mesh."""
    mesh = mesh or make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    task = build_task(config, tokens=TOKENS, epoch_steps=epoch_steps, text_ids=text_ids)
    return StepPlan(task, make_optimizer(config.optimizer, total_steps), mesh, config.train.batch_size)


def small_words(seed: int, rows: int = BATCH_SIZE) -> np.ndarray:
    """Random numbers of words for `small_rows`: each token begins one or goes on with the one before."""
    begins = np.random.default_rng(seed).integers(0, 2, (rows, TEXT_LENGTH))
    return np.cumsum(begins, axis=1, dtype=np.int32) - begins[:, :1].astype(np.int32)


def small_rows(seed: int, rows: int = BATCH_SIZE, same_image: bool = False) -> dict[str, np.ndarray]:
    """Random rows of a batch: texts of all lengths between one token and the longest, every image another."""
    rng = np.random.default_rng(seed)
    length = rng.permutation(np.resize(np.arange(3, TEXT_LENGTH + 1), rows))[:, None]
    place = np.arange(TEXT_LENGTH)
    input_ids = rng.integers(5, VOCABULARY_SIZE, (rows, TEXT_LENGTH))
    input_ids = np.where(place == length - 1, TOKENS.sep_id, np.where(place < length, input_ids, TOKENS.pad_id))
    input_ids[:, 0] = TOKENS.cls_id
    return {
        "images": rng.integers(0, 256, (rows, 16, 16, 3)).astype(np.uint8),
        "input_ids": input_ids.astype(np.int32),
        "attention_mask": place < length,
        "image_id": np.full((rows, 2), 7, np.uint32)
        if same_image
        else rng.permutation(1000)[: 2 * rows].reshape(rows, 2).astype(np.uint32) + np.uint32(1000 * seed),
    }


def small_text_ids(seed: int, rows: int) -> np.ndarray:
    """Random identities of texts: every third text has none, and the others are of seven."""
    number = np.random.default_rng(seed).integers(1, 8, rows) * (np.arange(rows) % 3 > 0)
    return np.stack([number, 2 * number], axis=1).astype(np.uint32)


def small_labels(seed: int, rows: int = BATCH_SIZE) -> np.ndarray:
    """Random labels of `small_rows`, of both kinds."""
    return np.random.default_rng(seed + 1).permutation(np.resize([0, 1, 1], rows)).astype(np.int32)


def small_batch(seed: int, rows: int = BATCH_SIZE, same_image: bool = False) -> Batch:
    """`small_rows` on the device."""
    return Batch(**{name: jnp.asarray(value) for name, value in small_rows(seed, rows, same_image).items()})


def random_state(plan: StepPlan, seed: int = 0, step: int = 3, filled: int = 13) -> TrainState:
    """A state in the middle of a run, in NumPy: no two parameters alike, teacher unlike student, queue part filled."""
    shapes = jax.eval_shape(lambda key: init_state(plan.task, plan.optimizer, key), jax.random.key(0))
    params = oracles.random_parameters(shapes.params, seed, spread=0.2)
    params["temperature"] = np.float32(0.07)
    memory = shapes.memory
    return TrainState(
        step=np.int32(step),
        params=params,
        opt_state=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state),
        memory=memory if memory is None else _random_memory(memory, params, seed, filled),
    )


def _random_memory(memory: PretrainingMemory, params: dict[str, Any], seed: int, filled: int) -> PretrainingMemory:
    rng = np.random.default_rng(seed)
    teacher, queue, mean = memory.teacher, memory.queue, memory.feature_mean
    if teacher is not None:
        noise = oracles.random_parameters(teacher, seed + 1, spread=0.05)
        student = {part: params[part] for part in teacher}
        teacher = jax.tree.map(lambda s, n: np.float32(0.9 * s + n), student, noise)
    if queue is not None:
        length, embed_size = queue.image_embed.shape
        queue = queue.replace(
            image_embed=oracles.unit(rng.normal(size=(length, embed_size))).astype(np.float32),
            text_embed=oracles.unit(rng.normal(size=(length, embed_size))).astype(np.float32),
            image_id=rng.integers(10**6, 10**7, (length, 2)).astype(np.uint32),
            age=np.where(np.arange(length) < filled, rng.integers(0, 300, length), 0).astype(np.int32),
            valid=np.arange(length) < filled,
            head=np.int32(filled % length),
            text_id=None if queue.text_id is None else small_text_ids(seed, length),
        )
    return PretrainingMemory(
        teacher=teacher,
        queue=queue,
        feature_mean=None if mean is None else rng.normal(size=mean.shape).astype(np.float32),
    )


def compiled_step(plan: StepPlan) -> jax.stages.Compiled:
    """As `StepPlan.compiled`, without donation, so that a state can be used twice."""
    built = (plan.task, plan.optimizer, plan.mesh)
    state = abstract_state(*built)
    placement = (state_shardings(state, plan.mesh), replicated(plan.mesh))
    step = jax.jit(lambda state, batch, key: train_step(state, batch, key, *built), out_shardings=placement)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(state, abstract_batch(plan.task, plan.batch_size, plan.mesh), key).compile()


def saved_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of a run's newest checkpoint, by its path."""
    manager = ocp.CheckpointManager((workdir / "checkpoints").absolute())
    tree = manager.restore(manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    manager.close()
    return named_leaves(tree)


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Every array of a tree, by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def assert_bitwise_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """All leaves equal in name, dtype and every bit."""
    assert left.keys() == right.keys()
    same = lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes()  # noqa: E731
    different = [name for name in left if not same(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} leaves differ: {different[:5]}"


def write_small_dataset(folder: Path, train: int = 28, *, broken: Sequence[int] = (), shards: int = 1) -> Path:
    """Training, validation (two captions an image) and foil records, and the vocabulary.

    The images of the training records `broken` cannot be decoded.
    """
    splits = {"train": range(train), "validation": range(100, 110), "swapped": range(200, 204)}
    record = lambda number: example(number, image=encode()[:-200] if number in broken else None)  # noqa: E731
    write_dataset(folder, {name: map(record, numbers) for name, numbers in splits.items()}, shards=shards)
    return write_vocabulary(folder)


def write_vocabulary(folder: Path) -> Path:
    """Writes vocab.txt; returns the folder."""
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def log_lines(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without what tells how fast it was."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED_KEYS} for line in lines]
