"""What the steps of an ablation cost: counted, timed in turn, and kept."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_model import CHEAPEST, small_config

from r2d2_jax.ablation import cost
from r2d2_jax.ablation.children import Child
from r2d2_jax.ablation.cost import COSTS, measure_costs, measure_in_child, read_costs, relative_speed, unmeasured
from r2d2_jax.ablation.plan import Plan, make_plan, write_plan

CHEAP = small_config(CHEAPEST)


@pytest.fixture
def plan() -> Plan:
    """The cheapest step, and one with a queue and a teacher."""
    return make_plan(CHEAP, {"tgd": small_config(CHEAPEST, {"loss": {"contrastive": "tgd"}})}, [0])


def test_what_is_measured_is_kept(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_MOST", 4)
    assert unmeasured(plan, tmp_path) == ["full", "tgd"]
    measure_costs(plan, tmp_path)
    found = read_costs(tmp_path)
    full, tgd = (found["variants"][name] for name in ("full", "tgd"))
    assert found["measured_on"] == "1 x cpu"
    assert full["relative_speed"] == 1.0
    assert tgd["multiply_adds_per_pair"] > 1.05 * full["multiply_adds_per_pair"]  # the teacher's forward
    assert tgd["turns"] == 4
    assert 0 < tgd["relative_speed"] < math.inf  # a number; which of two tiny steps is the faster, only chance decides
    (tmp_path / COSTS).rename(tmp_path / "before")
    (tmp_path / COSTS).write_text((tmp_path / "before").read_text())
    measure_costs(plan, tmp_path)
    assert read_costs(tmp_path) == found


def test_on_other_devices_everything_is_measured_anew(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_Steps", lambda *_: SimpleNamespace(seconds=None))
    monkeypatch.setattr(cost, "relative_speed", lambda *_: {"relative_speed": 2.0})
    monkeypatch.setattr(cost, "forward_cost", lambda _: 5.0)
    elsewhere = {"measured_on": "8 x H200", "variants": {"full": {"multiply_adds_per_pair": 3.0}}}
    (tmp_path / COSTS).write_text(json.dumps(elsewhere))
    measure_costs(plan, tmp_path)
    assert read_costs(tmp_path) == {
        "measured_on": "1 x cpu",
        "variants": {name: {"multiply_adds_per_pair": 5.0, "relative_speed": speed}
                     for name, speed in (("full", 1.0), ("tgd", 2.0))},
    }  # fmt: skip


def test_the_speed_is_the_median_of_ratios_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is three times as slow in every second turn; steps of both are taken alternately."""
    order: list[str] = []

    def steps(name: str, seconds: float) -> float:
        order.append(name)
        return seconds * (3 if len(order) % 4 > 1 else 1)

    found = relative_speed(lambda: steps("full", 2.0), lambda: steps("variant", 1.0))
    assert found["turns"] == 40
    assert order[:6] == ["full", "variant", "variant", "full", "full", "variant"]
    disturbed = {1 / 3 * 2, 3 * 2.0, 2.0}
    assert found["relative_speed"] in disturbed | {(a + b) / 2 for a, b in itertools.combinations(disturbed, 2)}


@pytest.mark.parametrize("text", ["[", "[]", "{}"])
def test_damaged_costs_are_measured_again(text: str, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / COSTS).write_text(text)
    assert unmeasured(plan, tmp_path) == ["full", "tgd"]


def test_what_is_known_starts_no_process(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "Child", None)
    (tmp_path / COSTS).write_text(json.dumps({"variants": {"full": {}, "tgd": {}}}))
    assert measure_in_child(plan, tmp_path) == ""


def test_a_failure_is_told_with_its_place(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is that of the real program, replaced by one that fails as it would without memory."""
    write_plan(plan, tmp_path)
    commands = []

    def child(command: list[str], *rest: object) -> Child:
        commands.append(command)
        return Child([command[0], "-c", "exit('RESOURCE_EXHAUSTED: no memory')"], *rest)

    monkeypatch.setattr(cost, "Child", child)
    said = measure_in_child(plan, tmp_path)
    assert said == (
        f"the costs were not measured: RESOURCE_EXHAUSTED: no memory (all that it printed: {tmp_path / 'costs.log'})"
    )
    assert commands[0][1:] == ["-m", "r2d2_jax.ablation.cost", str(tmp_path)]


def test_bad_input_is_told_as_a_training_tells_it(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(Plan(plan.config | {"mesh": {"data": 3, "fsdp": 1}}, plan.variants, plan.seeds), tmp_path)
    monkeypatch.setattr(cost, "end_with_parent", lambda: None)
    with pytest.raises(SystemExit, match="^error: .*mesh"):
        cost.main(tmp_path)
