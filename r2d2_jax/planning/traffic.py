"""What chips say to each other in a step: every collective of a compiled program, and which part of the method asks."""

import re
from collections import deque
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
# What TPUs send over the network to other slices is a kind of its own.
BETWEEN_SLICES = " between slices"
ONE_TO_ONE = "one-to-one", "collective-permute"  # TPUs' name, and XLA's
STATE = "state."  # how names of the step's arguments begin
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
    (CONTRASTIVE, {"pre_ranking", "similarities", "gcpr", "tgd", "Pretraining._target_guided", "unit_norm"}),
    (OTHER, {"mask_tokens", "mask_words", "enqueue", "match_loss", "masked_lm"}),
)


@dataclass(frozen=True)
class Collective:
    """A collective operation of a program, or the part of one between slices.

    kind: of `KINDS`, or that and `BETWEEN_SLICES`. times: how often it is run in a step. group: how many chips take
    part together, or slices. bytes: its result on each chip, for one run; between slices what each chip gives to it.
    origin: of `ORIGINS`. op_name: where it comes from.
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
        shares = {"all-reduce": 2 * others, "reduce-scatter": float(self.group - 1)}
        shares |= {"all-gather" + BETWEEN_SLICES: float(self.group - 1), "all-reduce" + BETWEEN_SLICES: 2 * others}
        return self.bytes * shares.get(self.kind, 1.0 if self.kind.startswith("collective") else others)


def collectives(program: Program) -> list[Collective]:
    """Every collective, once where one is begun and awaited by several instructions."""
    found = []
    for computation, outer, times in program.executed(fused=False):
        for inner, instruction in _within(program, computation, outer):
            kind = instruction.opcode.removesuffix("-start")
            if kind == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
                found.append(_between_slices(program, computation, instruction, times))
            if kind not in KINDS or goes_on(inner, instruction, program):
                continue
            result, within = _result(inner, instruction), [(inner, instruction), (computation, outer)]
            if inner.name.startswith("all-reduce-scatter"):  # how TPUs write it: a fusion of a sum and a slice of it
                kind, result, within = "reduce-scatter", outer, within[1:]
            asked = _asked(program, kind, within)
            size, group = sum(shape.bytes for shape in result.shapes), _group(instruction, program.partitions)
            found.append(Collective(kind, times, group, size, *asked))
    return found


def _between_slices(program: Program, where: Computation, send: Instruction, times: int) -> Collective:
    """The part of a collective that goes over the network, which a TPU's program hands to its host."""
    asked, given = _asked(program, _between(send), [(where, send)]), where.operand(send)
    size = sum(shape.bytes for shape in (given or send).shapes)
    return Collective(_between(send) + BETWEEN_SLICES, times, _slices(send), size, *asked)


def _between(transfer: Instruction) -> str:
    """The kind of collective that a `send` or `recv` is a part of."""
    return _attribute(transfer, "_xla_megascale_transfer_type").lower().replace("_", "-").replace(*ONE_TO_ONE)


def _attribute(instruction: Instruction, name: str) -> str:
    found = re.search(rf'\b{name}="?(\w[\w.-]*)', instruction.attributes)
    return found.group(1) if found else ""


def _slices(send: Instruction) -> int:
    """How many take part: those listed as in "{1,2,3,4}x{0:255}", or those of chips such as 300017, of the third.

    Of several groups of chips it is the first.
    """
    target = re.search(r"_xla_megascale_target=(.*?),_xla_", send.attributes)
    text = target.group(1) if target else ""
    if found := re.search(r"\{([\d,]+)\}x", text):
        return found.group(1).count(",") + 1
    slices = {int(chip) // 100_000 for chip in re.findall(r"\d{6,}", text.partition("}")[0])}
    assert slices, f"{send.name} goes to slices that its attributes do not tell: {send.attributes[:200]}"
    return len(slices)


def _asked(program: Program, kind: str, within: list[tuple[Computation, Instruction]]) -> tuple[str, str]:
    """The part of the method that asks for a collective, and where in the traced program that is.

    That is where its operands were made: the nearest instruction with a name, also behind what came from other slices.

    Args:
        program: the whole module.
        kind: of collective.
        within: a computation and the collective in it, then the outermost fusion that calls it, if any.
    """
    outer, waiting = within[1:], deque([(*within[0], kind)])
    seen: set[str] = set()
    while waiting:
        where, this, part_of = waiting.popleft()
        if this.op_name.startswith(("jit(", STATE)):
            return _origin(part_of, this.op_name, program.stack(this)), this.op_name
        read = [(where, each, part_of) for name in this.operands if (each := where.instructions.get(name))]
        if this.opcode == "recv":
            read = [(where, each, _between(each)) for each in where.instructions.values() if _is_met(each, this)]
        if this.opcode == "parameter":
            number = int(this.operands[0])
            read = [(caller, each, part_of) for caller, fusion in outer if (each := caller.operand(fusion, number))]
        waiting.extend(each for each in read if each[1].name not in seen)
        seen.update(each[1].name for each in read)
    caller = within[-1][1]  # no name anywhere: take the fusion's, though it may be that of what it computes meanwhile
    return _origin(kind, caller.op_name, program.stack(caller)), caller.op_name


def _is_met(send: Instruction, received: Instruction) -> bool:
    name = "_xla_host_transfer_rendezvous"
    return send.opcode == "send" and _attribute(send, name) == _attribute(received, name) != ""


def _within(program: Program, where: Computation, outer: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """Yields an instruction or, of a fusion, all that it is made of."""
    yield where, outer
    if outer.opcode == "fusion":
        for callee, _ in program.calls(where, outer):
            for each in program.computations[callee].instructions.values():
                yield from _within(program, program.computations[callee], each)


def goes_on(inner: Computation, instruction: Instruction, program: Program) -> bool:
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
        of_parameters = op_name.startswith(STATE) or "R2D2." in op_name or "_whole_tables.<locals>.gather" in functions
        return GATHERS if of_parameters else OTHER
    return GRADIENTS if "transpose(" in op_name else OTHER
