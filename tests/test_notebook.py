"""The notebook is kept without outputs, its code is Python, and what it imports and links exists. CI runs all of it."""

import ast
import importlib
import re

import nbformat
import pytest
from documented import ROOT
from parsing import parsed

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOK = nbformat.read(FOLDER / "demonstration.ipynb", as_version=4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TEXT = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")


def test_it_is_a_notebook_without_outputs() -> None:
    nbformat.validate(NOTEBOOK)
    kept = [cell for cell in NOTEBOOK.cells if cell.get("outputs") or cell.get("execution_count")]
    assert kept == []


def test_it_calls_functions_and_no_shell() -> None:
    assert not re.search(r"^\s*[!%]", "\n".join(CODE), re.MULTILINE)
    assert "subprocess" not in "\n".join(CODE)


@pytest.mark.parametrize("number", range(len(CODE)))
def test_what_a_cell_imports_exists(number: int) -> None:
    for node in ast.walk(parsed(CODE[number])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("r2d2_jax"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_page_that_it_links_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert links
    assert [link for link in links if not (FOLDER / link).is_file()] == []


def test_it_says_that_it_is_cut_down_and_by_what() -> None:
    (training,) = (code for code in CODE if "changes = {" in code)
    pictures, epochs = (re.search(pattern, "\n".join(CODE)) for pattern in (r"train_images=(\d+)", r"epochs\": (\d+)"))
    assert pictures is not None
    assert epochs is not None
    steps = int(pictures[1]) * int(epochs[1]) // 64  # the demonstration's batches
    assert f"{int(pictures[1]):,} pictures in place of 6,000 and {epochs[1]} epochs" in TEXT.replace("\n", " ")
    assert f"{steps} steps" in TEXT
    assert 'read_configuration("demo"' in training
