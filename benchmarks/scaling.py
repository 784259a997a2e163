"""What a train step needs of each chip as chips are added: compiled, for chips that are not here.

    python benchmarks/scaling.py --config=vitl_250m --pairs=32 --kinds=v5e,v6e --json=scaling.json

Each row is one compilation of the whole step by libtpu without machine code, for which half a GiB is assumed. Rows that
the JSON file has from an earlier call are not compiled again, so the same command goes on after a stop. Prints a table
in Markdown. Bytes are those that a chip sends in a step. "Own tokens" are the image and text tokens of a chip's pairs,
in the model's dtype, which it would send if each of them were another chip's hard negative once. Fails, with exit
status 1, where temporaries are more than --growth times those of 16 chips of the same kind, or hard negatives make a
chip send more than four times its own tokens.
"""

import dataclasses
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import flags
from planned_steps import check_listed

from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import parse_known, run
from r2d2_jax.planning.chips import GIB, named_chip
from r2d2_jax.planning.devices import Topology, described
from r2d2_jax.planning.estimate import Estimate, estimate_apart, with_batch
from r2d2_jax.planning.report import traffic_rows
from r2d2_jax.planning.traffic import BETWEEN_SLICES, CONTRASTIVE, GATHERS, GRADIENTS, HARD_NEGATIVES, OTHER

logger = logging.getLogger(__name__)

# Topologies of 8 to 1,024 chips, and how many of them are joined.
FLAT = {8: ("2x4", 1), 16: ("4x4", 1), 64: ("8x8", 1), 256: ("16x16", 1), 1024: ("16x16", 4)}
DEEP = {8: ("2x2x2", 1), 16: ("2x2x4", 1), 64: ("4x4x4", 1), 256: ("4x8x8", 1), 1024: ("8x8x16", 1)}
KINDS = {"v4": DEEP, "v5e": FLAT, "v5p": DEEP, "v6e": FLAT}
SMALL = 16  # chips with whose temporaries larger topologies are compared
MOST_TOKENS = 4.0

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string("config", "vitl_250m", "A configuration of pre-training.", flag_values=FLAGS)
KIND = flags.DEFINE_list("kinds", list(KINDS), f"Of {', '.join(KINDS)}.", flag_values=FLAGS)
CHIPS = flags.DEFINE_list("chips", [str(count) for count in FLAT], "Numbers of chips.", flag_values=FLAGS)
PAIRS = flags.DEFINE_integer("pairs", 32, "Pairs a chip.", lower_bound=1, flag_values=FLAGS)
GROWTH = flags.DEFINE_float("growth", 1.2, "What temporaries may grow by.", lower_bound=1, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", None, "Keeps the rows; the same file goes on.", flag_values=FLAGS)
flags.mark_flags_as_required(["json"], flag_values=FLAGS)


@dataclass(frozen=True)
class Row:
    """One compiled step; sizes in bytes of a chip.

    config, kind, chips, pairs, remat: what was compiled; pairs a chip. needed, temporaries, code, limit: memory;
    temporaries and machine code, which is assumed, None where it ended. sent: by the part of the method that asks.
    between: of all that, what goes to other slices. tokens: see "own tokens" above. step: seconds by the roofline.
    overrides: of the configuration, as they were given; those of the rematerialisation too.
    """

    config: str
    kind: str
    chips: int
    pairs: int
    remat: str
    needed: float
    temporaries: float | None
    code: float | None
    limit: float
    sent: dict[str, float]
    tokens: float
    step: float | None
    bound: str
    compile_seconds: float
    jax: str
    overrides: str = ""
    between: float = 0.0

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is of."""
        return self.config, self.kind, self.chips, self.pairs, self.remat, self.overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    return run(_work, argv, stopped="stopped; the same command goes on")


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    config = Config.from_config_dict(read_configuration(str(CONFIG.value), overrides))
    check_listed("kinds", KIND.value, KINDS)
    check_listed("chips", CHIPS.value, FLAT)
    kinds, counts = list(dict.fromkeys(KIND.value)), sorted(set(map(int, CHIPS.value)))
    check_json_path(str(JSON.value))
    name, path = Path(str(CONFIG.value)).name.removesuffix(".py"), Path(str(JSON.value))
    rows, changes = {row.key: row for row in read_rows(path)}, " ".join(overrides)
    found = []
    for kind, count in itertools.product(kinds, counts):
        key = name, kind, count, PAIRS.value, config.model.remat, changes
        if key not in rows:
            logger.info("compiling %s for %d x %s", name, count, kind)
            shape, slices = KINDS[kind][count]
            row = compiled(name, config, described(f"{kind}:{shape}", slices), PAIRS.value)
            rows[key] = dataclasses.replace(row, overrides=changes)
            write_json({"rows": [dataclasses.asdict(row) for row in rows.values()]}, str(path))
        found.append(rows[key])
    print("\n".join(table(found)))
    complaints = growing(found, GROWTH.value)
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


def compiled(name: str, config: Config, topology: Topology, pairs: int) -> Row:
    """Compiles the step for a topology, so many pairs on each chip, without machine code."""
    asked, chip = with_batch(config, pairs * topology.chips), named_chip(topology.kind)
    made = estimate_apart(asked, topology, chip, machine_code=False)
    usage, work = made.usage, made.work
    assert usage.limit is not None
    return Row(
        config=name,
        kind=topology.kind,
        chips=topology.chips,
        pairs=pairs,
        remat=made.remat,
        needed=usage.needed,
        temporaries=usage.temporaries,
        code=usage.code,
        limit=usage.limit,
        sent=sent_by_origin(made),
        tokens=pairs * token_bytes(config),
        step=None if work is None or work.time is None else work.time.step,
        bound="" if work is None or work.time is None else work.time.bound,
        compile_seconds=made.compile_seconds,
        jax=jax.__version__,
        between=sum(row["sent_bytes"] for row in traffic_rows(made) if row["kind"].endswith(BETWEEN_SLICES)),
    )


def sent_by_origin(made: Estimate) -> dict[str, float]:
    """Bytes that a chip sends in a step, by the part of the method that asks for it."""
    sent: dict[str, float] = {}
    for row in traffic_rows(made):
        sent[row["origin"]] = sent.get(row["origin"], 0.0) + row["sent_bytes"]
    return sent


def token_bytes(config: Config) -> int:
    """Bytes of the image and text tokens of one pair."""
    image, text = config.model.image, config.model.text
    numbers = (image.patches + 1) * image.width + text.text_length * text.width
    return numbers * (2 if config.model.dtype == "bfloat16" else 4)


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier call; none where there is no file."""
    if not path.exists():
        return []
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--json={path} holds no rows of this program ({error}); name another file") from error


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a table in Markdown."""
    head = (
        "configuration", "chips", "pairs a chip", "memory (GiB)", "temporaries (GiB)", "hard negatives (MiB)",
        "of own tokens", "contrastive (MiB)", "parameter gathers (GiB)", "gradients (GiB)", "rest (MiB)",
        "of all, between slices (MiB)", "step by the roofline (ms)", "pairs/s a chip",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        mib = {origin: f"{row.sent.get(origin, 0.0) / 2**20:,.1f}" for origin in (HARD_NEGATIVES, CONTRASTIVE, OTHER)}
        gib = {origin: f"{row.sent.get(origin, 0.0) / GIB:.2f}" for origin in (GATHERS, GRADIENTS)}
        fits = f"{row.needed / GIB:.1f} of {row.limit / GIB:.1f}" + (", does not fit" if row.needed > row.limit else "")
        cells = (
            f"`{row.config}`", f"{row.chips} {row.kind}", row.pairs, fits,
            "-" if row.temporaries is None else f"{row.temporaries / GIB:.2f}",
            mib[HARD_NEGATIVES], f"{row.sent.get(HARD_NEGATIVES, 0.0) / row.tokens:.2f}", mib[CONTRASTIVE],
            gib[GATHERS], gib[GRADIENTS], mib[OTHER], f"{row.between / 2**20:,.1f}" if row.between else "-",
            "-" if row.step is None else f"{1e3 * row.step:.1f}, {row.bound}",
            "-" if row.step is None else f"{row.pairs / row.step:,.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def growing(rows: Sequence[Row], growth: float) -> list[str]:
    """One sentence for each row that needs more than the promise: temporaries, and tokens of hard negatives."""
    small = {row.kind: row.temporaries for row in rows if row.chips == SMALL}
    complaints = []
    for row in rows:
        before = small.get(row.kind)
        if row.chips > SMALL and before and row.temporaries and row.temporaries > growth * before:
            complaints.append(
                f"{row.chips} x {row.kind}: temporaries of {row.temporaries / GIB:.2f} GiB are more than {growth:g} "
                f"times the {before / GIB:.2f} GiB of {SMALL} chips"
            )
        if row.sent.get(HARD_NEGATIVES, 0.0) > MOST_TOKENS * row.tokens:
            complaints.append(
                f"{row.chips} x {row.kind}: hard negatives send {row.sent[HARD_NEGATIVES] / row.tokens:.1f} times a "
                f"chip's own tokens, more than {MOST_TOKENS:g}"
            )
    return complaints


if __name__ == "__main__":
    sys.exit(main())
