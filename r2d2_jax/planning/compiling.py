"""A compiled step as a plan reads it: the program's text and what it keeps in memory, with or without machine code.

TPUs' machine code takes most of the time of a compilation, and says nothing that a plan reads but its own size. XLA's
dump of a program is complete before: optimised, scheduled, and with a place in memory for every array.
"""

import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax

from r2d2_jax.train.plan import step_memory

_DUMP = ".after_optimizations"
_LAST_OF_DUMP = "_after_buffer_assignment.txt"  # what a TPU's compiler writes last before it generates code
# "allocation 7: size 512, color 1, page 0, preallocated-temp:"; a color is a memory beside the large one.
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (color \d+, )?(.*):$", re.MULTILINE)
_POLL = 0.1  # seconds between two looks at the dump


@dataclass(frozen=True)
class CompiledStep:
    """What a compiler made of a step for one chip, in bytes of its large memory.

    text: the optimised program, as `jax.stages.Compiled.as_text` has it. kept: arguments, results that take no
    argument's place and, where no code was generated, constants. temporaries: what is needed meanwhile. code: machine
    code; None where none was generated.
    """

    text: str
    kept: int
    temporaries: int
    code: int | None


def with_code(lowered: jax.stages.Lowered) -> CompiledStep:
    """Compiles a step to its end."""
    return _finished(lowered.compile())


def without_code(lowered: jax.stages.Lowered) -> CompiledStep:
    """Compiles a step until its program and its memory are known; to its end where a compiler does not dump them.

    The compiler goes on in a thread and cannot be stopped: call this in a process that ends soon, see `in_child`.
    """
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiling = ThreadPoolExecutor(1).submit(lowered.compile, options)
        while not compiling.done():
            if any(Path(folder).glob(f"*{_DUMP}{_LAST_OF_DUMP}")):
                return read_dump(Path(folder))
            time.sleep(_POLL)
        return _finished(compiling.result())


def read_dump(folder: Path) -> CompiledStep:
    """Reads XLA's dump of one program: its optimised text and its buffer assignment."""
    text, assignment = (next(folder.glob(f"*after_optimizations{end}")) for end in (".txt", "-buffer-assignment.txt"))
    kept = temporaries = 0
    for size, elsewhere, what in _ALLOCATION.findall(assignment.read_text(encoding="utf-8")):
        if "preallocated-temp" in what and not elsewhere:
            temporaries += int(size)
        elif "thread-local" not in what and not elsewhere:
            kept += int(size)
    return CompiledStep(text.read_text(encoding="utf-8"), kept, temporaries, code=None)


def _finished(compiled: jax.stages.Compiled) -> CompiledStep:
    memory = step_memory(compiled)
    kept = memory.arguments + max(0, memory.results - memory.donated)
    return CompiledStep(compiled.as_text() or "", kept, memory.temporaries, memory.program)
