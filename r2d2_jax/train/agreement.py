"""What all processes of a run must have alike, compared before they compute together.

Where two of them differ, they compile different programs, of which one waits for ever for what the other never sends;
or they train on different records without a word.
"""

import hashlib
import json
import logging
import os
import platform
import socket
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import jax
from jax.sharding import Mesh

import r2d2_jax
from r2d2_jax.config.reading import Config
from r2d2_jax.data.records import dataset_folder
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted
from r2d2_jax.processes import gather_json
from r2d2_jax.status import age
from r2d2_jax.trees import flat
from r2d2_jax.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# What decides which program is compiled, which rows a process makes and how a checkpoint is written.
PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "pillow", "grain", "array_record", "tensorflow-datasets", "transformers", "tokenizers"),
)
# Each host may have its copy of the data in another place; what is in it is compared.
PLACES = ("data.directory", "data.corpora", "data.test_directory", "data.vocabulary")
ABSENT = "absent"
_NAMED = 4  # processes that a line names
CLOCKS_APART = 60.0  # seconds from which on clocks are said to differ (our decision)


def check_same_program(config: Config) -> None:
    """Checks that all processes run the same code and packages with the same configuration.

    Raises:
        UserError: on every process, which of them differ in what.
    """
    if jax.process_count() == 1:
        return
    found = {f"file {name} of r2d2_jax": digest for name, digest in _files_of_code()}
    found |= {f"package {name}": _version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    for key, value in flat(config.to_dict(), "."):
        if key not in PLACES:
            found[f"configuration {key}"] = json.dumps(value, ensure_ascii=False)
    _check_same(found, "give all processes the same flags, and install the same commit and packages on all hosts")


def check_same_data(config: Config, vocabulary: Vocabulary) -> None:
    """Checks that all processes read the same vocabulary and prepared datasets, by the names and sizes of their files.

    Raises:
        UserError: on every process, which of them differ in what.
    """
    if jax.process_count() == 1:
        return
    tokens = hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()
    found = {"vocabulary": f"{len(vocabulary)} tokens with digest {tokens[:8]}"}
    data = config.data
    for folder in dict.fromkeys([*(data.corpora or [data.directory]), *filter(None, [data.test_directory])]):
        dataset = dataset_folder(folder)
        name = "/".join(dataset.parts[-2:])
        with os.scandir(dataset) as files:
            found |= {f"file {name}/{file.name}": f"{file.stat().st_size} bytes" for file in files}
    _check_same(found, "copy the whole dataset to all hosts, or name a folder that they share")


def log_what_joined(mesh: Mesh) -> None:
    """One line on the processes of a run, their hosts and devices, and one on clocks that differ; none of one process.

    It follows `check_same_data`, which all processes leave at the same moment.
    """
    if jax.process_count() == 1:
        return
    found = gather_json([socket.gethostname(), time.time()])
    _warn_of_clocks(found)
    hosts = dict.fromkeys(host for host, _ in found)
    slices = {getattr(device, "slice_index", 0) for device in jax.devices()}
    logger.info(
        "%d processes on %d hosts (%s), %d devices %s in %d slice(s), mesh %s",
        jax.process_count(),
        len(hosts),
        _listed(list(hosts)),
        jax.device_count(),
        jax.devices()[0].device_kind,
        len(slices),
        " x ".join(f"{name} {size}" for name, size in mesh.shape.items()),
    )


def _warn_of_clocks(found: Sequence[tuple[str, float]]) -> None:
    """Warns of processes whose clocks are far from that of process 0, by host and time of each.

    A run reads clocks for time spans alone. But its log and status name times, and a bucket accepts no credentials of a
    host whose clock is minutes off.
    """
    first_host, first = found[0]
    far = [
        f"process {number} on {host} is {age(abs(clock - first))} {'ahead' if clock > first else 'behind'}"
        for number, (host, clock) in enumerate(found)
        if abs(clock - first) > CLOCKS_APART
    ]
    if far:
        logger.warning(
            "clocks differ from that of process 0 on %s: %s; set them, by NTP, or times in the log and in status.json "
            "are wrong, and credentials for a bucket may be refused",
            first_host,
            _listed(far),
        )


def _files_of_code() -> Iterable[tuple[str, str]]:
    root = Path(r2d2_jax.__file__).parent
    # In a clone the last two are links, which rglob leaves out.
    folders = (root, root / "launch", root / "configs")
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
        yield path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ABSENT


def _check_same(found: dict[str, str], remedy: str) -> None:
    """Gathers one digest of each process, and only where two differ everything that was found."""
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    if len(set(gather_json(digest))) == 1:
        return
    hosts, everything = zip(*gather_json([socket.gethostname(), found]), strict=True)
    lines = list(_differences(hosts, everything))
    more = f"\n  and {len(lines) - FIRST_NAMES} more" if len(lines) > FIRST_NAMES else ""
    raise UserError(f"the processes of this run differ; {remedy}:\n{bulleted(lines[:FIRST_NAMES])}{more}")


def _differences(hosts: Sequence[str], everything: Sequence[dict[str, str]]) -> Iterable[str]:
    """One line for each name of which two processes have found different things: who has which."""
    for name in dict.fromkeys(name for found in everything for name in found):
        who: dict[str, list[str]] = {}
        for number, found in enumerate(everything):
            who.setdefault(found.get(name, ABSENT), []).append(f"{number} on {hosts[number]}")
        if len(who) > 1:
            yield f"{name}: " + "; ".join(f"{value} to process {_listed(those)}" for value, those in who.items())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
