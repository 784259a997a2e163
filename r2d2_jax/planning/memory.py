"""What a compiled step keeps in the memory of each chip: the state by its parts, the batch, and temporaries by name."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax

from r2d2_jax.planning.hlo import Computation, Instruction, Program, Shape
from r2d2_jax.train.compiled import abstract_batch
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import abstract_state

# Results that are another name for what their operands are.
_SAME = {"bitcast", "while", "opt-barrier", "domain"}
_RENAMES = {"bitcast", "tuple", "get-tuple-element"}
_NOTHING = {"parameter", "constant", "after-all", "partition-id", "replica-id", "iota"}


@dataclass(frozen=True)
class Temporary:
    """An array that is there when temporaries need most.

    name: where in the traced program it comes from. array: its type and shape. bytes: with the padding of its layout.
    count: how many of this name and shape there are; `bytes` is of all.
    """

    name: str
    array: str
    bytes: float
    count: int


def state_parts(plan: StepPlan) -> dict[str, int]:
    """Bytes on each chip of every part of the train state, and of the batch, in the order of a table."""
    state = abstract_state(plan.task, plan.optimizer, plan.mesh)
    parts = {"parameters": state.params, "optimizer moments": state.opt_state}
    if dataclasses.is_dataclass(state.memory):
        fields = ((each.name, getattr(state.memory, each.name)) for each in dataclasses.fields(state.memory))
        parts |= {name.replace("_", " "): value for name, value in fields if value is not None}
    parts["batch"] = abstract_batch(plan.task, plan.batch_size, plan.mesh)
    return {name: sum(map(_bytes_of_chip, jax.tree.leaves(part))) for name, part in parts.items()}


def _bytes_of_chip(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def largest_temporaries(program: Program) -> list[Temporary]:
    """What is there at the moment that needs most, the largest first, by the order that XLA has scheduled.

    Read from the program, so an estimate: XLA shares memory between arrays in ways that its text does not tell.
    """
    _, alive = _peak(program)(program.entry)
    made: dict[tuple[str, str], list[float]] = {}
    for array in alive:
        carried = f"carried through {readable(array.loop.op_name)}" if array.loop is not None else ""
        name = readable(array.instruction.op_name) or carried or array.instruction.opcode
        made.setdefault((name, str(array.shape)), []).append(array.bytes)
    found = [Temporary(name, array, sum(sizes), len(sizes)) for (name, array), sizes in made.items()]
    return sorted(found, key=lambda each: -each.bytes)


def readable(op_name: str) -> str:
    """The place of an instruction in the model, without what every name has, what loops add, and names of methods."""
    name = op_name.strip("()").split(":")[0]
    name = re.sub(r"^jit\([^)]*\)/|while/body/|closed_call/|checkpoint/|rematted_computation/", "", name)
    backward = "transpose(" in name
    name = re.sub(r"(transpose\()?jvp\(([^)]*)\)\)?/?", r"\2/", name).replace("R2D2.", "").strip("/")
    modules = (re.sub(r"^[A-Z]\w*\.\w+$|\.\w+$", "", part) for part in name.split("/"))
    return ("backward of " if backward else "") + "/".join(dict.fromkeys(filter(None, modules)))


@dataclass
class _Array:
    """An array, what makes it, the first and the last instruction that needs it, and the first loop that carries it."""

    instruction: Instruction
    shape: Shape
    first: int
    last: int
    loop: Instruction | None = None

    @property
    def bytes(self) -> float:
        """In the chip's large memory, with padding."""
        return 0.0 if self.shape.space else self.shape.stored


Alive = tuple[_Array, ...]


def _peak(program: Program) -> Callable[[str], tuple[float, Alive]]:
    """A function of a computation's name: the most that its temporaries need, and what they are then."""

    @cache
    def peak(name: str) -> tuple[float, Alive]:
        computation = program.computations[name]
        arrays = list(_lifetimes(computation).values())
        change: defaultdict[int, float] = defaultdict(float)
        for array in arrays:
            change[array.first] += array.bytes
            change[array.last + 1] -= array.bytes
        within: Alive = ()
        alive, most, then = 0.0, 0.0, -1
        for at, instruction in enumerate(computation.instructions.values()):
            alive += change[at]
            called = [peak(callee) for callee in _callees(program, computation, instruction)]
            inner = max(called, key=lambda found: found[0], default=(0.0, ()))
            if alive + inner[0] > most:
                most, then, within = alive + inner[0], at, inner[1]
        return most, (*(array for array in arrays if array.first <= then <= array.last), *within)

    return peak


def _callees(program: Program, within: Computation, instruction: Instruction) -> Iterator[str]:
    if instruction.opcode != "fusion":
        yield from (name for name, _ in program.calls(within, instruction) if name in program.computations)


def _lifetimes(computation: Computation) -> dict[str, _Array]:
    """What a computation makes, by a name of its own: each array of a tuple by itself.

    Its result is left out: it lies where the caller has room for it, as a loop's in what the loop carries.
    """
    owners: dict[str, list[frozenset[str]]] = {}
    made: dict[str, _Array] = {}
    for at, instruction in enumerate(computation.instructions.values()):
        read = [owners[name] for name in instruction.operands if name in owners]
        if instruction.opcode not in _RENAMES:
            for owner in frozenset().union(*(one for each in read for one in each)) & made.keys():
                made[owner].last = at
                if instruction.opcode == "while" and made[owner].loop is None:
                    made[owner].loop = instruction
        known = _renamed(instruction, read)
        if known is None:
            arrays = {
                f"{instruction.name} {number}": shape for number, shape in enumerate(_arrays(computation, instruction))
            }
            made |= {name: _Array(instruction, shape, at, at) for name, shape in arrays.items()}
            known = [frozenset({name}) for name in arrays]
        owners[instruction.name] = known
    result = frozenset().union(*owners.get(computation.root, []))
    return {name: array for name, array in made.items() if array.bytes and name not in result}


def _renamed(instruction: Instruction, read: list[list[frozenset[str]]]) -> list[frozenset[str]] | None:
    """What a result is another name of, for each part of a tuple; None where an instruction makes it."""
    opcode = instruction.opcode
    if opcode in _NOTHING:
        return [frozenset()]
    if opcode == "tuple":
        return [frozenset().union(*each) for each in read]
    if opcode == "get-tuple-element" and read:
        number = int(re.findall(r"index=(\d+)", instruction.attributes)[0])
        return [read[0][number]] if number < len(read[0]) else [frozenset().union(*read[0])]
    if opcode in _SAME or opcode.endswith(("-done", "-update")):
        return read[0] if read else [frozenset()]
    return None


def _arrays(computation: Computation, instruction: Instruction) -> list[Shape]:
    """The arrays of a result; of what is awaited later, those of the result alone."""
    if instruction.opcode.endswith("-start"):
        done = (user for user in computation.users[instruction.name] if user.opcode.endswith("-done"))
        return next(done, instruction).shapes
    return instruction.shapes
