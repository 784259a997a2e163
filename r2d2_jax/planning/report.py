"""A plan as a table to read and as plain values for a JSON file."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from r2d2_jax.planning.chips import GIB
from r2d2_jax.planning.estimate import Estimate
from r2d2_jax.planning.traffic import ORIGINS

SHOWN = 8  # of the largest temporaries
_DAY = 86400


@dataclasses.dataclass(frozen=True)
class Plan:
    """An estimate, and what it is of.

    config: its name. target: what was compiled for, such as "4 x v5e:16x16". estimates: the planned step, and after it
    what fits with other rematerialisations, if that was searched for. forward: multiply-adds of the forward per pair.
    epochs: as configured. pairs: of an epoch; None where nobody says.
    """

    config: str
    target: str
    estimates: list[Estimate]
    forward: float
    epochs: float
    pairs: int | None

    @property
    def estimate(self) -> Estimate:
        """The planned step."""
        return self.estimates[0]

    @property
    def days(self) -> float | None:
        """Of the whole run; None where pairs or time are not known."""
        speed = self.estimate.pairs_per_second
        return self.epochs * self.pairs / speed / _DAY if self.pairs and speed else None


def table(plan: Plan) -> str:
    """The whole plan, for a terminal."""
    made = plan.estimate
    mesh = " x ".join(f"{name} {size}" for name, size in made.mesh.items())
    head = (
        f"{plan.config}: {made.batch_size} pairs on {made.chips} x {made.device_kind} ({mesh}), rematerialisation: "
        f"{made.remat}; compiled in {made.compile_seconds:.0f} s"
    )
    return "\n".join([head, *_memory(made), *_work(plan), *_traffic(made), *_time(plan)])


def _memory(made: Estimate) -> Iterator[str]:
    usage = made.usage
    of = f" of {usage.limit / GIB:.2f} GiB" if usage.limit is not None else ""
    yield f"memory of a chip: {_size(usage.needed)}{of}{_verdict(made)}"
    yield from (f"  {name:<26}{_size(size):>12}" for name, size in usage.parts.items())
    if usage.kept is not None and usage.temporaries is not None and usage.code is not None:
        padding = usage.kept - sum(usage.parts.values())
        yield f"  {'padding, key, constants':<26}{_size(padding):>12}"
        yield f"  {'temporaries':<26}{_size(usage.temporaries):>12}"
        assumed = "  assumed, not generated; --machine_code measures it" if usage.code_is_assumed else ""
        yield f"  {'machine code':<26}{_size(usage.code):>12}{assumed}"
    if usage.largest:
        yield "  the largest temporaries, as many as are there at once:"
    for each in usage.largest[:SHOWN]:
        times = f" x {each.count}" if each.count > 1 else ""
        yield f"  {_size(each.bytes):>12}  {each.array}{times}  {each.name}"


def _verdict(made: Estimate) -> str:
    usage = made.usage
    if usage.limit is None:
        return ""
    if not usage.fits and usage.code_is_assumed and usage.needed - (usage.code or 0) <= usage.limit:
        room = _size(usage.limit - usage.needed + (usage.code or 0))
        return f", DOES NOT FIT unless its machine code is below {room}; --machine_code measures it"
    if not usage.fits:
        return ", DOES NOT FIT"
    share = math.ceil(100 * usage.needed / usage.limit) / 100
    if made.chip is None or share <= made.chip.handed_out:
        return ", fits"
    return (
        f", fits with XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f} or more; JAX hands out {made.chip.handed_out:g} "
        "unless told otherwise"
    )


def _work(plan: Plan) -> Iterator[str]:
    yield "G multiply-adds a pair:"
    yield f"  {'forward':<26}{plan.forward / 1e9:>12.5g}  as XLA counts before it optimises, without dropout"
    made = plan.estimate
    if made.work is not None:
        whole = made.work.products * made.chips / made.batch_size / 1e9
        yield f"  {'step as compiled':<26}{whole:>12.5g}  its matrix products, with what is computed again"
        yield from (f"  ({note})" for note in made.work.notes)


def _traffic(made: Estimate) -> Iterator[str]:
    if made.work is None:
        return
    yield "what a chip sends and receives in a step:"
    rows = traffic_rows(made)
    if not rows:
        yield "  nothing"
    width = max((len(row["kind"]) for row in rows), default=0)
    for row in rows:
        yield (
            f"  {row['kind']:<{width}} {row['times']:>6} x among {row['group']:<6}{_size(row['sent_bytes']):>12}  "
            f"{row['origin']}"
        )


def traffic_rows(made: Estimate) -> list[dict[str, Any]]:
    """Collectives of a step by kind, origin and number of chips (or slices) that take part, in the order of origins."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for each in made.work.traffic if made.work is not None else []:
        row = rows.setdefault(
            (each.origin, each.kind, each.group),
            {"origin": each.origin, "kind": each.kind, "group": each.group, "times": 0, "sent_bytes": 0.0},
        )
        row["times"] += each.times
        row["sent_bytes"] += each.times * each.sent
    return sorted(rows.values(), key=lambda row: (ORIGINS.index(row["origin"]), -row["sent_bytes"]))


def _time(plan: Plan) -> Iterator[str]:
    made = plan.estimate
    if made.work is None or made.work.time is None:
        if made.work is not None:
            yield "time: not known of a CPU; --chip names a chip whose rates and memory are assumed"
        return
    time, speed = made.work.time, made.pairs_per_second
    assert made.chip is not None
    assert speed is not None
    yield f"time of a step by the roofline of {made.chip.name}: {_ms(time.step)}, bound by {time.bound}"
    yield f"  matrix products {_ms(time.matrix)}, memory traffic {_ms(time.memory)}, collectives {_ms(time.links)}"
    yield f"  {speed:,.0f} pairs/s, {speed / made.chips:,.1f} a chip"
    if plan.days is not None:
        yield f"  {plan.epochs:g} epochs of {plan.pairs:,} pairs: {plan.days:.2f} days"
    else:
        yield f"  days for {plan.epochs:g} epochs: the data set is not here; --pairs=250_000_000 says how many it has"
    yield "  assumed: " + ";\n    ".join(made.assumptions)


def choice(estimates: list[Estimate]) -> str:
    """One line for each rematerialisation and the largest batch that fits with it."""
    wide = max(18, *(len(made.remat) + 1 for made in estimates))
    lines = [f"{'rematerialisation':<{wide}}{'pairs':>8}{'a chip':>8}{'memory':>12}{'pairs/s':>12}"]
    for made in estimates:
        speed = "-" if made.pairs_per_second is None else f"{made.pairs_per_second:,.0f}"
        lines.append(
            f"{made.remat:<{wide}}{made.batch_size:>8}{made.batch_size // made.chips:>8}{_size(made.usage.needed):>12}"
            f"{speed:>12}"
        )
    return "\n".join(lines)


def document(plan: Plan) -> dict[str, Any]:
    """The whole plan as plain values: bytes, seconds, multiply-adds."""
    made, work = plan.estimate, plan.estimate.work
    found: dict[str, Any] = {
        "config": plan.config,
        "target": plan.target,
        "batch_size": made.batch_size,
        "rematerialisation": made.remat,
        "chips": made.chips,
        "device_kind": made.device_kind,
        "mesh": made.mesh,
        "chip": None if made.chip is None else dataclasses.asdict(made.chip),
        "fits": made.usage.fits if made.usage.limit is not None else None,
        "memory": dataclasses.asdict(made.usage),
        "multiply_adds_per_pair": {"forward": plan.forward},
        "compile_seconds": made.compile_seconds,
        "others": [
            {
                "rematerialisation": other.remat,
                "batch_size": other.batch_size,
                "needed": other.usage.needed,
                "pairs_per_second": other.pairs_per_second,
            }
            for other in plan.estimates[1:]
        ],
    }
    if work is not None:
        found["multiply_adds_per_pair"]["step"] = work.products * made.chips / made.batch_size
        found |= {"collectives": traffic_rows(made), "notes": work.notes}
    if work is not None and work.time is not None:
        found["time"] = dataclasses.asdict(work.time) | {"step": work.time.step, "bound": work.time.bound}
        found["pairs_per_second"] = made.pairs_per_second
        found |= {"epochs": plan.epochs, "pairs": plan.pairs, "days": plan.days, "assumptions": made.assumptions}
    return found


def _size(bytes_: float) -> str:
    """With a unit that leaves a few digits."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(bytes_) >= size / 10:
            return f"{bytes_ / size:.2f} {unit}"
    return f"{bytes_:.0f} B"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"
