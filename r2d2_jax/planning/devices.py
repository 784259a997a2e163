"""The devices that a plan is made for, which need not be there."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from r2d2_jax.errors import UserError, first_line

AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # of a topology's torus
LONGEST_AXIS = 16  # where there are two
# Chips of the largest slice, a whole pod: docs.cloud.google.com/tpu/docs/v4 and /v5p. libtpu describes larger ones.
PODS = {"v4": 4096, "v5p": 8960}
_NAME = re.compile(r"[a-z]\w*:[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", re.ASCII)


@dataclass(frozen=True)
class Topology:
    """TPU chips that are only described: so many slices of chips that lie as in `name`, such as "v5e:4x4"."""

    name: str
    slices: int = 1

    def __str__(self) -> str:
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name

    @property
    def kind(self) -> str:
        """Of chip, such as "v5e"."""
        return self.name.partition(":")[0]

    @property
    def axes(self) -> tuple[int, ...]:
        """Chips of a slice along each axis."""
        return tuple(map(int, self.name.partition(":")[2].split("x")))

    @property
    def chips(self) -> int:
        """Of all slices together."""
        return self.slices * math.prod(self.axes)

    def devices(self) -> list[Any]:
        """The chips, described by libtpu.

        Raises:
            UserError: it does not know the topology.
        """
        options: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        # As on a real v4, where a device of JAX is a chip, not one of its two cores.
        options |= {"chip_config_name": "megacore"} if self.kind == "v4" else {}
        # It asks neither a metadata server nor other hosts for what this one is, and does not warn that nobody says.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
        try:
            return list(topologies.get_topology_desc(self.name, "tpu", **options).devices)
        except Exception as error:  # libtpu says all that it finds wrong with errors of its own
            if "lockfile" in str(error):
                raise UserError(
                    "another process of this machine uses libtpu, which one at a time may; wait until it has ended, or "
                    "set ALLOW_MULTIPLE_LIBTPU_LOAD=1 where no TPU is attached"
                ) from error
            raise UserError(
                f"there is no topology --topology={self.name}: {first_line(error)}; name one like v5e:8x8, v6e:4x4, "
                "v4:4x4x4 or v5p:2x2x2"
            ) from error


@dataclass(frozen=True)
class ImitatedCpus:
    """So many CPU devices that JAX imitates; a process can have them once."""

    chips: int

    def __str__(self) -> str:
        return f"{self.chips} x cpu"

    def devices(self) -> list[Any]:
        """The devices."""
        jax.config.update("jax_num_cpu_devices", self.chips)
        return jax.devices()


def described(topology: str, slices: int = 1) -> Topology:
    """A topology by its name, such as "v5e:4x4", or several of them.

    Raises:
        UserError: libtpu is not installed, or there is no topology of such a name.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs libtpu, which compiles for TPUs and is not installed: pip install libtpu"
        )
    if not _NAME.fullmatch(topology):
        raise UserError(
            f"there is no topology --topology={topology}; expected a kind of TPU and its chips along two or three "
            "axes, like v5e:8x8, v6e:4x4, v4:4x4x4 or v5p:2x2x2"
        )
    named = Topology(topology, slices)
    if named.kind not in AXES:
        raise UserError(f"{named.kind} is a TPU that is in no table; plan for one of {', '.join(AXES)}")
    if len(named.axes) != AXES[named.kind]:
        raise UserError(
            f"there is no topology --topology={topology}: {named.kind} has chips along {AXES[named.kind]} axes; name "
            f"one like {named.kind}:{'x'.join(['4'] * AXES[named.kind])}"
        )
    if AXES[named.kind] == 2 and max(named.axes) > LONGEST_AXIS:
        raise UserError(  # libtpu would end the process
            f"there is no topology --topology={topology}: {named.kind} has {LONGEST_AXIS} chips along an axis at most; "
            f"name one like {named.kind}:16x16, and join several with --slices"
        )
    if math.prod(named.axes) > (most := PODS.get(named.kind, math.inf)):
        raise UserError(
            f"there is no topology --topology={topology}: a pod of {named.kind} has {most:,} chips; join several with "
            "--slices"
        )
    return named


def torus(devices: list[Any]) -> tuple[int, ...]:
    """Chips along each axis of a TPU topology, without axes of a single one; () of other devices."""
    places = [getattr(device, "coords", None) for device in devices]
    if devices[0].platform != "tpu" or None in places:
        return ()
    return tuple(size for axis in zip(*places, strict=True) if (size := max(axis) - min(axis) + 1) > 1)
