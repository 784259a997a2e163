"""Runs on several devices or processes what `test_distributed.py` compares; writes .npz files or a working directory.

python distributed_worker.py --mode=steps --cases=pretraining:1x1,retrieval:2x4 --devices=8 --output=FOLDER
python distributed_worker.py --mode=train --config=JSON --stop_before=5 --output=FOLDER
    --devices=1 --processes=2 --process=0 --port=12345
python distributed_worker.py --mode=main --config=JSON --output=FOLDER --devices=1 --processes=2 ...
"""

import argparse
import dataclasses
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import light_process  # noqa: F401
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from small_model import (
    DROPPED,
    MATCHING,
    RETRIEVAL,
    named_leaves,
    random_state,
    small_config,
    small_labels,
    small_plan,
    small_rows,
    small_text_ids,
)

from r2d2_jax import processes
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.sharding import global_batch, make_mesh, replicated, state_shardings
from r2d2_jax.train import loop
from r2d2_jax.train.compiled import compile_term_gradients
from r2d2_jax.train.optimizer import Optimizer
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import TrainState

STEPS = 3
# Where the true gradient is zero (key biases: the softmax does not see them) Adam would scale rounding errors up to
# whole steps; a large epsilon keeps updates proportional to gradients.
SETTINGS: dict[str, Any] = {
    "model": {"freeze_image_tower": False},
    "train": {"batch_size": 16},
    "optimizer": {"epsilon": 1e-2},
}
# Moments that hold one gradient: the sum of several may cancel, and leave the rounding that parts add.
FORGETFUL: dict[str, Any] = {"optimizer": {"beta1": 0.0}, "loss": {"text_ids": True}}
CONFIGS = {
    "pretraining": small_config(SETTINGS, DROPPED, {"loss": {"text_ids": True}}),
    "plain": small_config(SETTINGS, FORGETFUL),
    "in_parts": small_config(SETTINGS, FORGETFUL, {"train": {"micro_batches": 2}}),
    "retrieval": small_config(SETTINGS, RETRIEVAL, {"optimizer": {"rates": (("bias", 2.0),)}}),
    "matching": small_config(SETTINGS, MATCHING, {"optimizer": {"rates": (("bias", 2.0),)}}),
}


def recording(optimizer: Optimizer) -> Optimizer:
    """Keeps the raw gradients in front of the state of an optimizer."""

    def update(gradients: Any, state: Any, params: Any) -> Any:
        updates, inner = optimizer.transformation.update(gradients, state[1], params)
        return updates, (gradients, inner)

    init = lambda params: (params, optimizer.transformation.init(params))  # noqa: E731
    return dataclasses.replace(optimizer, transformation=optax.GradientTransformation(init, update))


def steps(config: Config, mesh_config: MeshConfig) -> dict[str, np.ndarray]:
    """Gradients and metrics of the first step, metrics and state after `STEPS`, for retrieval the terms' weights.

    In the last step all rows but one show the same image, so that this one is the hard negative of each.
    """
    devices = jax.devices()[: mesh_config.data * mesh_config.fsdp]
    mesh = make_mesh(mesh_config, devices)
    plan = small_plan(config, total_steps=10, epoch_steps=2, mesh=mesh, text_ids=True)
    plan = dataclasses.replace(plan, optimizer=recording(plan.optimizer))
    step, state, key = plan.compiled(), placed_state(plan), jax.random.key(0)
    found: dict[str, np.ndarray] = {}
    for number in range(STEPS):
        rows, part = small_rows(number, 16), 16 // jax.process_count()
        rows |= {"text_id": small_text_ids(number, 16)} if plan.task.reads_text_ids else {}
        rows |= {"label": small_labels(number, 16)} if plan.task.reads_labels else {}
        if number == STEPS - 1:
            rows["image_id"][:-1] = rows["image_id"][0]
        own = slice(jax.process_index() * part, (jax.process_index() + 1) * part)
        batch = global_batch(mesh, {name: value[own] for name, value in rows.items()})
        if config.task == "retrieval" and number == 0:
            weigh = compile_term_gradients(plan.task, plan.optimizer, mesh, plan.batch_size)
            found |= {f"metrics/{name}": np.asarray(value) for name, value in weigh(state, batch, key).items()}
        state, metrics = step(state, batch, key)
        found |= {f"metrics/{number}/{name}": np.asarray(value) for name, value in metrics.items()}
        if number == 0:
            found |= gathered("gradients", state.opt_state[0], mesh)
    return found | gathered("after", state.replace(opt_state=state.opt_state[1]), mesh)


def placed_state(plan: StepPlan) -> TrainState:
    """The same state on every mesh, each array where it belongs."""
    state = random_state(plan)
    place: Callable[..., Any] = lambda leaf, sharding: jax.make_array_from_callback(  # noqa: E731
        np.shape(leaf), sharding, lambda index: np.asarray(leaf)[index]
    )
    return jax.tree.map(place, state, state_shardings(state, plan.mesh))


def gathered(name: str, tree: Any, mesh: Mesh) -> dict[str, np.ndarray]:
    """Every leaf, whole, in host memory; one program gathers all, where `process_allgather` compiles one for each."""
    if jax.process_count() > 1:
        tree = jax.jit(lambda leaves: leaves, out_shardings=replicated(mesh))(tree)
        tree = jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
    return {f"{name}/{path}": leaf for path, leaf in named_leaves(tree).items()}


def run(config: str, stop_before: int, workdir: Path) -> None:
    """A whole run, of which the last process alone is told to stop."""
    original, calls = loop.next_batch, iter(range(1, 10**6))

    def next_batch(batches: Any, progress: Any) -> Any:
        if next(calls) == stop_before and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batches, progress)

    loop.next_batch = next_batch
    outcome = loop.train(Config.from_config_dict(ConfigDict(json.loads(config))), workdir)
    print(json.dumps({"step": outcome.step, "finished": outcome.finished}))


def program(given: argparse.Namespace) -> None:
    """launch/main.py, whose processes find one that is silent within seconds."""
    processes.LEAVING_SECONDS, processes.DEAD_SECONDS = given.leaving_seconds, 10
    file = given.output / f"config{given.process}.py"
    values = json.loads(given.config)
    file.write_text(f"from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({values!r})\n")
    together = f"--coordinator_address=127.0.0.1:{given.port} --num_processes={given.processes}".split()
    own = [f"--process_id={given.process}", f"--cpu_devices={given.devices}"]
    sys.argv = ["main.py", f"--config={file}", f"--workdir={given.output / 'run'}", *together, *own]
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "launch" / "main.py"), run_name="__main__")


def main() -> None:
    """Flags in, one of the above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", required=True)
    parser.add_argument("--output", type=path_or_bucket, required=True)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--cases", default="")
    parser.add_argument("--config")
    parser.add_argument("--stop_before", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--leaving_seconds", type=int, default=processes.LEAVING_SECONDS)
    given = parser.parse_args()
    if given.mode == "main":
        program(given)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", given.devices)
    if given.processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{given.port}", given.processes, given.process)
    if given.mode == "train":
        run(given.config, given.stop_before, given.output)
    for case in given.cases.split(",") if given.mode == "steps" else ():
        task, mesh = case.split(":")
        found = steps(CONFIGS[task], MeshConfig(*map(int, mesh.split("x"))))
        if given.process == 0:
            np.savez(given.output / f"{task}_{given.processes}_processes_{mesh}.npz", **found)


if __name__ == "__main__":
    main()
