"""The plan of one step: its configuration compiled for devices, and what the program says of memory, work and time."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.planning.child import in_child
from r2d2_jax.planning.chips import GIB, Chip, other_than
from r2d2_jax.planning.compiling import CompiledStep, with_code, without_code
from r2d2_jax.planning.devices import ImitatedCpus, Topology, torus
from r2d2_jax.planning.hlo import Shape, parse, shapes
from r2d2_jax.planning.memory import Temporary, largest_temporaries, readable, state_parts
from r2d2_jax.planning.roofline import Roofline, assumptions, roofline
from r2d2_jax.planning.traffic import Collective, collectives
from r2d2_jax.planning.work import Operation, operations, uncounted_calls
from r2d2_jax.train.plan import step_plan

Compiler = Callable[[jax.stages.Lowered], CompiledStep]
# Bytes that are counted for machine code that was not generated: more than was measured, which is 36 MiB for the
# demonstration, 0.29 GiB for ViT-L on 16 v5e and 0.41 on 1,024 (our decision).
MACHINE_CODE = 0.5 * GIB
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Usage:
    """Bytes on each chip.

    parts: of the state and the batch, as their shapes say. needed: in all, as XLA says. limit: what the chip has; None
    of a CPU. largest: arrays that are there when temporaries need most. kept, temporaries, code: of what is needed, see
    `CompiledStep`; None where the compiler gave up because memory ends, and said how much in all alone.
    code_is_assumed: none was generated, and `MACHINE_CODE` is counted.
    """

    parts: dict[str, int]
    needed: float
    limit: float | None
    largest: list[Temporary] = field(default_factory=list)
    kept: float | None = None
    temporaries: float | None = None
    code: float | None = None
    code_is_assumed: bool = False

    @property
    def fits(self) -> bool:
        """Whether it is known not to be too much."""
        return self.limit is None or self.needed <= self.limit


@dataclass(frozen=True)
class Work:
    """What a compiled program does in a step on each chip.

    operations, traffic: instructions that multiply or move something, and collectives. time: None of a CPU whose chip
    is not named. notes: what could not be read in it.
    """

    operations: list[Operation]
    traffic: list[Collective]
    time: Roofline | None
    notes: list[str]

    @property
    def products(self) -> float:
        """Multiply-adds of a chip."""
        return sum(each.times * (each.products + each.exact_products) for each in self.operations)


@dataclass(frozen=True)
class Estimate:
    """A planned step.

    remat: as `ModelConfig.remat`. batch_size: the global batch. mesh: devices along its axes. device_kind: as JAX calls
    them. chip: whose rates are assumed; None of a CPU. work: None where the compiler gave up because memory ends.
    """

    remat: str
    batch_size: int
    mesh: dict[str, int]
    device_kind: str
    chip: Chip | None
    usage: Usage
    work: Work | None
    compile_seconds: float
    assumptions: list[str] = field(default_factory=list)

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.mesh.values())

    @property
    def pairs_per_second(self) -> float | None:
        """Of all chips together; None where the time is not known."""
        known = self.work is not None and self.work.time is not None
        return self.batch_size / self.work.time.step if known else None  # type: ignore[union-attr]


def with_remat(config: Config, remat: str) -> Config:
    """The configuration with another rematerialisation, as `ModelConfig.remat` has it."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def with_batch(config: Config, batch_size: int) -> Config:
    """The configuration with another global batch.

    Raises:
        UserError: something else of the configuration contradicts it.
    """
    values = config.to_dict()
    values["train"]["batch_size"] = batch_size
    return Config.from_config_dict(ConfigDict(values))


def is_allowed(config: Config, batch_size: int) -> bool:
    """Whether nothing else of a configuration, such as the length of its queue, contradicts a global batch."""
    try:
        with_batch(config, batch_size)
    except UserError:
        return False
    return True


def estimate_apart(
    config: Config, described: Topology | ImitatedCpus, chip: Chip | None, *, machine_code: bool
) -> Estimate:
    """As `estimate` for chips that are not here, in a process of its own: it holds libtpu, and can be ended.

    Raises:
        UserError: also if there is no folder for temporary files.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix="r2d2_plan_")
    except OSError as error:
        raise UserError(f"no temporary folder can be made ({error}); set TMPDIR to a folder with room") from error
    with temporary as folder:
        compiled = with_code if machine_code else partial(without_code, folder=Path(folder))
        return in_child(f"compile for {described}", _estimate_apart, config, described, chip, compiled)


def _estimate_apart(
    config: Config, described: Topology | ImitatedCpus, chip: Chip | None, compiled: Compiler
) -> Estimate:
    jax.config.update("jax_platforms", "cpu")  # no accelerator that is here is needed, or held
    return estimate(config, described.devices(), chip, compiled)


def estimate(config: Config, devices: list[Any], chip: Chip | None, compiled: Compiler = with_code) -> Estimate:
    """Compiles a configuration's step for devices and reads what it needs.

    Args:
        config: the whole configuration.
        devices: at hand, or of a topology that is only described.
        chip: whose memory and rates count; None says nothing of either.
        compiled: how the traced step is compiled.

    Raises:
        UserError: the mesh does not fit the devices, or the batch the mesh.
    """
    plan = step_plan(config, devices)
    start, parts, limit = time.perf_counter(), state_parts(plan), chip.memory if chip else None
    axes, other = torus(devices), other_than(chip, devices[0]) if chip else ""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    try:
        made = compiled(plan.lowered())
    except jax.errors.JaxRuntimeError as error:
        too_large = too_much(str(error), parts)
        if too_large is None:
            raise
        usage, work = too_large, None
    else:
        program = parse(made.text)
        usage = _usage(made, parts, limit, largest_temporaries(program))
        done, traffic = operations(program), collectives(program)
        notes = [f"a loop of unknown length counts once: {name}" for name in program.unknown_loops()]
        calls = uncounted_calls(program)
        notes += [f"products in {calls[name]} call(s) of {name} are not counted" for name in sorted(calls)]
        work = Work(done, traffic, roofline(done, traffic, chip, axes) if chip else None, notes)
    return Estimate(
        remat=config.model.remat,
        batch_size=config.train.batch_size,
        mesh={name: int(size) for name, size in plan.mesh.shape.items()},
        device_kind=devices[0].device_kind,
        chip=chip,
        usage=usage,
        work=work,
        compile_seconds=time.perf_counter() - start,
        assumptions=assumptions(chip, len(devices), torus=bool(axes), other=other, slices=slices) if chip else [],
    )


def _usage(made: CompiledStep, parts: dict[str, int], limit: float | None, largest: list[Temporary]) -> Usage:
    code = MACHINE_CODE if made.code is None else made.code
    needed = made.kept + made.temporaries + code
    return Usage(parts, needed, limit, largest, made.kept, made.temporaries, code, code_is_assumed=made.code is None)


def too_much(message: str, parts: dict[str, int]) -> Usage | None:
    """What a TPU compiler says when memory ends: how much of how much, and perhaps the largest arrays.

    Args:
        message: "... Used 18.60G of 15.75G hbm ..." of all, or "... required for HLO temporaries (18.60G) exceeds
            available HBM (15.75G)" of temporaries alone; and paragraphs "1. Size: 1.50G", "Operator: op_name=...",
            "Shape: ...".
        parts: of the state and the batch.

    Returns:
        None of any other message, such as those of a chip's on-chip memory, which another batch need not mend.
    """
    said = r"([\d.]+)([KMGT]?)"
    used = re.search(rf"Used {said} of {said} hbm", message)
    temporaries = re.search(rf"required for [\w ]*\({said}\) exceeds available HBM \({said}\)", message)
    found = used or temporaries
    if found is None:
        return None
    needed, limit = (float(found.group(at)) * _UNITS[found.group(at + 1)] for at in (1, 3))
    largest = []
    for paragraph in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(r"([\d.]+)([KMGT]?)", paragraph)
        name = re.search(r'op_name="([^"]*)"', paragraph)
        array = re.search(r"Shape: (\S+)", paragraph)
        if size:
            shape: Shape | str = shapes(array.group(1))[0] if array and shapes(array.group(1)) else ""
            bytes_ = float(size.group(1)) * _UNITS[size.group(2)]
            largest.append(Temporary(readable(name.group(1)) if name else "", str(shape), bytes_, 1))
    if used is not None:
        return Usage(parts, needed, limit, largest)
    kept = sum(parts.values())
    return Usage(parts, kept + needed + MACHINE_CODE, limit, largest, kept, needed, MACHINE_CODE, code_is_assumed=True)
