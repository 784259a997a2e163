"""On how many processes and devices a run is, and what changes for it when it resumes on others."""

import math
from typing import Any

import jax
from jax.sharding import Mesh


def placement(mesh: Mesh) -> dict[str, Any]:
    """Processes, and sizes of the mesh by axis, as a checkpoint keeps them."""
    return {"processes": jax.process_count(), "mesh": dict(mesh.shape)}


def described_move(before: dict[str, Any], now: dict[str, Any], batch_size: int) -> str:
    """What changes for a run that was saved in one placement and resumes in another; "" if nothing does.

    Args:
        before, now: as `placement` gives them.
        batch_size: global.
    """
    if before == now:
        return ""
    pairs = [batch_size // math.prod(place["mesh"].values()) for place in (before, now)]
    share = f"{pairs[1]} pairs of each batch" + (f" in place of {pairs[0]}" if pairs[0] != pairs[1] else ", as before")
    return (
        f"the run moves from {_described(before)} to {_described(now)}: a device gets {share}. Batch, data position "
        "and learning rate stay, every record is seen as often as without the move, and figures differ by rounding "
        "alone"
    )


def _described(place: dict[str, Any]) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in place["mesh"].items())
    return f"{place['processes']} process{'es' if place['processes'] > 1 else ''} with the mesh {mesh}"
