"""What the installed package needs and holds: declared requirements, programs, configurations, version."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from parsing import parsed

import r2d2_jax

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOL = DESCRIPTION["project"], DESCRIPTION["tool"]
# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "docutils": "sphinx",  # is written in terms of it
    "google": "google-cloud-storage",  # and those that it brings
    "orbax": "orbax-checkpoint",
    "pygments": "sphinx",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Another package forgets to ask for the one; of the other only its font is read, see `plots.fonts`.
NOT_IMPORTED = {"importlib-resources", "zhplot"}


def normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


DEPENDENCIES = names_of(PROJECT["dependencies"])
EXTRAS = names_of([name for extra in PROJECT["optional-dependencies"].values() for name in extra])


def imported(*folders: str) -> set[str]:
    """Distributions that the files of these folders import anywhere."""
    found: set[str] = set()
    own = {path.stem for folder in folders for path in (ROOT / folder).glob("*.py")} | {"r2d2_jax"}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    modules = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - own
    return {normal(DISTRIBUTIONS.get(module, module)) for module in modules}


def test_every_import_of_the_package_is_declared() -> None:
    assert imported("r2d2_jax", "launch", "configs") - DEPENDENCIES - EXTRAS == set()


def test_every_import_of_tests_benchmarks_and_site_is_declared() -> None:
    assert imported("tests", "benchmarks", "docs/site") - DEPENDENCIES - EXTRAS == set()


def test_everything_declared_is_imported() -> None:
    assert DEPENDENCIES - NOT_IMPORTED - imported("r2d2_jax", "launch", "configs") == set()


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_command_is_a_function_of_a_program(name: str) -> None:
    module, function = PROJECT["scripts"][name].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_program_is_a_command() -> None:
    programs = {path.stem for path in (ROOT / "launch").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert {target.split(":")[0].split(".")[-1] for target in PROJECT["scripts"].values()} == programs


@pytest.mark.parametrize("folder", ["launch", "configs"])
def test_the_package_holds_the_folder_beside_it(folder: str) -> None:
    assert (ROOT / "r2d2_jax" / folder).resolve() == ROOT / folder


def test_the_version_is_the_newest_in_the_changelog() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert r2d2_jax.__version__ == versions[0]


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "r2d2_jax" / "py.typed").is_file()


def test_the_package_holds_the_published_figures() -> None:
    """A link to the page of the documentation, of which a wheel holds a copy."""
    assert "evaluation/published.md" in TOOL["setuptools"]["package-data"]["r2d2_jax"]
    page = ROOT / "r2d2_jax" / "evaluation" / "published.md"
    assert page.resolve() == ROOT / "docs" / "published.md"
