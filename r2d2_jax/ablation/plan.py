"""What an ablation compares: one configuration, what each variant changes of it, and seeds; kept in its folder."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from r2d2_jax.atomic import written_whole
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError, bulleted, first_line
from r2d2_jax.lock import LOCK
from r2d2_jax.runs import HARMLESS_KEYS, config_differences
from r2d2_jax.trees import flat

FULL = "full"  # the configuration itself, which the variants are compared with
PLAN = "plan.json"
# Of a variant, whose folder lies beside the files of the ablation: all but the lock have dots in their names. A file
# system takes 255 bytes, and a character has four at most.
_NAME = re.compile(r"\w[\w+-]{,59}")
_TAKEN = (FULL, LOCK)


@dataclass(frozen=True)
class Plan:
    """An ablation.

    config: of the full method, as `Config.to_dict` gives it; the seed in it stands for none.
    variants: what each changes: name -> key, with dots -> value. `FULL` is the first and changes nothing.
    seeds: with each of which every variant is trained.
    """

    config: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]

    def config_of(self, variant: str) -> ConfigDict:
        """The whole configuration of a variant, as plain values."""
        config = ConfigDict(self.config)
        config.update_from_flattened_dict(self.variants[variant])
        return config


def make_plan(full: Config, variants: Mapping[str, Config], seeds: Sequence[int]) -> Plan:
    """The plan of an ablation.

    Args:
        full: the configuration of the full method.
        variants: each variant's whole configuration by its name.
        seeds: of the runs of each variant.

    Raises:
        UserError: a name cannot be a folder, a variant changes nothing, or no figure would come out.
    """
    base = _without_seed(full)
    plan = Plan(base, {FULL: {}}, tuple(seeds))
    if not full.data.validation_split and not full.data.foil_split:
        raise UserError(
            "the configuration measures nothing that variants could be compared by; expected data.validation_split or "
            "data.foil_split"
        )
    for name, config in variants.items():
        check_name(name)
        before, after = dict(flat(base, ".")), dict(flat(_without_seed(config), "."))
        plan.variants[name] = {key: after[key] for key in sorted(after) if after[key] != before[key]}
        if not plan.variants[name]:
            raise UserError(
                f"the variant {name} changes nothing in this configuration, so its runs would be those of {FULL}; "
                "leave it out: --variants lists those that are run"
            )
    return plan


def check_name(name: str) -> None:
    """Raises UserError unless a variant can have this name."""
    if name in _TAKEN or not _NAME.fullmatch(name):
        raise UserError(
            f"a variant cannot have the name {name!r}; expected at most 60 letters, digits, _, + or -, such as "
            f"queue_64, and neither {FULL}, which is the configuration itself, nor {LOCK}"
        )


def _without_seed(config: Config) -> dict[str, Any]:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=0)).to_dict()


def kept_plan(folder: Path) -> Plan | None:
    """The plan of the ablation in a folder; None where there is none yet.

    Raises:
        UserError: the folder holds something else, or the plan is damaged.
    """
    try:
        values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        variants = {name: dict(changes) for name, changes in dict(values["variants"]).items()}
        return Plan(dict(values["config"]), variants, tuple(values["seeds"]))
    except FileNotFoundError:
        if found := _foreign(folder):
            raise UserError(
                f"--workdir={folder} holds {found} and no {PLAN}, so it is not the folder of an ablation; name that, "
                "or a folder that is empty or new"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / PLAN} cannot be read: {first_line(error)}; copy it back") from error


def _foreign(folder: Path) -> str:
    """The name of something in a folder that no ablation leaves there before it has a plan; "" if there is nothing."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return next(
        (name for name in names if name != LOCK and not name.startswith((f"{PLAN}.unfinished-", f"{LOCK}."))), ""
    )


def extended(kept: Plan | None, asked: Plan, folder: Path) -> Plan:
    """The plan with whatever is asked for now and was not before.

    Raises:
        UserError: the folder is that of another ablation.
    """
    if kept is None:
        return asked
    if different := list(_contradictions(kept, asked)):
        raise UserError(
            f"--workdir={folder} holds another ablation; choose another folder, or go back to its configuration:\n"
            f"{bulleted(different)}"
        )
    # What is kept comes first, so that a table keeps its order; of the configuration, the harmless keys of now count.
    seeds = dict.fromkeys([*kept.seeds, *asked.seeds])
    return Plan(asked.config, kept.variants | asked.variants, tuple(seeds))


def _contradictions(kept: Plan, asked: Plan) -> Iterator[str]:
    yield from config_differences(kept.config, asked.config, free=HARMLESS_KEYS, where="in the ablation")
    for name in kept.variants.keys() & asked.variants.keys():
        if kept.variants[name] != asked.variants[name]:
            yield f"{name}: changes {_shown(kept.variants[name])} in the ablation, {_shown(asked.variants[name])} now"


def _shown(changes: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in changes.items())


def write_plan(plan: Plan, folder: Path) -> None:
    """Keeps the plan in the folder, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with written_whole(folder / PLAN) as unfinished:
        text = json.dumps(dataclasses.asdict(plan), ensure_ascii=False, indent=1)
        unfinished.write_text(text + "\n", encoding="utf-8")
