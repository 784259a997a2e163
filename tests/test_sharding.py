"""Where every kind of array lives, golden; and what is said when devices and batch do not fit."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from sharding_worker import draws, rows_taken
from small_model import TOKENS, small_config, small_plan, small_rows, small_words

from r2d2_jax import forwards, sharding
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.losses.masked_lm import mask_words
from r2d2_jax.sharding import (
    batch_sharding,
    check_batch_divides,
    global_batch,
    make_mesh,
    over_slices,
    path_name,
    state_shardings,
    whole_kernels,
)
from r2d2_jax.tasks import build_task
from r2d2_jax.train import compiled
from r2d2_jax.train.compiled import abstract_batch
from r2d2_jax.train.optimizer import make_optimizer
from r2d2_jax.train.state import abstract_state, init_state

ROOT = Path(__file__).resolve().parents[1]
MESHES = ("8x1", "2x4")
# Leaf of the largest published model's state -> how it lies on a mesh with an fsdp axis of 8.
GOLDEN = {
    "step": (),
    "params/temperature": (),
    "params/image_encoder/class_embedding": (),
    "params/image_encoder/position_embedding": (),
    "params/image_encoder/patch_embedding/kernel": (None, None),  # 588 pixels are no multiple of 8
    "params/image_encoder/layers/attention/query/kernel": (None, "fsdp", None),
    "params/image_encoder/layers/attention/query/bias": (),
    "params/image_encoder/layers/mlp/down/kernel": (None, "fsdp", None),
    "params/image_encoder/layers/mlp_norm/norm/scale": (),
    "params/image_projection/kernel": ("fsdp", None),
    "params/text_encoder/word_embedding/embedding": (None, "fsdp"),
    "params/text_encoder/position_embedding/embedding": (None, "fsdp"),
    "params/text_encoder/type_embedding/embedding": (),
    "params/text_encoder/layers/mlp/up/kernel": (None, "fsdp", None),
    "params/text_image_encoder/layers/cross_attention/key/kernel": (None, "fsdp", None),
    "params/text_image_encoder/last_layer/cross_attention/key/kernel": ("fsdp", None),
    "params/text_image_match_head/kernel": ("fsdp", None),
    "params/masked_lm_head/bias": (),
    "memory/teacher/text_encoder/layers/attention/out/kernel": (None, "fsdp", None),
    "memory/teacher/image_projection/kernel": ("fsdp", None),
    "memory/teacher/image_projection/bias": (),
    "opt_state/1/0/count": (),
    "opt_state/1/0/mu/text_encoder/layers/attention/out/kernel": (None, "fsdp", None),
    "opt_state/1/0/nu/text_encoder/word_embedding/embedding": (None, "fsdp"),
    "opt_state/1/0/nu/image_text_projection/kernel": ("fsdp", None),
    "opt_state/1/0/mu/image_text_projection/bias": (),
    "memory/queue/image_embed": (),
    "memory/queue/age": (),
    "memory/queue/head": (),
    "memory/feature_mean": (),
}


def placed(config: Config, data: int, fsdp: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and PartitionSpec of every leaf, without any device."""
    mesh: Any = AbstractMesh((data, fsdp), ("data", "fsdp"))
    task, optimizer = build_task(config), make_optimizer(config.optimizer, 10)
    shapes = jax.eval_shape(lambda key: init_state(task, optimizer, key), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    shardings = jax.tree.leaves(state_shardings(shapes, mesh))
    return {path_name(path): (leaf.shape, s.spec) for (path, leaf), s in zip(leaves, shardings, strict=True)}


@pytest.fixture(scope="module")
def largest() -> dict[str, tuple[tuple[int, ...], Any]]:
    spec = importlib.util.spec_from_file_location("vitl_250m", ROOT / "configs" / "vitl_250m.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return placed(Config.from_config_dict(module.get_config()), 16, 8)


def test_golden(largest: dict[str, tuple[tuple[int, ...], Any]]) -> None:
    assert {name: tuple(largest[name][1]) for name in GOLDEN} == GOLDEN


def test_nearly_everything_large_is_split(largest: dict[str, tuple[tuple[int, ...], Any]]) -> None:
    """What stays whole on every device beside the queue is below 1 % of the state."""
    sizes = {True: 0, False: 0}
    for name, (shape, spec) in largest.items():
        if not name.startswith("memory/queue/"):
            sizes["fsdp" in tuple(spec)] += int(np.prod(shape))
    assert sizes[False] < 0.01 * sizes[True]


def test_student_teacher_and_moments_lie_alike(largest: dict[str, tuple[tuple[int, ...], Any]]) -> None:
    for prefix in ("memory/teacher/", "opt_state/1/0/mu/", "opt_state/1/0/nu/"):
        names = [name for name in largest if name.startswith(prefix)]
        assert names
        for name in names:
            assert largest[name] == largest["params/" + name.removeprefix(prefix)], name


def test_axes_that_do_not_divide_stay_whole() -> None:
    """Width 16 over 5 devices: nothing can be split; width 20 can, and 16 beside it still cannot."""
    config = small_config()
    assert all("fsdp" not in tuple(spec) for _, spec in placed(config, 1, 5).values())
    wider = small_config({"model": {"text": {"width": 20}, "cross": {"width": 20}}})
    leaves = placed(wider, 1, 5)
    assert tuple(leaves["params/text_encoder/layers/mlp/up/kernel"][1]) == (None, "fsdp", None)
    assert tuple(leaves["params/image_encoder/layers/mlp/up/kernel"][1]) == (None, None, None)
    for shape, spec in leaves.values():
        assert all(axis is None or shape[place] % 5 == 0 for place, axis in enumerate(spec))


@pytest.fixture(scope="module")
def worker() -> list[dict[str, Any]]:
    """What the worker found on each mesh of eight devices."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "JAXTYPING_DISABLE": "1"}
    command = [sys.executable, str(ROOT / "tests" / "sharding_worker.py"), *MESHES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_parameters_travel_and_activations_stay(worker: list[dict[str, Any]]) -> None:
    """Splitting parameters adds no collective that moves rows of the batch: no layer is computed in slices of width.

    What is left moves once a step: what the losses compare with, and the tokens from which hard negatives are taken,
    with the gradient of those of the text. Those of an image are 17 * 64 = 8 * 136 numbers, those of a text 11 * 64 =
    8 * 88, and an all-to-all of eight parts moves each way. Nothing gathers tokens.
    """
    whole, split = (found["collectives"] for found in worker)
    assert split == whole
    tokens = {name: count for name, count in split.items() if not name.startswith("all-gather 56")}
    assert tokens == {
        "all-to-all 7 1 136": 8,
        "all-to-all 1 7 136": 8,
        "all-to-all 7 1 88": 2 * 8,
        "all-to-all 1 7 88": 2 * 8,
    }
    gathered = {tuple(map(int, name.split()[2:])) for name in split if name.startswith("all-gather 56")}
    assert max(map(np.prod, gathered)) == 16, "numbers of a row, those of an embedding"


def test_each_device_draws_dropout_for_its_own_rows(worker: list[dict[str, Any]]) -> None:
    """Numbers for the weights among 17 patches, two to a number, are there for 21 rows of 168, and no array has all."""
    for found in worker:
        assert "u32[21,2,17,9]" in found["masks"]["own"]
        assert found["masks"]["all"] == []


@pytest.mark.parametrize("place, mesh", list(enumerate(MESHES)))
@pytest.mark.parametrize("how", ["rows_of_all_devices", "rows_in_pieces"])
def test_rows_from_all_devices_are_those_of_plain_indexing(
    worker: list[dict[str, Any]], place: int, mesh: str, how: str
) -> None:
    check_rows(worker[place][how])


def test_pieces_of_rows_move_no_further_than_they_must(worker: list[dict[str, Any]]) -> None:
    """All gather the index, and the rest is exchanged: no column goes to a neighbour first."""
    for found in worker:
        assert set(found["kinds_in_pieces"]) <= {"all-to-all", "all-gather", "all-reduce"}


def test_rows_of_one_device_are_those_of_plain_indexing() -> None:
    check_rows(rows_taken(small_plan(small_config()).mesh))


def check_rows(taken: list[dict[str, Any]]) -> None:
    """24 rows of 21 columns, which 8 devices do not divide, also if all want one row; so are the gradients."""
    values, weights = np.random.default_rng(0).normal(size=(2, 24, 3, 7))
    assert 0 < (np.bincount(draws()[0], minlength=24) == 0).sum() < 24
    for index, found in zip(draws(), taken, strict=True):
        gradient = np.zeros((24, 3, 7))
        np.add.at(gradient, index, weights)
        np.testing.assert_array_equal(np.float32(found["rows"]), values.astype(np.float32)[index])
        np.testing.assert_allclose(found["gradient"], gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("place, mesh", list(enumerate(MESHES)))
def test_whole_words_are_drawn_as_on_one_device(worker: list[dict[str, Any]], place: int, mesh: str) -> None:
    """Each device draws for its own rows, from the same numbers; nothing more travels for it."""
    rows = small_rows(0, 24)
    maskable = rows["attention_mask"] & ~np.isin(rows["input_ids"], [TOKENS.cls_id, TOKENS.sep_id])
    texts = map(jnp.array, (rows["input_ids"], maskable, small_words(0, 24)))
    alone = mask_words(jax.random.key(0), *texts, TOKENS.mask_id, 0.15)
    assert worker[place]["whole_words"] == {"input_ids": alone.input_ids.tolist(), "more_collectives": 0}


def test_split_kernels_are_gathered_whole_on_tpus() -> None:
    """The option is libtpu's; a CPU's compiler would refuse it."""
    tpu: Any = SimpleNamespace(devices=np.array([[SimpleNamespace(platform="tpu")]]))
    assert whole_kernels(tpu) == {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
    assert whole_kernels(make_mesh(MeshConfig(), jax.devices()[:1])) is None


def test_every_program_with_split_kernels_has_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is refused for an option that its compiler does not know."""
    for module in (compiled, forwards):
        monkeypatch.setattr(module, "whole_kernels", lambda mesh: {"no_such_option": "1"})
    plan = small_plan(small_config())
    made = (plan.task, plan.optimizer, plan.mesh, plan.batch_size)
    state, batch = abstract_state(*made[:3]), abstract_batch(plan.task, plan.batch_size, plan.mesh)
    calls = forwards.compiled_forwards.__wrapped__(plan.task.model, plan.mesh)
    texts = (state.params, batch.input_ids, batch.attention_mask)
    for compile_ in (
        lambda: compiled.compile_train_step(*made),
        lambda: compiled.compile_term_gradients(*made),
        lambda: calls.embed_text.lower(*texts).compile(),
        lambda: calls.encode_text.lower(*texts).compile(),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
            compile_()


def test_mesh_has_two_automatic_axes() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


@pytest.mark.parametrize("data, fsdp", [(3, -1), (-1, 3), (2, 2), (16, 1), (-1, 16), (1, 1)])
def test_mesh_that_does_not_fit_the_devices(data: int, fsdp: int) -> None:
    devices: Any = range(8)
    message = f"mesh.data={data} and mesh.fsdp={fsdp} do not divide the 8 devices there are; set them so that their pro"
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(data, fsdp), devices)


def sliced(*sizes: int) -> list[Any]:
    """Stand-ins for GPUs, which JAX counts as a slice for each machine."""
    slices = [number for number, size in enumerate(sizes) for _ in range(size)]
    kind = {"platform": "gpu", "device_kind": "a card"}
    return [SimpleNamespace(id=number, slice_index=each, **kind) for number, each in enumerate(slices)]


@pytest.mark.parametrize(
    "data, fsdp, sizes, rows",
    [
        (2, 4, (4, 4), ["0000", "1111"]),
        (8, 1, (4, 4), ["0"] * 4 + ["1"] * 4),
        (4, 2, (4, 4), ["00", "00", "11", "11"]),
        (1, 8, (4, 4), ["00001111"]),
        (2, 4, (2, 2, 2, 2), ["0011", "2233"]),
        (3, 4, (2,) * 6, ["0011", "2233", "4455"]),
    ],
)
def test_slices_share_the_data_axis_as_far_as_it_goes(
    data: int, fsdp: int, sizes: tuple[int, ...], rows: list[str]
) -> None:
    devices = sliced(*sizes)
    found = over_slices(data, fsdp, devices)
    assert ["".join(str(device.slice_index) for device in row) for row in found] == rows
    assert sorted(device.id for device in found.flat) == list(range(len(devices)))


def test_the_mesh_of_a_run_on_several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jax.make_mesh` refuses these."""
    made: list[Any] = []
    monkeypatch.setattr(sharding, "Mesh", lambda *arguments, **types: made.append((*arguments, types)))
    make_mesh(MeshConfig(-1, 4), sliced(4, 4))
    ((devices, names, types),) = made
    assert devices.shape == (2, 4)
    assert (names, types) == (("data", "fsdp"), {"axis_types": (AxisType.Auto, AxisType.Auto)})


def test_a_mesh_that_has_to_split_an_axis_of_the_torus(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 chips are no row and no square of a v6e of 4 x 4; `jax.make_mesh` gives up."""
    made: list[Any] = []
    monkeypatch.setattr(sharding, "Mesh", lambda devices, *_, **__: made.append(devices))
    chip = {"platform": "tpu", "device_kind": "TPU v6 lite", "process_index": 0, "core_on_chip": 0}
    chips = [SimpleNamespace(id=4 * y + x, coords=(x, y, 0), **chip) for y in range(4) for x in range(4)]
    make_mesh(MeshConfig(-1, 8), chips)
    assert made[0].shape == (2, 8)
    assert {device.id for device in made[0].flat} == set(range(16))


def test_slices_of_different_size() -> None:
    message = "have different numbers of devices: 8 on 0, 4 on 1; give it as many on each"
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(-1, 1), sliced(8, 4))


@pytest.mark.parametrize("batch, nearest", [(12, 16), (1, 8), (9, 8), (1023, 1024)])
def test_batch_that_the_mesh_does_not_divide(batch: int, nearest: int) -> None:
    mesh: Any = AbstractMesh((2, 4), ("data", "fsdp"))
    message = f"evaluation.batch_size {batch} is not a multiple of the mesh's 8 devices; the nearest that is: {nearest}"
    with pytest.raises(UserError, match=message):
        check_batch_divides(batch, mesh, "evaluation.batch_size")
    check_batch_divides(nearest, mesh)


def test_batch_whose_micro_batches_the_mesh_does_not_divide() -> None:
    mesh: Any = AbstractMesh((2, 4), ("data", "fsdp"))
    message = (
        "train.batch_size 40 is not a multiple of 16, which are the mesh's 8 devices times train.micro_batches 2; "
        "the nearest that is: 32"
    )
    with pytest.raises(UserError, match=message):
        check_batch_divides(40, mesh, micro_batches=2)
    check_batch_divides(32, mesh, micro_batches=2)


def test_global_batch_takes_what_a_batch_has() -> None:
    plan, rows = small_plan(small_config()), small_rows(0)
    batch = global_batch(plan.mesh, {**rows, "problems": np.array([""] * 8)})
    assert batch.word is None
    word = small_words(0)
    np.testing.assert_array_equal(global_batch(plan.mesh, {**rows, "word": word}).word, word)
    for name, value in rows.items():
        np.testing.assert_array_equal(getattr(batch, name), value)
        assert getattr(batch, name).sharding == batch_sharding(plan.mesh)
    assert batch_sharding(plan.mesh).spec == PartitionSpec(("data", "fsdp"))
