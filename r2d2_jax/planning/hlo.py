"""The text of an optimised XLA program as objects: computations of instructions, and how often each is executed."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

# A type that is not here, such as "token", holds no numbers. Eight-bit floats have many names.
_BYTES = {"pred": 1.0, "s4": 0.5, "u4": 0.5, "bf16": 2.0, "f16": 2.0, "s16": 2.0, "u16": 2.0, "s32": 4.0, "u32": 4.0,
          "f32": 4.0, "s8": 1.0, "u8": 1.0, "s64": 8.0, "u64": 8.0, "f64": 8.0, "c64": 8.0, "c128": 16.0}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_FRAMES = re.compile(r"^StackFrames\n((?:\d+ .*\n)+)", re.MULTILINE)
_LOCATIONS = re.compile(r"^FileLocations\n((?:\d+ .*\n)+)", re.MULTILINE)
_FUNCTIONS = re.compile(r"^FunctionNames\n((?:\d+ .*\n)+)", re.MULTILINE)
# What runs the computation that it names, once for each of its own executions. What others name with `to_apply` is
# done to single numbers, as the addition of a sum.
_RUNS = {"fusion": "calls", "call": "to_apply", "async-start": "calls", "map": "to_apply"}


@dataclass(frozen=True)
class Shape:
    """One array of a type: `dtype` as XLA writes it, `dims` its axes, `layout` the rest.

    space: the memory that it lies in: 0 is the chip's large one, others are small ones beside it.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def space(self) -> int:
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found.group(1)) if found else 0

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without the padding of its layout; 0 for what holds no numbers."""
        return self.elements * _BYTES.get(self.dtype, 1.0 if self.dtype.startswith("f8") else 0.0)

    @property
    def stored(self) -> float:
        """Bytes with the padding of a layout in tiles, as TPUs have: their rows are multiples of 128 numbers."""
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        if not tile or not order:
            return self.bytes
        dims = [self.dims[int(axis)] for axis in order.split(",")]  # the fastest first
        for place, size in enumerate(int(size) for size in reversed(tile.group(1).split(","))):
            if place < len(dims):
                dims[place] = -(-dims[place] // size) * size
        return self.bytes * math.prod(dims) / max(1, self.elements)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def shapes(text: str) -> list[Shape]:
    """Every array of a type, which may be a tuple."""
    return [
        Shape(dtype, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size), layout)
        for dtype, dims, layout in _ARRAY.findall(text)
    ]


@dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @cached_property
    def shapes(self) -> list[Shape]:
        """The arrays of its result."""
        return shapes(self.type)

    @cached_property
    def large_bytes(self) -> float:
        """Bytes of its result in the chip's large memory."""
        return sum(shape.bytes for shape in self.shapes if not shape.space)

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from; "" where XLA made it."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found.group(1) if found else ""

    def named(self, attribute: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The list of an attribute, as of `lhs_contracting_dims={1,2}`; empty without it."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(number) for number in found.group(1).split(",") if number) if found else ()


@dataclass(frozen=True, eq=False)
class Computation:
    """Instructions by name, in the order in which they are executed; the last one is the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads the result of each instruction."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in users:
                    users[operand].append(instruction)
        return users

    @cached_property
    def parameters(self) -> list[Instruction]:
        """By their number."""
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return sorted(found, key=lambda each: int(each.operands[0]))

    def operand(self, instruction: Instruction, number: int = 0) -> Instruction | None:
        """The instruction whose result is read; None where there is none of that number."""
        wanted = instruction.operands[number : number + 1]
        return self.instructions.get(wanted[0]) if wanted else None


@dataclass(frozen=True, eq=False)
class Program:
    """A whole module.

    entry: the name of the computation that is run. partitions: devices that it is written for.
    functions: number of a stack frame -> names of the functions on that stack, the innermost first.
    """

    entry: str
    computations: dict[str, Computation]
    partitions: int
    functions: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def calls(self, within: Computation, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """Yields the computations that an instruction of a computation runs, and how often each time."""
        if instruction.opcode == "while":
            for role in ("body", "condition"):
                if (name := instruction.named(role)) is not None:
                    yield name, self.trips(instruction, within) or 1
        elif instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            listed = branches.group(1).replace("%", "").split(", ") if branches else []
            named = [instruction.named(f"{case}_computation") for case in ("true", "false")]
            yield from ((name, 1) for name in [*listed, *named] if name)
        elif (attribute := _RUNS.get(instruction.opcode)) and (name := instruction.named(attribute)):
            yield name, 1

    def trips(self, loop: Instruction, within: Computation) -> int | None:
        """How often the body of a `while` is run; None where the program does not tell.

        CPUs and GPUs write it down. Of a TPU's loop it is read from the condition that its counter is below a number.
        """
        if found := re.search(r'"?known_trip_count"?\s*:\s*\{"?n"?\s*:\s*"?(\d+)', loop.attributes):
            return int(found.group(1))
        condition = self.computations.get(loop.named("condition") or "")
        if condition is None or "direction=LT" not in (below := condition.instructions[condition.root]).attributes:
            return None
        counter, limit = condition.operand(below, 0), condition.operand(below, 1)
        if counter is None or counter.opcode != "get-tuple-element" or limit is None:
            return None
        number = int(re.findall(r"index=(\d+)", counter.attributes)[0])
        carried = within.operand(loop)
        first = within.operand(carried, number) if carried is not None and carried.opcode == "tuple" else None
        while first is not None and first.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            first = within.operand(first)
        if first is None or first.opcode != "constant" or limit.opcode != "constant":
            return None
        return max(0, int(limit.operands[0]) - int(first.operands[0]))

    @cached_property
    def times(self) -> Counter[str]:
        """How often each computation is run in one run of the program, loops multiplied out.

        Of a loop of unknown length the body counts once, and so does each branch of a conditional.
        """
        times: Counter[str] = Counter()

        def run(name: str, often: int) -> None:
            times[name] += often
            for instruction in self.computations[name].instructions.values():
                for callee, each in self.calls(self.computations[name], instruction):
                    if callee in self.computations:
                        run(callee, often * each)

        run(self.entry, 1)
        return times

    @cached_property
    def fused(self) -> frozenset[str]:
        """Computations of fusions, whose intermediate results never reach the chip's large memory."""
        inside: set[str] = set()

        def enter(name: str) -> None:
            inside.add(name)
            for instruction in self.computations[name].instructions.values():
                for callee, _ in self.calls(self.computations[name], instruction):
                    if callee in self.computations:
                        enter(callee)

        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "fusion" and (name := instruction.named("calls")) in self.computations:
                    enter(name)
        return frozenset(inside)

    def executed(self, *, fused: bool) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields every instruction that is run, its computation, and how often.

        Args:
            fused: also those within fusions; without, a fusion is one instruction.
        """
        for name, often in self.times.items():
            if fused or name not in self.fused:
                computation = self.computations[name]
                for instruction in computation.instructions.values():
                    yield computation, instruction, often

    def unknown_loops(self) -> list[str]:
        """Loops that are run and whose length is unknown."""
        return [
            instruction.op_name or instruction.name
            for computation, instruction, _ in self.executed(fused=True)
            if instruction.opcode == "while" and self.trips(instruction, computation) is None
        ]

    def stack(self, instruction: Instruction) -> tuple[str, ...]:
        """Names of the functions that an instruction was traced in, the innermost first; empty where unknown."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return self.functions.get(int(found.group(1)), ()) if found else ()


def parse(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text` gives, or XLA's dump of a program."""
    computations: dict[str, Computation] = {}
    lines: dict[str, Instruction] = {}
    entry, name, root = "", "", ""
    for line in text.splitlines():
        if name and line.startswith("}"):
            computations[name] = Computation(name, lines, root)
            name = ""
        elif name and " = " in line:
            instruction = _instruction(line)
            lines[instruction.name] = instruction
            root = instruction.name if line.lstrip().startswith("ROOT ") else root
        elif not name and (header := _HEADER.match(line)):
            name, root, lines = header.group(2), "", {}
            entry = name if header.group(1) else entry
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Program(entry, computations, int(partitions.group(1)) if partitions else 1, _functions(text))


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    opcode, _, _ = right[end:].lstrip().partition("(")
    start = right.index("(", end + len(opcode))
    stop = _closing(right, start)
    inside = right[start + 1 : stop - 1]
    operands = re.findall(r"%([\w.\-]+)", inside) or [part.strip() for part in inside.split(",")]
    return Instruction(left.lstrip("%"), right[:end], opcode, tuple(operands), right[stop:])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` has closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found.group() == "(" else -1
        if not depth:
            return found.end()
    return len(text)


def _functions(text: str) -> dict[int, tuple[str, ...]]:
    """Number of a stack frame -> the functions on that stack; empty for programs without these tables."""
    frames, locations, functions = (
        {int(number): rest for number, rest in re.findall(r"^(\d+) (.*)$", found.group(1), re.MULTILINE)}
        if (found := table.search(text))
        else {}
        for table in (_FRAMES, _LOCATIONS, _FUNCTIONS)
    )
    # A parent comes before its children. Some versions print its number plus one: the first frame then names itself.
    shift = 1 if "parent_frame_id=1}" in frames.get(1, "") else 0

    def stack(frame: int) -> tuple[str, ...]:
        names: list[str] = []
        while frame in frames:
            location = locations.get(_number(frames[frame], "file_location_id"), "")
            names.append(functions.get(_number(location, "function_name_id"), "").strip('"'))
            parent = _number(frames[frame], "parent_frame_id") - shift
            frame = parent if parent < frame else 0
        return tuple(names)

    return {frame: stack(frame) for frame in frames}


def _number(text: str, key: str) -> int:
    found = re.search(rf"{key}=(\d+)", text)
    return int(found.group(1)) if found else 0
