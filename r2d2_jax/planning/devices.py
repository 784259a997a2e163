"""The devices that a plan is made for, which need not be there."""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies

from r2d2_jax.errors import UserError, first_line


def tpu_chips(topology: str) -> list[Any]:
    """The chips of a TPU topology that is only described, such as "v5e:4x4".

    Raises:
        UserError: libtpu is not installed, or it does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs libtpu, which compiles for TPUs and is not installed: pip install libtpu"
        )
    # It asks neither a metadata server nor other hosts for what this one is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:  # libtpu says all that it finds wrong with errors of its own
        raise UserError(
            f"there is no topology --topology={topology}: {first_line(error)}; name one like v5e:8x8, v6e:4x4, "
            "v4:4x4x4 or v5p:2x2x2"
        ) from error


def torus(devices: list[Any]) -> tuple[int, ...]:
    """Chips along each axis of a TPU topology, without axes of a single one; () of other devices."""
    places = [getattr(device, "coords", None) for device in devices]
    if devices[0].platform != "tpu" or None in places:
        return ()
    return tuple(size for axis in zip(*places, strict=True) if (size := max(axis) - min(axis) + 1) > 1)
