"""What holds for every corpus: its flags, its section in docs/corpora.md, and the commands there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.launch.prepare_data import FLAGS
from r2d2_jax.launch.program import parse
from r2d2_jax.preparation.corpora import CORPORA, Corpus

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^python launch/prepare_data.py (.*)$", PAGE, re.MULTILINE)


def test_every_corpus_has_its_section_and_its_row() -> None:
    assert list(SECTIONS) == list(CORPORA)
    table = PAGE[PAGE.index("| `--corpus` |") : PAGE.index("What holds for all")]
    cells = [row.split("|")[1] for row in table.strip().splitlines()[2:]]
    rows = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert rows == list(CORPORA)


@pytest.mark.parametrize("name", CORPORA)
def test_a_section_shows_layout_sample_and_command(name: str) -> None:
    assert SECTIONS[name].count("```") >= 4
    assert f"python launch/prepare_data.py --corpus={name} " in SECTIONS[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_the_flags_that_the_corpus_needs(command: str) -> None:
    parse(FLAGS, shlex.split(command), "")
    corpus = CORPORA[FLAGS.corpus]
    given = {flag for flag in ("images", "annotations") if getattr(FLAGS, flag)}
    assert FLAGS.output
    assert set(corpus.needs) <= given <= {*corpus.needs, *corpus.takes}
    assert not FLAGS.text_fields or corpus.default_text_fields


@pytest.mark.parametrize("corpus", CORPORA.values())
def test_flags_that_are_missing_or_without_use(corpus: type[Corpus], tmp_path: Path) -> None:
    given: dict[str, Any] = {flag: str(tmp_path) for flag in corpus.needs}
    with pytest.raises(UserError, match=f"^corpus {corpus.name} needs --.*; set (it|both)$"):
        corpus()
    for flag in {"images", "annotations"} - {*corpus.needs, *corpus.takes}:
        with pytest.raises(UserError, match=f"^corpus {corpus.name} has no use for --{flag}; leave it out$"):
            corpus(**given, **{flag: str(tmp_path)})
    if not corpus.default_text_fields:
        with pytest.raises(UserError, match=f"^corpus {corpus.name} has no text fields to choose from; leave --text"):
            corpus(**given, text_fields=["Title"])


@pytest.mark.parametrize("corpus", CORPORA.values())
def test_an_empty_folder_is_refused_with_what_is_missing(corpus: type[Corpus], tmp_path: Path) -> None:
    given = {flag: str(tmp_path) for flag in corpus.needs}
    with pytest.raises(UserError, match="does not exist|do not exist|expected"):
        corpus(**given)


def test_names_are_what_a_dataset_may_be_called() -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in CORPORA)
    assert all(corpus.description.endswith(".") for corpus in CORPORA.values())
