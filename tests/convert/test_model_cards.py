"""A model card says what it should; its code runs as printed, asks nothing, and names no file that is not there."""

import builtins
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from random_models import VOCABULARY, random_model

from r2d2_jax.convert.conversion import Form, open_model, write_model
from r2d2_jax.convert.preprocessing import sample_pictures
from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.lineage import unrecorded
from r2d2_jax.models.store import Model

TEXT = "红[SEP]大圆…"


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was asked on the terminal, where nobody answers."""
    asked: list[str] = []

    def refuse(question: str = "") -> str:
        asked.append(question)
        raise EOFError

    monkeypatch.setattr(builtins, "input", refuse)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return asked


@pytest.fixture(scope="module")
def transformers_folder(onnx_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "r2d2"
    write_model(onnx_model, path, Form.TRANSFORMERS)
    return path


@pytest.fixture(params=["transformers_folder", "onnx_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def code_of(folder: Path) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


@pytest.mark.parametrize("picture", ["JPEG with EXIF orientation 6", "16-bit grey", "palette with transparency"])
def test_it_runs_as_printed_and_computes_what_we_do(
    onnx_model: Model, folder: Path, questions: list[str], tmp_path: Path, picture: str
) -> None:
    (tmp_path / "photo").write_bytes(sample_pictures()[picture])
    names: dict[str, Any] = {"folder": str(folder), "photo": Image.open(tmp_path / "photo"), "text": TEXT}
    exec(code_of(folder), names)
    ranker = Ranker(onnx_model)
    image, text = ranker.encode_image(tmp_path / "photo"), ranker.encode_text(TEXT)
    np.testing.assert_allclose(np.asarray(names["image_embed"]), image.embed, atol=1e-5)
    np.testing.assert_allclose(np.asarray(names["text_embed"]), text.embed, atol=1e-5)
    np.testing.assert_allclose(np.asarray(names["cosine"]), image.embed @ text.embed.T, atol=1e-5)
    assert questions == []


def test_without_trust_nothing_is_asked_where_nothing_needs_code(onnx_folder: Path, questions: list[str]) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(onnx_folder)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(onnx_folder)
    assert tokenizer("红")["input_ids"] == [2, 5, 3]
    assert type(processor).__name__.startswith("CLIPImageProcessor")
    assert questions == []


def test_the_image_processor_of_a_transformers_folder_asks_nothing(
    transformers_folder: Path, questions: list[str]
) -> None:
    processor: Any = transformers.AutoImageProcessor.from_pretrained(transformers_folder)
    assert processor.size == {"height": 24, "width": 24}
    assert questions == []


def test_every_program_that_a_folder_names_lies_in_it(folder: Path) -> None:
    present = {path.name for path in folder.iterdir()}
    for file in folder.glob("*.json"):
        described = json.loads(file.read_text(encoding="utf-8"))
        modules = {each.partition(".")[0] + ".py" for each in described.get("auto_map", {}).values()}
        assert modules <= present, file
    named = set(re.findall(r"\w+\.py\b", (folder / "README.md").read_text(encoding="utf-8")))
    assert named <= present
    assert named >= {"image_processing_r2d2.py"}


def test_the_code_in_a_folder_does_not_need_this_project(folder: Path) -> None:
    for file in folder.glob("*.py"):
        assert not re.search(r"^\s*(from|import) r2d2_jax", file.read_text(encoding="utf-8"), re.MULTILINE), file


def test_prd2_says_that_it_has_no_match(tmp_path: Path, questions: list[str]) -> None:
    model = random_model(layers=1, cross_layers=0, tokens=VOCABULARY)
    write_model(model, tmp_path / "prd2", Form.TRANSFORMERS)
    names: dict[str, Any] = {"folder": str(tmp_path / "prd2"), "photo": Image.new("RGB", (30, 20)), "text": TEXT}
    exec(code_of(tmp_path / "prd2"), names)
    assert names["cosine"].shape == (1, 1)
    assert questions == []


def card_of(model: Model, folder: Path) -> ModelCard:
    """The card of a transformers folder of the model, as the hub's own library reads it."""
    write_model(model, folder, Form.TRANSFORMERS)
    return ModelCard.load(folder / "README.md")


def with_history(model: Model) -> Model:
    trained = {"task": "pretraining", "data": [{"folder": "data/mine", "split": "train", "records": 1000}]}
    measured = {"validation/reranked/t2i_r10": 87.25, "foil/dual": 97.0}
    return dataclasses.replace(model, lineage=(unrecorded("r2d2.pth"), trained), evaluation=measured)


def test_the_hub_s_library_reads_its_front_matter(tmp_path: Path) -> None:
    card = card_of(random_model(layers=1, cross_layers=1, tokens=VOCABULARY), tmp_path / "r2d2")
    assert (card.data.language, card.data.license) == ("zh", "other")
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "r2d2" in (card.data.tags or [])


def test_it_says_what_led_to_the_weights_and_what_they_are_worth(tmp_path: Path) -> None:
    text = card_of(with_history(random_model(layers=1, cross_layers=1, tokens=VOCABULARY)), tmp_path / "r2d2").text
    assert "- training not recorded: r2d2.pth\n- pretraining from random weights; on data/mine (1,000 records)" in text
    assert "| validation | reranked t2i_r10 | 87.2 |\n| foil | dual | 97.0 |" in text
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    expected = ["How to use it", "Intended use", "Training and data", "Evaluation", "Known failings", "Licence"]
    assert headings == expected


def test_without_figures_it_says_so(tmp_path: Path) -> None:
    text = card_of(random_model(layers=1, cross_layers=0, tokens=VOCABULARY), tmp_path / "prd2").text
    assert "left no figures" in text
    assert "training not recorded" in text
    assert "hard negatives" not in text  # PRD2 has no match that could fail


@pytest.mark.parametrize("form", [Form.OURS, Form.TRANSFORMERS])
def test_figures_outlast_conversions(form: Form, tmp_path: Path) -> None:
    model = with_history(random_model(layers=1, cross_layers=1, tokens=VOCABULARY))
    write_model(model, tmp_path / "folder", form)
    assert open_model(tmp_path / "folder").evaluation == model.evaluation


@pytest.mark.parametrize("form, file", [(Form.OURS, "model.json"), (Form.TRANSFORMERS, "config.json")])
def test_figures_that_are_none_are_one_message(form: Form, file: str, tmp_path: Path) -> None:
    write_model(random_model(layers=1, cross_layers=1, tokens=VOCABULARY), tmp_path / "folder", form)
    described = json.loads((tmp_path / "folder" / file).read_text(encoding="utf-8")) | {"evaluation": {"r1": "high"}}
    (tmp_path / "folder" / file).write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match=rf"the evaluation in .*{file} is no object of numbers"):
        open_model(tmp_path / "folder")
