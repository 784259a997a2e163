"""What an ablation compares, and which folders it may go on in."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_model import small_config

from r2d2_jax.ablation.plan import FULL, PLAN, Plan, extended, kept_plan, make_plan, write_plan
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError

FULL_CONFIG = small_config()
HARD: dict[str, Any] = {"loss": {"contrastive": "gcpr"}}


def planned(*changes: dict[str, Any], seeds: tuple[int, ...] = (0, 1), **variants: dict[str, Any]) -> Plan:
    given = variants or {"hard": HARD}
    return make_plan(small_config(*changes), {name: small_config(*changes, own) for name, own in given.items()}, seeds)


def test_a_plan_says_what_each_variant_changes_and_gives_its_configuration_back() -> None:
    plan = planned(hard=HARD, slow={"loss": {"teacher_momentum": 0.9}, "optimizer": {"rates": (("bias", 2.0),)}})
    assert list(plan.variants) == [FULL, "hard", "slow"]
    assert plan.variants["hard"] == {"loss.contrastive": "gcpr"}
    assert plan.variants["slow"] == {"loss.teacher_momentum": 0.9, "optimizer.rates": [["bias", 2.0]]}
    assert Config.from_config_dict(plan.config_of("hard")) == small_config(HARD)
    assert Config.from_config_dict(plan.config_of(FULL)) == FULL_CONFIG


def test_the_seed_of_the_configuration_is_none_of_the_plan() -> None:
    assert planned({"train": {"seed": 7}}) == planned()


def test_a_kept_plan_is_the_same(tmp_path: Path) -> None:
    plan = planned(slow={"optimizer": {"rates": (("bias", 2.0),)}})
    assert kept_plan(tmp_path) is None
    write_plan(plan, tmp_path)
    assert kept_plan(tmp_path) == plan


def test_seeds_and_variants_are_added(tmp_path: Path) -> None:
    kept = planned(seeds=(0, 1))
    asked = planned(
        {"train": {"log_every": 7, "weigh_terms_every": 2}}, seeds=(3, 1), slow={"loss": {"teacher_momentum": 0.9}}
    )
    plan = extended(kept, asked, tmp_path)
    assert plan.seeds == (0, 1, 3)
    assert list(plan.variants) == [FULL, "hard", "slow"]
    assert plan.config["train"]["log_every"] == 7


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (planned({"train": {"epochs": 2.0}}), "  - train.epochs: 4.0 in the ablation, 2.0 now"),
        (
            planned({"evaluation": {"rerank_candidates": 3}}),
            "  - evaluation.rerank_candidates: 4 in the ablation, 3 now",
        ),
        (
            planned(hard={"loss": {"fgd": False}}),
            "  - hard: changes loss.contrastive=gcpr in the ablation, loss.fgd=False now",
        ),
    ],
)
def test_the_folder_of_another_ablation(asked: Plan, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        extended(planned(), asked, tmp_path)
    first, *lines = str(caught.value).splitlines()
    assert first == (
        f"--workdir={tmp_path} holds another ablation; choose another folder, or go back to its configuration:"
    )
    assert lines == [message]


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"holds checkpoints and no plan.json, so it is not the folder of an ablation"):
        kept_plan(tmp_path)


@pytest.mark.parametrize(
    "text", ["[", "[]", json.dumps({"config": {}}), json.dumps({"config": {}, "variants": [1], "seeds": [0]})]
)
def test_a_damaged_plan(text: str, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(UserError, match=r"plan.json cannot be read: .*; copy it back"):
        kept_plan(tmp_path)


@pytest.mark.parametrize("name", ["full", "lock", "", "a/b", "..", "plan.json", "-a", "a b", 61 * "长"])
def test_names_that_cannot_be_folders(name: str) -> None:
    with pytest.raises(UserError, match=rf"a variant cannot have the name {name!r}; expected at most 60 letters"):
        planned(**{name: HARD})


def test_a_variant_that_changes_nothing() -> None:
    with pytest.raises(UserError, match="the variant hard changes nothing in this configuration"):
        planned(HARD, hard=HARD)


def test_a_configuration_that_measures_nothing() -> None:
    with pytest.raises(
        UserError, match="measures nothing that variants could be compared by; expected data.validation"
    ):
        planned({"data": {"validation_split": ""}})
