"""What the layout promises: which room may import which, how long a file and a function may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsing import parsed

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "r2d2_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [
    path for folder in ("launch", "configs", "benchmarks", "docs/site") for path in sorted((ROOT / folder).glob("*.py"))
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# room or module -> what it must never import
FORBIDDEN = {
    "buckets": (
        *("config", "data", "models", "losses", "tasks", "train", "evaluation", "convert", "preparation", "ablation"),
        *("planning", "plots"),
    ),
    "data": ("preparation", "models", "losses", "tasks", "train", "evaluation"),
    "losses": ("models", "config", "tasks", "train"),
    "models": ("tasks", "train", "data", "preparation"),
    "tasks": ("train", "data", "preparation", "evaluation", "convert"),
    "train": ("preparation", "ablation", "planning", "report"),
    "planning": ("models", "losses", "tasks", "preparation", "evaluation", "convert", "plots", "ablation"),
    "ablation": ("models", "losses", "tasks", "data", "preparation", "evaluation", "convert", "plots"),
    "evaluation": ("train", "tasks", "preparation", "report"),
    "convert": ("train", "tasks", "preparation", "report"),
    "preparation": ("train", "tasks", "models", "losses", "evaluation", "convert"),
    "search": ("train", "tasks", "preparation", "ablation", "planning", "plots"),
    "plots": ("models", "losses", "tasks", "train", "data", "preparation", "evaluation", "convert", "ablation"),
    "report": ("train", "tasks", "preparation", "ablation", "planning"),
    "config": ("models", "losses", "tasks", "train", "data", "preparation", "evaluation", "convert"),
    "encoder": ("train", "tasks", "data", "preparation", "evaluation", "convert"),
    "forwards": ("train", "tasks", "data", "preparation", "evaluation", "convert"),
    "runs": ("train", "tasks", "convert", "evaluation", "data", "preparation"),
}
# What a module beside the rooms must never import, unless it is among the above.
FORBIDDEN_TO_MODULES = ("train", "tasks", "preparation", "evaluation", "ablation", "planning", "report")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth: of `from a import b` both a and a.b."""
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_judged() -> None:
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and not path.is_symlink()]  # links: launch, configs
    folders = {path.name for path in rooms if list(path.glob("*.py"))}
    assert folders <= set(FORBIDDEN)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_arrows_that_must_never_be(name: str) -> None:
    files = [path for path in FILES if room(path) == name]
    assert files, f"there is no r2d2_jax/{name}"
    assert forbidden_imports(files, FORBIDDEN[name]) == []


def test_modules_beside_the_rooms_import_no_engine() -> None:
    files = [path for path in FILES if path.parent == PACKAGE and room(path) not in FORBIDDEN]
    assert forbidden_imports(files, FORBIDDEN_TO_MODULES) == []


def forbidden_imports(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in files
        for target in imported(path)
        if any(target == f"r2d2_jax.{other}" or target.startswith(f"r2d2_jax.{other}.") for other in forbidden)
    ]


def test_nothing_imports_a_program() -> None:
    """But programs each other, for what they share."""
    places = ("launch", "r2d2_jax.launch", "configs", "r2d2_jax.configs")
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in FILES
        for target in imported(path)
        if target.startswith(tuple(f"{place}." for place in places)) or target in places
    ]
    assert not wrong


def test_files_fit_in_the_head() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in [*FILES, *PROGRAMS, *TESTS]}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    long = {}
    for path in [*FILES, *PROGRAMS, *TESTS]:
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert long == {}
