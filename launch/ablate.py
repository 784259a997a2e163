"""Trains the article's variants, or changes of your own, with several seeds
each, and writes a table of what every part brings:
`python launch/ablate.py --config=demo --workdir=ablations/demo`.

The same command goes on where it was stopped; more seeds or variants are added
to what is there.
"""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import flags
from ml_collections import ConfigDict

from r2d2_jax.ablation.plan import FULL, Plan, check_name, extended, kept_plan, make_plan, write_plan
from r2d2_jax.atomic import written_whole
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import LARGEST_SEED
from r2d2_jax.errors import UserError, bulleted
from r2d2_jax.launch.configuration import built_in_names, read_configuration
from r2d2_jax.launch.program import parse_known, refuse_unknown, run
from r2d2_jax.lock import held
from r2d2_jax.paths import user_path
from r2d2_jax.presets import VARIANTS, with_variant

if TYPE_CHECKING:
    from r2d2_jax.ablation.schedule import Failure

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string(
    "config",
    None,
    f"The configuration of the full method: a file or one of {', '.join(built_in_names())}. --config.KEY=VALUE "
    "overrides a value in all variants alike.",
    flag_values=FLAGS,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the ablation; its runs lie in VARIANT/seed_N.", flag_values=FLAGS
)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each variant's runs.", flag_values=FLAGS)
NAMED = flags.DEFINE_list(
    "variants",
    None,
    f"Of the article's variants: {', '.join(VARIANTS)}. All of them, unless --variant names others. {FULL}, with which "
    "they are compared, is always trained.",
    flag_values=FLAGS,
)
OWN = flags.DEFINE_multi_string(
    "variant",
    [],
    "A variant of your own, as --variant='queue_64: loss.queue_length=64 loss.teacher_momentum=0.98'; may be repeated.",
    flag_values=FLAGS,
)
AT_ONCE = flags.DEFINE_integer(
    "at_once",
    1,
    "Trainings at the same time, each with its share of the CPU cores or of the GPUs.",
    lower_bound=1,
    flag_values=FLAGS,
)
SKIP_DAMAGED = flags.DEFINE_bool(
    "skip_damaged", False, "Given on to the runs: damaged checkpoints are renamed.", flag_values=FLAGS
)
TABLE_ONLY = flags.DEFINE_bool(
    "table_only",
    False,
    "Train nothing, but write the table of what is finished; needs --workdir alone, and may be asked meanwhile.",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["workdir"], flag_values=FLAGS)

_CHILD = "from r2d2_jax.launch.ablate import train_one; train_one()"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is not trained yet, writes the table and prints it; returns the exit status."""
    return run(_work, argv, stopped="stopped; the same command goes on")


def train_one() -> None:
    """`main.command` as a child process, which saves and leaves when the ablation stops or is gone."""
    from r2d2_jax.ablation.children import end_with_parent
    from r2d2_jax.launch.main import command

    end_with_parent()
    command()


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    folder = _workdir()
    if TABLE_ONLY.value:
        refuse_unknown(overrides)
        if given := [flag.name for flag in (CONFIG, SEEDS, NAMED, OWN, AT_ONCE, SKIP_DAMAGED) if flag.present]:
            raise UserError(f"--{given[0]} does not go with --table_only, whose table is of all that --workdir holds")
        plan = kept_plan(folder)
        if plan is None:
            raise UserError(f"--workdir={WORKDIR.value} holds no ablation yet")
        _report(plan, folder)
        return 0
    asked = _asked(overrides, folder)
    with held(folder, "another ablation", "--workdir"):
        plan = extended(kept_plan(folder), asked, folder)
        write_plan(plan, folder)
        return _ablate(plan, asked, folder)


def _ablate(plan: Plan, asked: Plan, folder: Path) -> int:
    """Trains what is asked for; tells of everything in the folder, which earlier calls may have asked for."""
    from r2d2_jax.ablation.children import shares
    from r2d2_jax.ablation.cost import measure_in_child
    from r2d2_jax.ablation.runs import AblationRun, runs_of, write_configs
    from r2d2_jax.ablation.schedule import train_all

    def command(of: AblationRun) -> list[str]:
        flags_of_run = [
            f"--config={of.config}",
            f"--config.train.seed={of.seed}",
            "--noreport",
            f"--workdir={of.folder}",
        ]
        skip = ["--skip_damaged"] if SKIP_DAMAGED.value else []
        return [sys.executable, "-c", _CHILD, *flags_of_run, *skip]

    write_configs(plan, folder)
    runs, machine = list(runs_of(asked, folder)), shares(AT_ONCE.value)
    failures = train_all(runs, command, machine, finished=lambda: _write(plan, folder))
    complaint = "" if failures else measure_in_child(plan, folder)
    try:
        _report(plan, folder)
    finally:  # also where drawing is stopped
        _complain(failures, complaint)
    return 1 if failures or complaint else 0


def _complain(failures: "Sequence[Failure]", complaint: str) -> None:
    if failures:
        lines = (
            f"{failure.run.name}: {failure.reason} (all that it printed: {failure.run.output})" for failure in failures
        )
        logger.error(
            "runs that failed; the same command tries them again, and then measures costs:\n%s", bulleted(lines)
        )
    if complaint:
        logger.error("%s", complaint)


def _asked(overrides: Sequence[str], folder: Path) -> Plan:
    """What the flags ask for."""
    if CONFIG.value is None:
        raise UserError("--config is not given; --help lists the flags")
    seeds = _seeds()
    if seeded := [flag for flag in overrides if flag.lstrip("-").startswith("config.train.seed")]:
        raise UserError(f"{seeded[0]}: every variant is trained with the same seeds; list them in --seeds")
    full = _read(overrides, folder)
    if _named() and full.task != "pretraining":
        raise UserError(
            f"--variants: the article's variants are of pre-training, and --config={CONFIG.value} is a {full.task}; "
            "say with --variant what to compare it with"
        )
    variants = {name: _variant(name, overrides, folder) for name in _named()}
    for text in OWN.value:
        name, changes = _own(text)
        if name in variants or name in VARIANTS:
            raise UserError(f"--variant={text}: there is a variant {name} already; choose another name")
        try:
            variants[name] = _read([*overrides, *changes], folder)
        except UserError as error:
            raise UserError(f"--variant={text}: {error}") from error
        if variants[name].train.seed != full.train.seed:
            raise UserError(f"--variant={text}: every variant is trained with the same seeds; list them in --seeds")
    return make_plan(full, variants, seeds)


def _named() -> list[str]:
    names = list(VARIANTS) if NAMED.value is None else [name.strip() for name in NAMED.value]
    if NAMED.value is None and OWN.value:
        return []
    if unknown := [name for name in names if name not in VARIANTS and name != FULL]:
        raise UserError(
            f"--variants: there is no variant {unknown[0]!r}; the article has {', '.join(VARIANTS)}, and --variant "
            "adds one of your own"
        )
    return [name for name in dict.fromkeys(names) if name != FULL]


def _own(text: str) -> tuple[str, list[str]]:
    """The name of a variant of one's own, and its changes as overrides."""
    name, _, changes = text.partition(":")
    try:
        words = shlex.split(changes)
    except ValueError as error:
        raise UserError(f"--variant={text}: {error}") from error
    if not words or not all("=" in word for word in words):
        raise UserError(
            f"--variant={text}: expected 'NAME: KEY=VALUE KEY=VALUE', as in 'queue_64: loss.queue_length=64'"
        )
    check_name(name)
    return name, [f"--config.{word}" for word in words]


def _seeds() -> list[int]:
    seeds = [seed.strip() for seed in SEEDS.value]
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"--seeds={','.join(SEEDS.value)}: expected numbers, as --seeds=0,1,2")
    if large := [seed for seed in seeds if int(seed) > LARGEST_SEED]:
        raise UserError(f"--seeds={','.join(SEEDS.value)}: {large[0]} is too large; expected {LARGEST_SEED} at most")
    if repeated := [seed for seed in seeds if [int(other) for other in seeds].count(int(seed)) > 1]:
        raise UserError(f"--seeds={','.join(SEEDS.value)}: {repeated[0]} is there twice, which would be one run")
    return list(map(int, seeds))


def _variant(name: str, overrides: Sequence[str], folder: Path) -> Config:
    try:
        return _resolved(with_variant(read_configuration(str(CONFIG.value), overrides), name), folder)
    except UserError as error:
        raise UserError(f"the variant {name} of this configuration: {error}") from error


def _read(overrides: Sequence[str], folder: Path) -> Config:
    return _resolved(read_configuration(str(CONFIG.value), overrides), folder)


def _resolved(config: ConfigDict, folder: Path) -> Config:
    if config.get("task", "pretraining") != "pretraining" or config.get("initial", ConfigDict()).get("model"):
        from r2d2_jax.train.sizes import with_sizes  # only here: it brings all that reads models

        config = with_sizes(config, folder)
    return Config.from_config_dict(config)


def _workdir() -> Path:
    given = str(WORKDIR.value)
    if ":" in given or not given:
        raise UserError(f"--workdir={given}: expected a local or mounted folder whose path has no colon")
    return user_path(given)


def _write(plan: Plan, folder: Path) -> tuple[dict[str, Any], str]:
    """Writes the table of what is finished as JSON and Markdown; returns both."""
    from r2d2_jax.ablation.cost import read_costs
    from r2d2_jax.ablation.runs import results_of
    from r2d2_jax.ablation.table import ablation_document, markdown
    from r2d2_jax.launch.json_file import write_json

    document = ablation_document(plan, results_of(plan, folder), read_costs(folder))
    text = markdown(document)
    write_json(document, str(folder / "ablation.json"))
    with written_whole(folder / "ablation.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return document, text


def _report(plan: Plan, folder: Path) -> None:
    from r2d2_jax.launch.plot import drawn_at_the_end

    def draw() -> None:
        from r2d2_jax.plots.ablation import draw_ablation

        draw_ablation(document, folder / "ablation.png")

    document, text = _write(plan, folder)
    print(text)
    print(f"Table: {folder / 'ablation.md'} and ablation.json beside it")
    if document["scores"]:
        drawn_at_the_end(draw, folder / "ablation.png", "the ablation")


if __name__ == "__main__":
    sys.exit(main())
