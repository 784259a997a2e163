"""A configuration is named by a file or as a built-in one, anywhere; what is wrong with it is one message."""

from pathlib import Path

import pytest

from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import built_in_names, read_configuration

FOLDER = Path(__file__).parents[2] / "configs"
SMALL = """
from ml_collections import ConfigDict
def get_config(size):
    return ConfigDict({"model": {"size": int(size)}, "name": "a", "range": (1, 2)})
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration that needs an argument."""
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    return tmp_path / "small.py"


def test_every_configuration_is_built_in() -> None:
    assert built_in_names() == sorted(path.stem for path in FOLDER.glob("*.py"))


def test_a_name_and_its_file_are_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_configuration("demo") == read_configuration(str(FOLDER / "demo.py"))


def test_a_variant() -> None:
    configs = [Config.from_config_dict(read_configuration(name)) for name in ("vitb_2m", "vitb_2m:without_et")]
    assert [config.loss.enhanced_training for config in configs] == [True, False]


def test_overrides(small: Path) -> None:
    config = read_configuration(f"{small}:3", ["--config.name=b", "--config.range=(3,4)"])
    assert config.to_dict() == {"model": {"size": 3}, "name": "b", "range": (3, 4)}
    config = read_configuration(f"{small}:3", ["--config.model.size", "5"])
    assert config.to_dict() == {"model": {"size": 5}, "name": "a", "range": (1, 2)}


@pytest.mark.parametrize(
    ("named", "overrides", "message"),
    [
        (
            "absent",
            [],
            "^there is no configuration absent; expected a file, or one of the built-in demo, ",
        ),
        ("configs/absent.py:a", [], "^there is no configuration configs/absent.py; expected a file, or one of the "),
        ("demo:small", [], "^--config=demo:small: demo takes no argument$"),
        ("{small}", [], "^--config={small}: {small} needs an argument$"),
        ("vitb_2m:without_mlm", [], "^there is no variant 'without_mlm'; the article has prd2, without_et, "),
        (
            "{small}:3",
            ["--config.model.sise=4"],
            "that the configuration does not have: 'sise' Did you mean",
        ),
        ("{small}:3", ["--config.model.size=four"], "flag --config.model.size=four: invalid literal for int"),
        ("{small}:3", ["--confg.model.size=4"], "^unknown flag --confg.model.size=4; --help lists the flags$"),
        ("{prose}", [], r"README.md, line 1: .*; expected Python that defines get_config\(\)$"),
        ("{image}", [], r"photo.jpg.*; expected Python that defines get_config\(\)$"),
        ("{empty}", [], r"empty.py defines no get_config\(\); expected a function that returns a ConfigDict$"),
    ],
)
def test_refused(small: Path, named: str, overrides: list[str], message: str) -> None:
    files = {"small": small, "empty": small.with_name("empty.py")}
    files |= {"prose": small.with_name("README.md"), "image": small.with_name("photo.jpg")}
    files["empty"].touch()
    files["prose"].write_text("A model's notes", encoding="utf-8")
    files["image"].write_bytes(b"\xff\xd8\x00\x10")
    with pytest.raises(UserError, match=message.format(**files)):
        read_configuration(named.format(**files), overrides)
