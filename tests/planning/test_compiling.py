"""planning/compiling.py: XLA's dump says what the finished program says, and its end is not waited for."""

import secrets
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from r2d2_jax.planning.compiling import CompiledStep, read_dump, with_code, without_code
from r2d2_jax.planning.hlo import Program, parse

PROGRAM = """HloModule jit_step

ENTRY %main (x: bf16[2,1024]) -> bf16[2,1024] {
  ROOT %x = bf16[2,1024] parameter(0)
}
"""
PLACES = """BufferAssignment:
allocation 0: size 512, page 0, thread-local:
 value: <2 add.19 @0> (size=512,offset=0): bf16[]{:T(256)}
allocation 1: size 4096, page 0, parameter 1, shape |bf16[2,1024]| at ShapeIndex {}, maybe-live-out, must-alias:
allocation 2: size 1024, page 0, constant:
allocation 3: size 8192, page 0, preallocated-temp:
allocation 4: size 77, color 1, page 0, preallocated-temp:
allocation 5: size 99, color 5, page 0, constant:
"""


def function(x: jax.Array, w: jax.Array) -> jax.Array:
    """Something with a loop, constants and temporaries."""
    hidden, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), h), x, None, length=5)
    return jnp.sum(jnp.sort(hidden @ w, axis=1) ** 2)


@pytest.fixture
def lowered() -> jax.stages.Lowered:
    """With a number of its own: what a compilation cache has is not dumped."""
    own = float(secrets.randbelow(2**20))
    return jax.jit(lambda x, w: jax.grad(function, argnums=1)(x + own, w)).lower(jnp.ones((64, 32)), jnp.ones((32, 32)))


def instructions(program: Program) -> list[tuple[str, int, int]]:
    """Operations by what they are, how often they are run and how large their results are."""
    return sorted((one.opcode, times, int(one.large_bytes)) for _, one, times in program.executed(fused=True))


def test_the_dump_says_what_the_finished_program_says(lowered: jax.stages.Lowered, tmp_path: Path) -> None:
    lowered.compile({"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True})
    dumped, whole = read_dump(tmp_path), with_code(lowered)
    assert dumped is not None
    assert instructions(parse(dumped.text)) == instructions(parse(whole.text))
    assert dumped.temporaries == whole.temporaries > 0
    assert whole.kept <= dumped.kept <= whole.kept + 64  # constants: a few numbers
    assert dumped.code is None


def test_a_compiler_that_dumps_no_tpu_program_is_awaited(lowered: jax.stages.Lowered, tmp_path: Path) -> None:
    found, whole = without_code(lowered, tmp_path), with_code(lowered)
    assert instructions(parse(found.text)) == instructions(parse(whole.text))
    assert (found.kept, found.temporaries, found.code) == (whole.kept, whole.temporaries, whole.code)
    assert found.code is not None


class Slow:
    """A lowered program whose compiler dumps it, as a TPU's does, and then takes its time."""

    def __init__(self, program: str = PROGRAM, places: str = PLACES) -> None:
        self.dumped = {
            "_before_buffer_assignment.txt": "not this one",
            "-buffer-assignment.txt": places,
            "-buffer-assignment-values.txt": "not this one either",
            ".txt": program,
            "_after_buffer_assignment.txt": program,
        }
        self.ends = threading.Event()

    def compile(self, options: dict[str, Any]) -> None:
        for end, text in self.dumped.items():
            Path(options["xla_dump_to"], f"module_0.jit_step.cl_1.after_optimizations{end}").write_text(text)
        self.ends.wait()
        raise RuntimeError("it was awaited")


def test_machine_code_is_not_awaited(tmp_path: Path) -> None:
    """Memories beside the large one do not count, nor what a computation has on its stack."""
    slow: Any = Slow()
    assert without_code(slow, tmp_path) == CompiledStep(PROGRAM, 4096 + 1024, 8192, None)
    slow.ends.set()


@pytest.mark.parametrize(
    "changed",
    [
        {"program": PROGRAM[: PROGRAM.index("ROOT")]},
        {"program": "HloModule jit_step"},
        {"places": PLACES.replace("allocation", "buffer")},
        {"places": "BufferAssignment:\n"},
    ],
)
def test_a_dump_that_cannot_be_read_is_no_program(
    tmp_path: Path, changed: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """It would be one of no bytes, which fits everywhere; the finished program is awaited in its place."""
    slow: Any = Slow(**changed)
    slow.ends.set()
    with pytest.raises(RuntimeError, match="it was awaited"):
        without_code(slow, tmp_path)
    assert f"the compiler's dump in {tmp_path} cannot be read" in caplog.text


def test_a_dump_without_the_program(tmp_path: Path) -> None:
    (tmp_path / "module_0.jit_step.after_optimizations-buffer-assignment.txt").write_text(PLACES)
    assert read_dump(tmp_path) is None


def test_what_the_compiler_refuses_is_raised(tmp_path: Path) -> None:
    class Refusing:
        def compile(self, options: dict[str, Any]) -> None:
            raise RuntimeError("Used 18.60G of 15.75G hbm")

    refusing: Any = Refusing()
    with pytest.raises(RuntimeError, match="Used 18.60G"):
        without_code(refusing, tmp_path)
