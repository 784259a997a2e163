"""The README names files and configurations that exist, and its commands are the ones that the flags allow."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_configuration_is_in_the_table_and_the_other_way_round() -> None:
    table = README[README.index("| config | what |") : README.index("Any value can be changed")]
    named = set(re.findall(r"`(\w+\.py)", table))
    assert named == {path.name for path in (ROOT / "configs").glob("*.py")}


def test_every_path_that_is_named_exists() -> None:
    named = re.findall(r"\b(?:configs|launch|benchmarks|r2d2_jax)/[\w/]+\.py", README)
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_ablation_that_is_named_exists() -> None:
    source = (ROOT / "configs" / "vitb_2m.py").read_text(encoding="utf-8")
    named = set(re.findall(r":(without_\w+)", README))
    assert named
    assert [name for name in named if f'"{name}"' not in source] == []


def test_flags_in_commands_exist() -> None:
    for program in ("main", "prepare_data"):
        source = (ROOT / "launch" / f"{program}.py").read_text(encoding="utf-8")
        commands = re.findall(rf"launch/{program}\.py ([^\n`&]*)", README)
        flags = {flag.split(".")[0] for command in commands for flag in re.findall(r"--([\w.-]+)", command)}
        assert flags
        assert [flag for flag in flags if f'"{flag}"' not in source] == []
