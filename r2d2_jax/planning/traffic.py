"""What chips say to each other in a step: every collective of a compiled program, and which part of the method asks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from r2d2_jax.planning.hlo import Computation, Instruction, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
STARTS = 'custom_call_target="AsyncCollectiveStart"'
HARD_NEGATIVES, CONTRASTIVE, GATHERS, GRADIENTS, OTHER = (
    "hard negatives",
    "contrastive embeddings",
    "parameter gathers",
    "gradient reduction",
    "masking, queue, norms, metrics",
)
ORIGINS = (HARD_NEGATIVES, CONTRASTIVE, GATHERS, GRADIENTS, OTHER)
# Functions on the stack that say which part of the method a collective belongs to; the first that matches counts.
_FUNCTIONS = (
    (HARD_NEGATIVES, {"with_negatives", "sample_negatives", "rows_of_all_devices"}),
    (CONTRASTIVE, {"similarities", "contrastive_metrics", "gcpr", "tgd", "Pretraining._target_guided", "unit_norm"}),
    (OTHER, {"mask_tokens", "mask_words", "enqueue", "match_loss", "masked_lm"}),
)


@dataclass(frozen=True)
class Collective:
    """A collective operation of a program.

    kind: of `KINDS`. times: how often it is run in a step. group: how many chips take part together.
    bytes: its result on each chip, for one run. origin: of `ORIGINS`. op_name: where it comes from.
    """

    kind: str
    times: int
    group: int
    bytes: float
    origin: str
    op_name: str

    @property
    def sent(self) -> float:
        """Bytes that each chip sends, and as many receives, in one run: those of a ring, the least that is possible."""
        others = (self.group - 1) / self.group
        share = {"all-reduce": 2 * others, "reduce-scatter": float(self.group - 1)}
        return self.bytes * share.get(self.kind, 1.0 if self.kind.startswith("collective") else others)


def collectives(program: Program) -> list[Collective]:
    """Every collective, once where one is begun and awaited by several instructions."""
    found = []
    for computation, outer, times in program.executed(fused=False):
        for inner, instruction in _within(program, computation, outer):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or _goes_on(inner, instruction, program):
                continue
            result = _result(inner, instruction)
            if inner.name.startswith("all-reduce-scatter"):  # how TPUs write it: a fusion of a sum and a slice of it
                kind, result = "reduce-scatter", outer
            named = instruction if instruction.op_name else outer
            origin = _origin(kind, named.op_name, program.stack(named))
            size, group = sum(shape.bytes for shape in result.shapes), _group(instruction, program.partitions)
            found.append(Collective(kind, times, group, size, origin, named.op_name))
    return found


def _within(program: Program, where: Computation, outer: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """Yields an instruction or, of a fusion, all that it is made of."""
    yield where, outer
    if outer.opcode == "fusion":
        for callee, _ in program.calls(where, outer):
            for each in program.computations[callee].instructions.values():
                yield from _within(program, program.computations[callee], each)


def _goes_on(inner: Computation, instruction: Instruction, program: Program) -> bool:
    """Whether a collective of a fusion is one that another fusion has begun.

    TPUs begin a collective in one fusion, and repeat it in those that go on with it or await it.
    """
    if inner.name not in program.fused:
        return False
    begins = any(STARTS in user.attributes for user in inner.users[instruction.name])
    return not begins and _channel(instruction) in _begun(program)


@cache
def _begun(program: Program) -> frozenset[str]:
    """Channels of the collectives that TPUs begin in one fusion and await in another."""
    return frozenset(
        _channel(source)
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if STARTS in instruction.attributes and (source := computation.operand(instruction)) is not None
    )


def _channel(instruction: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found.group(1) if found else instruction.name


def _result(computation: Computation, instruction: Instruction) -> Instruction:
    """What has the result of a collective as its own: of one that is begun here, the instruction that awaits it."""
    if not instruction.opcode.endswith("-start"):
        return instruction
    done = (user for user in computation.users[instruction.name] if user.opcode.endswith("-done"))
    return next(done, instruction)


def _group(instruction: Instruction, partitions: int) -> int:
    """How many devices a collective joins; all of the program's where it lists none."""
    text = instruction.attributes
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{((?:'[^']*'[^,}]*,?\s*)+)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        group = 1
        for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found.group(2)):
            group *= int(part or sizes[axis])
        return group
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(found.group(2))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found.group(1).count(",") + 1
    return partitions


def _origin(kind: str, op_name: str, stack: tuple[str, ...]) -> str:
    functions = set(stack)
    for origin, known in _FUNCTIONS:
        if functions & known:
            return origin
    if kind in ("all-to-all", "ragged-all-to-all"):
        return HARD_NEGATIVES  # nothing else exchanges rows
    if kind == "all-gather":
        return GATHERS if "R2D2." in op_name or "_whole_tables.<locals>.gather" in functions else OTHER
    return GRADIENTS if "transpose(" in op_name else OTHER
