"""How many CPU cores this process may use, which can be fewer than the machine has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def allowed_cores() -> int:
    """The cores that the scheduler (taskset, a batch system) and control groups (containers) leave to this process.

    A quota that is no whole number of cores counts as the next whole one. At least 1.
    """
    known = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return min([count, *map(math.ceil, _quotas())])


def _quotas() -> Iterator[float]:
    """The limits on CPU time of this process's control group and of all above it, in cores."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = _CONTROL_GROUPS / "cpu" if controllers else _CONTROL_GROUPS  # version 1, or the one tree of version 2
        # Within a container the path may be the host's; then only the mount itself, the container's own, is found.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == mount:
                break


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():  # version 2: "QUOTA PERIOD" or "max PERIOD"
            quota, period = (folder / "cpu.max").read_text().split()
        else:  # version 1: -1 is no limit
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        cores = float(quota.replace("max", "inf")) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group here, or no limit in it
        return
    if 0 < cores < math.inf:
        yield cores
