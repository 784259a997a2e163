"""A compiled step as a plan reads it: the program's text and what it keeps in memory, with or without machine code.

TPUs' machine code takes most of the time of a compilation, and says nothing that a plan reads but its own size. XLA's
dump of a program is complete before: optimised, scheduled, and with a place in memory for every array.
"""

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax

from r2d2_jax.train.plan import step_memory

logger = logging.getLogger(__name__)

# The ends of the names of XLA's dump files: the program, its places in memory, and what TPUs' compiler writes last
# before it generates machine code.
_TEXT, _PLACES, _LAST = (
    f"after_optimizations{end}.txt" for end in ("", "-buffer-assignment", "_after_buffer_assignment")
)
# "allocation 7: size 512, color 1, page 0, preallocated-temp:"; a color is a memory beside the large one.
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (color \d+, )?(.*):$", re.MULTILINE)
_POLL = 0.1  # seconds between two looks at the dump


@dataclass(frozen=True)
class CompiledStep:
    """What a compiler made of a step for one chip, in bytes of its large memory.

    text: the optimised program, of a TPU before or after machine code was generated. kept: arguments, results that take
    no argument's place and, where no code was generated, constants. temporaries: what is needed meanwhile. code:
    machine code; None where none was generated.
    """

    text: str
    kept: int
    temporaries: int
    code: int | None


def with_code(lowered: jax.stages.Lowered) -> CompiledStep:
    """Compiles a step to its end."""
    return _finished(lowered.compile())


def without_code(lowered: jax.stages.Lowered, folder: Path) -> CompiledStep:
    """Compiles a step until its program and its memory are known; to its end where the compiler does not dump them.

    The compiler goes on in a thread and cannot be stopped: call this in a process that ends soon, see `in_child`.

    Args:
        lowered: the traced step.
        folder: an empty one for the dump; to be removed once the process has ended.
    """
    options: dict[str, str | bool] = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    compiling = ThreadPoolExecutor(1).submit(lowered.compile, options)
    while not compiling.done() and not any(folder.glob(f"*{_LAST}")):
        time.sleep(_POLL)
    if any(folder.glob(f"*{_LAST}")):
        if (dumped := read_dump(folder)) is not None:
            return dumped
        logger.warning(
            "the compiler's dump in %s cannot be read, perhaps for want of room; waiting for machine code, which may "
            "take many minutes", folder,
        )  # fmt: skip
    return _finished(compiling.result())


def read_dump(folder: Path) -> CompiledStep | None:
    """Reads XLA's dump of one program: its optimised text and its buffer assignment.

    Returns:
        None where it is not whole, or not written in the form that is known.
    """
    text, places = (next(folder.glob(f"*{name}"), None) for name in (_TEXT, _PLACES))
    if text is None or places is None:
        return None
    program, allocations = text.read_text(encoding="utf-8"), places.read_text(encoding="utf-8")
    found = [(int(size), what) for size, elsewhere, what in _ALLOCATION.findall(allocations) if not elsewhere]
    temporaries = sum(size for size, what in found if "preallocated-temp" in what)
    kept = sum(size for size, what in found if "preallocated-temp" not in what and "thread-local" not in what)
    has_end = "\nENTRY " in program and program.rstrip().endswith("}")
    if not has_end or not any("parameter" in what for _, what in found):
        return None
    return CompiledStep(program, kept, temporaries, code=None)


def _finished(compiled: jax.stages.Compiled) -> CompiledStep:
    memory = step_memory(compiled)
    kept = memory.arguments + max(0, memory.results - memory.donated)
    return CompiledStep(compiled.as_text() or "", kept, memory.temporaries, memory.program)
