"""What a compiled program does on one chip: its matrix products, and what passes through the chip's large memory."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from r2d2_jax.planning.hlo import Computation, Instruction, Program, Shape
from r2d2_jax.planning.traffic import goes_on

# Move nothing themselves: they name what is there, or what they run is looked at by itself.
_MOVES_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "opt-barrier", "partition-id", "replica-id", "async-update", "async-done",
}  # fmt: skip
_PASSES = {"bitcast", "copy", "reshape", "transpose", "convert", "get-tuple-element"}
# Custom calls of cuBLAS are products whose axes are listed as those of a dot.
_CUBLAS = re.compile(r'custom_call_target="__cublas\$')
# TPUs' own calls that name what is there, or where it is to be.
_NAMES = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGather|AsyncCollectiveDone)')
# Of other calls, those that multiply nothing: TPUs' own, and the choice of the largest.
_KNOWN = re.compile(
    r'custom_call_target="(__cublas\$|AsyncCollective|GatherScatter|AssumeGather|AllocateBuffer|ConcatBitcast|SliceId|'
    r"ZeroCrop|TopK)"
)


@dataclass(frozen=True)
class Operation:
    """One instruction of a program, a fusion as a whole.

    name: in the program. op_name: where in the traced program it comes from. times: how often it is run in a step.
    products, exact_products: multiply-adds of one run, those of float32 that ask for exact results apart.
    bytes: what one run reads and writes of the chip's large memory.
    """

    name: str
    op_name: str
    times: int
    products: float
    exact_products: float
    bytes: float


def operations(program: Program) -> list[Operation]:
    """Every instruction that multiplies or moves something."""
    made = []
    for computation, instruction, times in program.executed(fused=False):
        counted = {False: 0.0, True: 0.0}
        for exact, products in _products(program, computation, instruction):
            counted[exact] += products
        moved = _moved(program, computation, instruction)
        if any(counted.values()) or moved:
            made.append(Operation(instruction.name, instruction.op_name, times, counted[False], counted[True], moved))
    return made


def uncounted_calls(program: Program) -> Counter[str]:
    """Custom calls, whose products cannot be read in the program, by their target, and how often each is run."""
    found: Counter[str] = Counter()
    for _, instruction, times in program.executed(fused=True):
        if instruction.opcode == "custom-call" and not _KNOWN.search(instruction.attributes):
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            found[target.group(1) if target else "?"] += times
    return found


def _products(program: Program, where: Computation, instruction: Instruction) -> Iterator[tuple[bool, float]]:
    """Yields (exact, multiply-adds) of every product within an instruction, one of a fusion's too."""
    if instruction.opcode == "fusion":
        for callee, _ in program.calls(where, instruction):
            inner = program.computations[callee]
            for each in inner.instructions.values():
                yield from _products(program, inner, each)
    cublas = instruction.opcode == "custom-call" and _CUBLAS.search(instruction.attributes)
    if instruction.opcode in ("dot", "convolution") or cublas:
        left, right = (where.operand(instruction, number) for number in (0, 1))
        if left is not None and right is not None:
            highest = instruction.attributes.count("highest") > 0
            exact = highest and left.shapes[0].dtype == right.shapes[0].dtype == "f32"
            count = _convolution if instruction.opcode == "convolution" else _dot
            yield exact, count(instruction, left.shapes[0], right.shapes[0])


def _dot(instruction: Instruction, left: Shape, right: Shape) -> float:
    contracted = instruction.numbers("lhs_contracting_dims")
    if listed := re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes):
        contracted = tuple(int(number) for number in re.findall(r"\d+", listed.group(1)))
    return float(instruction.shapes[0].elements * math.prod(left.dims[axis] for axis in contracted))


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    """As XLA counts: of every output position, the kernel positions that fall on numbers, not on padding or holes.

    TPUs write a product with batch axes as a convolution with holes, of which only so many positions are computed.
    """
    labels = re.search(r"dim_labels=([^,\s]+)_([^,\s]+)->([^,\s]+)", instruction.attributes)
    assert labels is not None, f"a convolution without dim_labels: {instruction.name}"
    inputs, kernel, outputs = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    given = dict(part.split("=") for part in window.group(1).split()) if window else {}
    result = instruction.shapes[0]
    positions = 1
    for number, axis in enumerate(sorted(label for label in kernel if label.isdigit())):
        sizes = left.dims[inputs.index(axis)], right.dims[kernel.index(axis)], result.dims[outputs.index(axis)]
        positions *= _positions(number, given, *sizes)
    features = right.dims[kernel.index("i")] * right.dims[kernel.index("o")]
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    rows = left.dims[inputs.index("b")] // (int(groups.group(1)) if groups else 1)
    return float(positions * features * rows)


def _positions(number: int, window: dict[str, str], inputs: int, kernel: int, outputs: int) -> int:
    """Pairs of an output and a kernel position on one spatial axis that meet a number of the input."""

    def of(key: str, default: str) -> str:
        return window[key].split("x")[number] if key in window else default

    low = int(of("pad", "0_0").split("_")[0])
    place = np.arange(kernel)[::-1] if of("rhs_reversal", "0") == "1" else np.arange(kernel)
    hole = int(of("lhs_dilate", "1"))
    at = np.arange(outputs)[:, None] * int(of("stride", "1")) + place[None] * int(of("rhs_dilate", "1")) - low
    return int(np.sum((at >= 0) & (at <= (inputs - 1) * hole) & (at % hole == 0)))


def _moved(program: Program, where: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads and writes of the chip's large memory."""
    opcode = instruction.opcode
    if opcode in _MOVES_NOTHING or opcode.endswith("-start") or _names(instruction):
        return 0.0
    if opcode.endswith("-done"):  # what has been begun is counted where it ends: its result is the result alone
        begun = where.operand(instruction)
        source = where.operand(begun) if begun is not None else None
        same = source is not None and source.large_bytes > 0
        return instruction.large_bytes + (sum(shape.bytes for shape in instruction.shapes) if same else 0.0)
    if opcode == "fusion" and (name := instruction.named("calls")) in program.computations:
        inner = program.computations[name]
        read = (
            _read(program, inner, parameter)
            for parameter, operand in zip(inner.parameters, instruction.operands, strict=False)
            if (given := where.instructions.get(operand)) is not None and given.large_bytes
        )
        return sum(read) + _written(program, inner, inner.instructions[inner.root], instruction.shapes)
    if opcode in ("slice", "dynamic-slice", "gather"):
        source = where.operand(instruction)
        from_large = source is not None and source.large_bytes > 0
        return instruction.large_bytes + (sum(shape.bytes for shape in instruction.shapes) if from_large else 0.0)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = where.operand(instruction, 1 if opcode == "dynamic-update-slice" else 2)
        return 2 * update.large_bytes if update is not None else 0.0
    operands = (where.instructions.get(name) for name in instruction.operands)
    return instruction.large_bytes + sum(each.large_bytes for each in operands if each is not None)


def _read(program: Program, inner: Computation, value: Instruction) -> float:
    """Bytes that a fusion reads of one of its operands: the slices alone where it reads nothing else."""
    read = 0.0
    for user in inner.users[value.name]:
        first = user.operands[0] == value.name
        if user.opcode == "tuple" or _names(user) or goes_on(inner, user, program):
            continue  # handed on as it is, or read by who began it
        if user.opcode in ("slice", "dynamic-slice", "gather") and first:
            read += sum(shape.bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # the rest of it stays where it is
        elif user.opcode == "bitcast":
            read += _read(program, inner, user)
        elif user.opcode == "fusion" and (name := user.named("calls")) in program.computations:
            nested = program.computations[name]
            read += sum(
                _read(program, nested, parameter)
                for parameter, operand in zip(nested.parameters, user.operands, strict=False)
                if operand == value.name
            )
        else:
            return sum(shape.bytes for shape in value.shapes)
    return min(read, sum(shape.bytes for shape in value.shapes))


def _names(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and _NAMES.search(instruction.attributes) is not None


def _written(program: Program, inner: Computation, made: Instruction, results: Sequence[Shape]) -> float:
    """Bytes that a fusion writes: of an array that it changes a part of, that part.

    Nothing of what it hands on as it is, nor of collectives that go on beside it, which are counted where they begin.
    """
    if made.opcode == "tuple":
        parts = (inner.instructions.get(name) for name in made.operands)
        pairs = zip(parts, results, strict=False)
        return sum(_written(program, inner, part, [result]) for part, result in pairs if part is not None)
    if made.opcode == "parameter" or _names(made) or goes_on(inner, made, program):
        return 0.0
    while made.opcode in _PASSES and (source := inner.operand(made)) is not None:
        made = source
    if made.opcode == "dynamic-update-slice" and (update := inner.operand(made, 1)) is not None:
        return sum(shape.bytes for shape in update.shapes)
    return sum(shape.bytes for shape in results if not shape.space)
