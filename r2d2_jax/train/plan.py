"""What a train step needs, before it runs: compiled from the configuration alone, for chips that need not be there.

Neither data nor vocabulary nor weights are read.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.sharding import check_batch_divides, make_mesh
from r2d2_jax.tasks import build_task
from r2d2_jax.tasks.task import Task
from r2d2_jax.train.compiled import compile_train_step
from r2d2_jax.train.optimizer import Optimizer, make_optimizer

# The length of the run enters the step as a constant of the learning rate, and nothing else.
NOMINAL_STEPS = 1000
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)(?:-start)?\("
)


@dataclass(frozen=True)
class StepPlan:
    """What the step of a configuration is made of, without data.

    Attributes:
        task: with BERT's special tokens and a nominal epoch.
        optimizer: with a nominal length of the run.
        mesh: the devices it is planned for.
        batch_size: the global batch, in pairs.
    """

    task: Task
    optimizer: Optimizer
    mesh: Mesh
    batch_size: int

    def compiled(self) -> jax.stages.Compiled:
        """The whole train step, compiled for the mesh."""
        return compile_train_step(self.task, self.optimizer, self.mesh, self.batch_size)


@dataclass(frozen=True)
class StepMemory:
    """Bytes per device that a compiled step needs: its arguments, those of them that it gives back, and temporaries."""

    arguments: int
    donated: int
    temporaries: int


def step_plan(config: Config, devices: Sequence[Any], mesh: MeshConfig | None = None) -> StepPlan:
    """Plans a configuration's step for some devices.

    Args:
        config: the whole configuration.
        devices: at hand, or of a topology that is only described.
        mesh: instead of the configured one.

    Raises:
        UserError: the mesh does not fit the devices, or the batch the mesh.
    """
    placed = make_mesh(mesh or config.mesh, devices)
    check_batch_divides(config.train.batch_size, placed)
    optimizer = make_optimizer(config.optimizer, NOMINAL_STEPS)
    return StepPlan(build_task(config), optimizer, placed, config.train.batch_size)


def step_memory(compiled: jax.stages.Compiled) -> StepMemory:
    """What XLA says that a compiled program needs on each device."""
    memory: Any = compiled.memory_analysis()
    return StepMemory(memory.argument_size_in_bytes, memory.alias_size_in_bytes, memory.temp_size_in_bytes)


def collectives(program: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields kind and result shape of every collective in an optimised HLO text, loops not multiplied out."""
    for results, kind in _COLLECTIVE.findall(program):
        for shape in re.findall(r"\w+\[([\d,]*)\]", results):
            yield kind, tuple(int(size) for size in shape.split(",") if size)


def tpu_chips(topology: str) -> list[Any]:
    """The chips of a TPU topology that is only described, such as "v5e:4x4".

    Raises:
        UserError: libtpu is not installed, or it does not know the topology.
    """
    # It asks neither a metadata server nor other hosts for what this one is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:
        raise UserError(
            f"cannot compile for --topology={topology}: {first_line(error)}; pip install libtpu, name one like v5e:4x4"
        ) from error
