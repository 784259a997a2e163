"""Plans a training run before chips are rented: compiles its whole step for
chips that need not be there, of TPUs all but the machine code, and says what
it needs of memory and time.

`python launch/plan.py --config=vitl_250m --topology=v5e:8x16` for TPUs, which
needs libtpu; `--config=demo --devices=8` for imitated CPU devices; without
either for the devices at hand. The exit status is 1 if the step does not fit.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from absl import flags
from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import config_flag, read_configuration
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import parse_known, run

if TYPE_CHECKING:
    from r2d2_jax.planning.chips import Chip
    from r2d2_jax.planning.estimate import Estimate

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()
CONFIG = config_flag(FLAGS)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU chips to compile for, such as v5e:8x8, v6e:4x4 or v4:4x4x4.", flag_values=FLAGS
)
SLICES = flags.DEFINE_integer(
    "slices", 1, "So many of these topologies, joined by the network.", lower_bound=1, flag_values=FLAGS
)
DEVICES = flags.DEFINE_integer(
    "devices", None, "CPU devices to imitate and compile for.", lower_bound=1, flag_values=FLAGS
)
MACHINE_CODE = flags.DEFINE_bool(
    "machine_code",
    False,
    "With --topology: also generate the machine code, to count it; minutes in place of seconds for a large model.",
    flag_values=FLAGS,
)
CHIP = flags.DEFINE_string(
    "chip",
    None,
    "Whose memory and rates to assume; by default those of the topology or of the devices at hand. With --devices the "
    "program is a CPU's, and the estimate a rough one.",
    flag_values=FLAGS,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "The global batch, in pairs; the configuration's unless given.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
REMAT = flags.DEFINE_string(
    "remat",
    None,
    "What the backward pass computes again: none, products (all but products with parameters) or all, or a word for "
    "some stacks, such as text:products,cross:all; the configuration's unless given.",
    flag_values=FLAGS,
)
FIT = flags.DEFINE_bool(
    "fit",
    False,
    "Find the largest batch that fits with each rematerialisation (with --remat: that one); with --batch_size the "
    "cheapest rematerialisation with which it fits. Compiles several times.",
    flag_values=FLAGS,
)
PAIRS = flags.DEFINE_integer(
    "pairs", None, "Pairs of an epoch, such as 250_000_000; those of the data set unless given.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
JSON = flags.DEFINE_string("json", None, "Also write the plan to this file.", flag_values=FLAGS)
flags.mark_flags_as_required(["config"], flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the plan; returns the exit status, 1 if the step does not fit."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    _check_flags()
    values = read_configuration(str(CONFIG.value), overrides)
    for block, key, given in (("train", "batch_size", BATCH_SIZE.value), ("model", "remat", REMAT.value)):
        if given is not None and isinstance(values.get(block), ConfigDict):  # without the block, the reader says so
            with values.unlocked():  # a configuration may leave the key at its default
                values[block][key] = given
    if JSON.value:
        check_json_path(JSON.value)
    logger.info("loading libraries")
    from r2d2_jax.planning.chips import named_chip
    from r2d2_jax.planning.epoch import pairs_of_epoch
    from r2d2_jax.planning.report import Plan, document, table
    from r2d2_jax.train.plan import traced_forward_cost
    from r2d2_jax.train.sizes import with_sizes

    config = Config.from_config_dict(with_sizes(values))
    named = named_chip(CHIP.value) if CHIP.value is not None else None
    pairs = PAIRS.value or pairs_of_epoch(config.data)
    target = _target(named)
    estimates = _estimated(config, target)
    logger.info("counting the multiply-adds of the forward")
    name = Path(str(CONFIG.value)).name.removesuffix(".py")
    plan = Plan(name, target.name, estimates, traced_forward_cost(config), config.train.epochs, pairs)
    print(table(plan))
    if JSON.value:
        write_json(document(plan), JSON.value)
    return 0 if plan.estimate.usage.fits else 1


def _check_flags() -> None:
    if SLICES.value > 1 and not TOPOLOGY.value:
        raise UserError("--slices joins several of a --topology, which is not given")
    if MACHINE_CODE.value and not TOPOLOGY.value:
        raise UserError("--machine_code is for a --topology, which is not given; devices at hand always generate it")
    if TOPOLOGY.value and DEVICES.value:
        raise UserError("--topology and --devices are both given; name TPU chips, or how many CPU devices to imitate")


@dataclass(frozen=True)
class Target:
    """What is compiled for.

    name: in words. chips: how many. chip: whose memory and rates count; None of a CPU. estimate: compiles a
    configuration's step.
    """

    name: str
    chips: int
    chip: "Chip | None"
    estimate: "Callable[[Config], Estimate]"


def _target(named: "Chip | None") -> Target:
    """What the flags name; `named` is the chip of --chip, if it is given."""
    from r2d2_jax.planning.chips import chip_of, named_chip
    from r2d2_jax.planning.devices import ImitatedCpus, described
    from r2d2_jax.planning.estimate import estimate, estimate_apart

    if TOPOLOGY.value is not None or DEVICES.value:
        jax.config.update("jax_platforms", "cpu")  # no accelerator that is here is needed, or held
    if TOPOLOGY.value is not None:
        topology = described(TOPOLOGY.value, SLICES.value)
        chip = named or named_chip(topology.kind)
        compiled = partial(estimate_apart, described=topology, chip=chip, machine_code=MACHINE_CODE.value)
        return Target(str(topology), topology.chips, chip, compiled)
    if DEVICES.value:
        cpus = ImitatedCpus(DEVICES.value)
        compiled = partial(estimate_apart, described=cpus, chip=named, machine_code=True)
        return Target(str(cpus), cpus.chips, named, compiled)
    devices = jax.devices()
    known = named or chip_of(devices[0])
    name = f"{len(devices)} x {devices[0].device_kind}"
    return Target(name, len(devices), known, partial(estimate, devices=devices, chip=known))


def _estimated(config: Config, target: Target) -> "list[Estimate]":
    """The step that the flags ask for, found by several compilations with --fit.

    With --fit alone others come after it, of which each has the largest batch of another rematerialisation.
    """
    from r2d2_jax.planning.estimate import is_allowed, with_batch, with_remat
    from r2d2_jax.planning.fit import SIZES, cheapest, largest, rematerialisations
    from r2d2_jax.planning.report import choice

    batch_size = config.train.batch_size

    def compiled(remat: str, pairs: int) -> "Estimate":
        logger.info("compiling for %s: %d pairs, rematerialisation: %s", target.name, pairs, remat)
        return target.estimate(with_batch(with_remat(config, remat), pairs))

    if not FIT.value:
        return [compiled(config.model.remat, batch_size)]
    if target.chip is None:
        raise UserError("--fit needs to know the memory of a chip, and a CPU has none of its own; name one with --chip")
    remats = [REMAT.value] if REMAT.value else rematerialisations(config.model)
    if BATCH_SIZE.value:
        return [cheapest(lambda remat: compiled(remat, batch_size), remats, batch_size)]
    each = target.chips * config.train.micro_batches
    batches = [size * each for size in SIZES if is_allowed(config, size * each)]
    if not batches:
        raise UserError(f"no batch of {each} pairs or a multiple of it goes with the configuration; see --batch_size")
    found = largest(compiled, remats, batches, batch_size)
    print(choice(found))
    if found[0].batch_size == batches[-1]:
        print(
            f"{batches[-1]} pairs is the largest batch that is tried: more is beyond loss.queue_length or "
            f"{SIZES[-1]:,} pairs a chip"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
