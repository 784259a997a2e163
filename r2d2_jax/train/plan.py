"""What a train step needs, before it runs: compiled from the configuration alone, for chips that need not be there.

Neither data nor vocabulary nor weights are read.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.sharding import check_batch_divides, make_mesh
from r2d2_jax.tasks import build_task
from r2d2_jax.tasks.task import BERT_TOKENS, SpecialTokens, Task
from r2d2_jax.train.compiled import abstract_batch, compile_train_step, lower_train_step
from r2d2_jax.train.optimizer import Optimizer, make_optimizer
from r2d2_jax.train.state import TrainState, abstract_state

# The length of the run enters the step as a constant of the learning rate, and nothing else.
NOMINAL_STEPS = 1000
# Of a vocabulary too small for BERT's ids, where they would index past the embedding table: those of the demonstration.
SMALL_TOKENS = SpecialTokens(mask_id=4, cls_id=2, sep_id=3, pad_id=0)
COUNTED_PAIRS = 2  # in the batch whose forward is counted: enough for a hard negative
TRACED_PAIRS = 32  # which costs no more to trace; of so many, what a batch needs once is nothing


@dataclass(frozen=True)
class StepPlan:
    """What the step of a configuration is made of, without data.

    Attributes:
        task: with `planned_tokens` and a nominal epoch.
        optimizer: with a nominal length of the run.
        mesh: the devices it is planned for.
        batch_size: the global batch, in pairs.
    """

    task: Task
    optimizer: Optimizer
    mesh: Mesh
    batch_size: int

    def lowered(self) -> jax.stages.Lowered:
        """The whole train step, traced for the mesh."""
        return lower_train_step(self.task, self.optimizer, self.mesh, self.batch_size)

    def compiled(self) -> jax.stages.Compiled:
        """The whole train step, compiled for the mesh."""
        return compile_train_step(self.task, self.optimizer, self.mesh, self.batch_size)


@dataclass(frozen=True)
class StepMemory:
    """Bytes per device that a compiled step needs.

    arguments, donated: what it is given, and those of it in whose place it leaves results. results: all that it leaves.
    temporaries: what it needs meanwhile. program: the step itself.
    """

    arguments: int
    donated: int
    results: int
    temporaries: int
    program: int


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
    check_batch_divides(config.train.batch_size, placed, micro_batches=config.train.micro_batches)
    optimizer = make_optimizer(config.optimizer, NOMINAL_STEPS)
    return StepPlan(
        build_task(config, tokens=planned_tokens(config.model.text.vocabulary_size)),
        optimizer,
        placed,
        config.train.batch_size,
    )


def planned_tokens(vocabulary_size: int) -> SpecialTokens:
    """The special tokens of a plan: BERT's, unless the vocabulary is too small for them."""
    return BERT_TOKENS if vocabulary_size > BERT_TOKENS.mask_id else SMALL_TOKENS


def forward_cost(config: Config, pairs: int = COUNTED_PAIRS) -> float:
    """Multiply-adds per pair of the forward, which is the task's loss: student, teacher, all terms.

    XLA counts them in the compiled program, that of a loop's body once, so the layers are unrolled. It counts random
    bits too, so dropout adds to the count. The similarity with the queue is the same for every pair.

    Args:
        config: the whole configuration; the queue keeps its length, whatever `pairs` is.
        pairs: in the batch.
    """
    function, arguments = _forward(config, pairs)
    return multiply_adds(function, *arguments) / pairs


def traced_forward_cost(config: Config, pairs: int = TRACED_PAIRS) -> float:
    """As `forward_cost`, without dropout and counted before XLA optimises the program, which takes far less time.

    What XLA leaves out or simplifies is counted too.
    """
    function, arguments = _forward(dataclasses.replace(config, model=config.model.without_dropout()), pairs)
    cost: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return cost["flops"] / 2 / pairs


def _forward(config: Config, pairs: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The forward of a batch on one CPU device, with its layers unrolled, and its abstract arguments."""
    model = dataclasses.replace(config.model, unroll=True, remat="none")
    train = dataclasses.replace(config.train, batch_size=pairs, micro_batches=1)
    plan = step_plan(
        dataclasses.replace(config, model=model, train=train), jax.local_devices(backend="cpu")[:1], MeshConfig(1, 1)
    )
    state = abstract_state(plan.task, plan.optimizer, plan.mesh)
    batch, key = abstract_batch(plan.task, pairs, plan.mesh), jax.eval_shape(lambda: jax.random.key(0))

    def forward(state: TrainState, batch: Any, key: jax.Array) -> jax.Array:
        return plan.task.loss(state.params, state.memory, batch, state.step, key, plan.mesh).total()

    return forward, (state, batch, key)


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> float:
    """Half of XLA's count of floating-point operations in the compiled program, for (abstract) arguments."""
    cost: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return cost["flops"] / 2


def step_memory(compiled: jax.stages.Compiled) -> StepMemory:
    """What XLA says that a compiled program needs on each device."""
    memory: Any = compiled.memory_analysis()
    return StepMemory(
        arguments=memory.argument_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        results=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
    )
