"""visualize.py: a picture of the attention for each entity, and one message for whatever is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import called
from random_models import SPECIAL_TOKENS, random_model

from r2d2_jax.convert.conversion import write_model
from r2d2_jax.launch import visualize

TEXT = "大红圆在圆"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one without cross encoders, a picture of another shape than the model's, and a file that is none."""
    path = tmp_path_factory.mktemp("visualize")
    tokens = (*SPECIAL_TOKENS, *"红圆方大小在")
    write_model(random_model(tokens=tokens), path / "model")
    write_model(random_model(cross_layers=0, tokens=tokens), path / "prd2")
    write_model(random_model(), path / "no_vocabulary")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(path / "photo.png")
    (path / "text.jpg").write_text("not an image")
    return path


def drawn(folder: Path, *flags: str, text: str = TEXT, model: str = "model", image: str = "photo.png"):
    named = (f"--checkpoint={folder / model}", f"--image={folder / image}", f"--text={text}")
    return called(visualize.main, *named, *flags)


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What is handed to the picture: its arguments, one by one."""
    found: list[tuple] = []
    monkeypatch.setattr(visualize, "draw_heat_maps", lambda *drawing: found.append(drawing) or drawing[-1])
    return found


def test_each_entity_of_the_sentence_has_a_panel(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = drawn(folder)
    assert (done.returncode, done.stdout) == (0, "photo.attention.png\n")
    assert "looking for 大红圆、圆" in done.stderr
    with Image.open(tmp_path / "photo.attention.png") as picture:
        assert picture.width > picture.height


def test_readings_and_layers_are_those_of_the_flags(folder: Path, panels: list[tuple]) -> None:
    output = f"--output={folder / 'a.png'}"
    for flags in ([], ["--plain"], ["--plain", "--layer=1"], ["--gradient_weighted"], ["--entity", "红", "在圆"]):
        assert drawn(folder, output, *flags).returncode == 0
    assert [len(heat) for _, heat, *_ in panels] == [2] * 5
    assert len({heat[1].tobytes() for _, heat, *_ in panels}) == 5
    for picture, heat, titles, text, path in panels:
        assert picture.shape == (60, 90, 3)
        assert all(each.shape == (60, 90) for each in heat)
        assert all("\nCLS " in title for title in titles)
        assert (text, path) == (TEXT, folder / "a.png")
    assert [title.split("\n")[0] for title in panels[-1][2]] == ["红", "在圆"]


def test_a_large_picture_is_drawn_smaller(folder: Path, panels: list[tuple]) -> None:
    Image.new("RGB", (2000, 1000)).save(folder / "large.png")
    assert drawn(folder, f"--output={folder / 'a.png'}", image="large.png").returncode == 0
    assert panels[0][0].shape == (400, 800, 3)


def test_words_that_the_vocabulary_lacks_are_told(folder: Path, panels: list[tuple]) -> None:
    done = drawn(folder, f"--output={folder / 'a.png'}", "--entity", "猫", "圆猫", text="猫在圆猫")
    assert done.returncode == 0
    assert "the model's vocabulary has no token for 猫; do not read much into that map" in done.stderr


@pytest.mark.parametrize(
    ("flags", "changed", "message"),
    [
        (["--entity=猫"], {}, "the entity '猫' is not in the text '大红圆在圆'; name a part of it, such as one of 大"),
        ([], {"text": "在"}, "the segmenter finds no thing in the text '在'; say which words with --entity"),
        ([], {"text": "圆\udcff"}, "has half of a character (a lone surrogate) at position 1; read the text again"),
        ([], {"model": "prd2"}, "the model has no cross encoders (PRD2), whose maps these are; name a model"),
        ([], {"model": "nowhere"}, "is no model; expected"),
        ([], {"model": "no_vocabulary"}, "the model came without a vocabulary"),
        ([], {"image": "nowhere.jpg"}, "nowhere.jpg: [Errno 2] No such file"),
        ([], {"image": "text.jpg"}, "text.jpg: "),
        (["--layer=3"], {}, "layer is 3; the model's cross encoder has layers 1 to 2"),
        (["--layer=2", "--gradient_weighted"], {}, "layer 2 is the last one"),
        (["--output=/nowhere/a.png"], {}, "there is no folder /nowhere for --output=/nowhere/a.png; make it"),
        (["--output=a.jpg"], {}, "--output is a.jpg; expected a name that ends in .png"),
        (["--output="], {}, "--output is ''; expected a local PNG file"),
        (["--entity=圆"], {"text": "红红红红红红圆"}, "is not among the 7 tokens that the model reads of the text"),
        (["--plain", "--gradient_weighted"], {}, "not allowed with argument"),
        (["--occlusion"], {}, "the model has no masked-language-model head"),
        (["--occlusion", "--layer=1"], {}, "layer is 1, but occlusion asks the whole model; leave the layer out"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    folder: Path, flags: list[str], changed: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = drawn(folder, *flags, **changed)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "photo.attention.png").exists()
