"""What a compiled step keeps in the memory of each chip: the state by its parts, the batch, and temporaries by name."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax

from r2d2_jax.planning.hlo import Computation, Instruction, Program
from r2d2_jax.train.compiled import abstract_batch
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import abstract_state

# Results that are another name for what their operands are.
_SAME = {"bitcast", "while", "opt-barrier", "domain"}
Alive = tuple[tuple[Instruction, float], ...]
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
    for instruction, size in alive:
        array = max(instruction.shapes, key=lambda shape: shape.stored)
        made.setdefault((readable(instruction.op_name) or instruction.opcode, str(array)), []).append(size)
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


def _peak(program: Program) -> Callable[[str], tuple[float, Alive]]:
    """A function of a computation's name: the most that its temporaries need, and what they are then."""

    @cache
    def peak(name: str) -> tuple[float, Alive]:
        computation = program.computations[name]
        owned, first, last = _lifetimes(computation)
        born: dict[int, list[str]] = {}
        dead: dict[int, list[str]] = {}
        for each in owned:
            born.setdefault(first[each], []).append(each)
            dead.setdefault(last[each], []).append(each)
        inner_then: Alive = ()
        alive, most, then = 0.0, 0.0, -1
        for at, instruction in enumerate(computation.instructions.values()):
            alive += sum(owned[each] for each in born.get(at, ()))
            inner, inner_alive = max(
                (peak(callee) for callee in _callees(program, computation, instruction)),
                key=lambda found: found[0],
                default=(0.0, ()),
            )
            if alive + inner > most:
                most, then, inner_then = alive + inner, at, inner_alive
            alive -= sum(owned[each] for each in dead.get(at, ()))
        there = [
            (computation.instructions[each], size) for each, size in owned.items() if first[each] <= then <= last[each]
        ]
        return most, (*there, *inner_then)

    return peak


def _callees(program: Program, within: Computation, instruction: Instruction) -> Iterator[str]:
    if instruction.opcode != "fusion":
        yield from (name for name, _ in program.calls(within, instruction) if name in program.computations)


def _lifetimes(computation: Computation) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Of what a computation makes: its bytes, and the first and the last instruction that needs it.

    Its result is left out: it lies where the caller has room for it, as a loop's in what the loop carries.
    """
    owners: dict[str, list[frozenset[str]]] = {}
    size: dict[str, float] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for at, instruction in enumerate(computation.instructions.values()):
        read = [owners[name] for name in instruction.operands if name in owners]
        for owner in frozenset().union(*(one for each in read for one in each)):
            last[owner] = at
        owners[instruction.name] = _owners(instruction, read)
        if owners[instruction.name] == [frozenset({instruction.name})]:
            size[instruction.name] = _size(computation, instruction)
            first[instruction.name] = last[instruction.name] = at
    result = frozenset().union(*owners.get(computation.root, []))
    return {name: bytes_ for name, bytes_ in size.items() if bytes_ and name not in result}, first, last


def _owners(instruction: Instruction, read: list[list[frozenset[str]]]) -> list[frozenset[str]]:
    """Which instructions have made the memory of a result, for each part of a tuple."""
    opcode = instruction.opcode
    if opcode in _NOTHING:
        return [frozenset()]
    if opcode == "tuple":
        return [frozenset().union(*each) for each in read]
    if opcode == "get-tuple-element":
        found = re.search(r"index=(\d+)", instruction.attributes)
        number = int(found.group(1)) if found else 0
        return [read[0][number]] if read and number < len(read[0]) else [frozenset().union(*read[0])] if read else []
    if opcode in _SAME or opcode.endswith(("-done", "-update")):
        return read[0] if read else [frozenset()]
    return [frozenset({instruction.name})]


def _size(computation: Computation, instruction: Instruction) -> float:
    """Bytes in the chip's large memory, with padding; of what is awaited later, the result alone."""
    if instruction.opcode.endswith("-start"):
        done = (user for user in computation.users[instruction.name] if user.opcode.endswith("-done"))
        instruction = next(done, instruction)
    return sum(shape.stored for shape in instruction.shapes if not shape.space)
