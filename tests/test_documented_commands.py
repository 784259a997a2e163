"""Every command on a page of the documentation has flags and configurations that exist."""

import contextlib
import io

import pytest
from documented import ROOT, commands, read_by_program

from r2d2_jax.errors import UserError

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
CALLS = [(page.name, name, given) for page in PAGES for name, given in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page, name, given", CALLS, ids=[f"{page}-{name}" for page, name, _ in CALLS])
def test_a_program_takes_its_command(page: str, name: str, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # configurations may be named by their files
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            read_by_program(name, given)
        except (UserError, SystemExit) as refused:
            pytest.fail(f"{page}: {name} refuses {given}: {said.getvalue() or refused}")


def test_every_program_is_shown_somewhere() -> None:
    programs = {path.stem for path in (ROOT / "launch").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert {name for _, name, _ in CALLS} == programs


def test_commands_are_found_in_lists_chains_and_behind_launchers() -> None:
    page = """
- indented:

  ```bash
  python launch/main.py --config=demo \\
    --workdir=runs/demo   # a comment
  .venv/bin/python launch/plot.py a b && r2d2-prepare-data --demo --output=x > log
  launch/tpu_pod.sh train --name=r2d2 -- launch/main.py --config=demo --workdir=gs://BUCKET/runs
  sbatch --nodes=2 launch/slurm.sbatch --config=demo
  ```

`python launch/status.py runs/a` and `launch/plan.py`, a file, and `r2d2-report`, a name.
"""
    assert list(commands(page)) == [
        ("main", ["--config=demo", "--workdir=runs/demo"]),
        ("plot", ["a", "b"]),
        ("prepare_data", ["--demo", "--output=x"]),
        ("main", ["--config=demo", "--workdir=gs://BUCKET/runs"]),
        ("main", ["--config=demo"]),
        ("status", ["runs/a"]),
    ]


@pytest.mark.parametrize(
    "name, given",
    [
        ("main", ["--config=demo", "--workdir=x", "--no_such_flag=1"]),
        ("main", ["--config=no_such_configuration", "--workdir=x"]),
        ("main", ["--config=demo", "--workdir=x", "--config.no.such_key=1"]),
        ("convert", ["--input=a", "--outptu=b"]),
        ("plot", ["--no_such_flag"]),
    ],
)
def test_what_does_not_exist_is_refused(name: str, given: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises((UserError, SystemExit)):
        read_by_program(name, given)
