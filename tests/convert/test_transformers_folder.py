"""A transformers folder loads without r2d2_jax, computes the same there, and comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from random_models import SPECIAL_TOKENS, VOCABULARY, random_model

import r2d2_jax
from r2d2_jax.convert.conversion import Form, open_model, write_model
from r2d2_jax.convert.modeling_r2d2 import R2D2Model
from r2d2_jax.convert.preprocessing import sample_pictures
from r2d2_jax.convert.verification import compared, jax_stages, sample_inputs
from r2d2_jax.data.text.tokenizer import tokenizer_of
from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.models.store import Model
from r2d2_jax.trees import flat
from r2d2_jax.vocabulary import Vocabulary

# What somebody runs who has PyTorch and transformers alone.
ELSEWHERE = """
import sys
sys.modules["r2d2_jax"] = sys.modules["jax"] = None
import numpy, torch, transformers
values = numpy.load(sys.argv[1])
for folder in sys.argv[2:]:
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert not model.training
    with torch.no_grad():
        out = model(torch.tensor(values["images"]), torch.tensor(values["input_ids"]), torch.tensor(values["mask"]))
    numpy.savez(folder + ".npz", **{name: tensor.numpy() for name, tensor in out.items()})
    card = open(folder + "/README.md", encoding="utf-8").read()
    names = {"folder": folder, "photo": "turned.jpg", "text": "花[SEP]草"}
    exec(card.split("```python")[1].split("```")[0], names)
    numpy.save(folder + ".npy", names["cosine"])
"""


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(tokens=VOCABULARY)


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "r2d2"
    write_model(model, path, Form.TRANSFORMERS)
    return path


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a process without this project computed with R2D2 and with PRD2: 2.npz and 0.npz."""
    path = tmp_path_factory.mktemp("elsewhere")
    for cross_layers in (2, 0):
        model = random_model(cross_layers=cross_layers, tokens=VOCABULARY)
        write_model(model, path / str(cross_layers), Form.TRANSFORMERS)
    sample = sample_inputs(random_model().config)
    np.savez(
        path / "in.npz",
        images=sample.images.transpose(0, 3, 1, 2),
        input_ids=sample.input_ids.astype(int),
        mask=sample.attention_mask.astype(int),
    )
    (path / "turned.jpg").write_bytes(sample_pictures()["JPEG with EXIF orientation 6"])
    environment = os.environ | {"HF_HOME": str(path / "cache"), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", ELSEWHERE, "in.npz", str(path / "2"), str(path / "0")]
    done = subprocess.run(
        arguments, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=path
    )
    assert done.returncode == 0, done.stderr
    assert "custom code" not in done.stdout, "transformers asked whether it may run code"
    return path


@pytest.mark.parametrize("cross_layers", [2, 0])
def test_transformers_loads_it_where_this_project_is_absent(elsewhere: Path, cross_layers: int) -> None:
    model = random_model(cross_layers=cross_layers, tokens=VOCABULARY)
    there = {
        name.replace("_embed", " embedding").replace("_", " "): value
        for name, value in np.load(elsewhere / f"{cross_layers}.npz").items()
    }
    report = compared(jax_stages(model, sample_inputs(model.config)), there)
    assert len(report.differences) == (5 if cross_layers else 4)
    assert report.first_broken is None, report.table()


@pytest.mark.parametrize("cross_layers", [2, 0])
def test_the_cards_code_gives_our_cosine_there(elsewhere: Path, cross_layers: int) -> None:
    ranker = Ranker(random_model(cross_layers=cross_layers, tokens=VOCABULARY))
    image, text = ranker.encode_image(elsewhere / "turned.jpg").embed, ranker.encode_text("花[SEP]草").embed
    np.testing.assert_allclose(np.load(elsewhere / f"{cross_layers}.npy"), image @ text.T, atol=1e-5)


def test_it_comes_back_bit_by_bit(model: Model, folder: Path) -> None:
    again = open_model(folder)
    assert (again.config, again.vocabulary, again.maps_punctuation) == (model.config, VOCABULARY, True)
    before, after = dict(flat(model.params)), dict(flat(again.params))
    assert before.keys() == after.keys()
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)


def test_what_transformers_saves_again_comes_back(model: Model, folder: Path, tmp_path: Path) -> None:
    R2D2Model.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    again = open_model(tmp_path / "saved")
    before, after = dict(flat(model.params)), dict(flat(again.params))
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)
    assert (again.config, again.maps_punctuation) == (model.config, True)


@pytest.mark.parametrize("maps_punctuation", [True, False])
def test_its_tokenizer_is_ours(tmp_path: Path, maps_punctuation: bool) -> None:
    tokens = (*SPECIAL_TOKENS, *"红蓝圆", '"', ".", "方")
    model = Model(random_model().config, random_model().params, {}, Vocabulary(tokens), maps_punctuation)
    write_model(model, tmp_path / "r2d2", Form.TRANSFORMERS)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "r2d2", trust_remote_code=False)
    texts = ["“红圆”…", "红 蓝方A", "红蓝圆方红蓝圆方"]
    batch = theirs(texts, padding="max_length", truncation=True, return_tensors="np")
    input_ids, mask = tokenizer_of(tokens, 7, map_punctuation=maps_punctuation)(texts)
    np.testing.assert_array_equal(batch["input_ids"], input_ids)
    np.testing.assert_array_equal(batch["attention_mask"], mask)
    assert (input_ids[0, 1] == tokens.index('"')) == maps_punctuation
    assert theirs.convert_tokens_to_ids("[MASK]") == theirs.mask_token_id == 4


def test_its_image_processor_is_ours(model: Model, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = processor(images=[Image.fromarray(pixels)], return_tensors="np")["pixel_values"]
    ranker = Ranker(model)
    np.testing.assert_allclose(
        ranker.encode_image(theirs.transpose(0, 2, 3, 1), tokens=True).host_tokens,
        ranker.encode_image(pixels, tokens=True).host_tokens,
        atol=1e-4,
    )


def test_it_is_loaded_for_inference(model: Model, folder: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(r2d2_jax.load(folder).match(pixels, "大红圆"), Ranker(model).match(pixels, "大红圆"))


def test_the_card_says_how_the_folder_is_used(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code=True" in card
    assert "Texts are cut at 7 tokens" in card
    assert "mapped to ASCII" in card


def altered(folder: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    for name in ("model.safetensors", "vocab.txt"):
        (target / name).write_bytes((folder / name).read_bytes())
    described = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(described))
    return target


def test_folders_of_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json describes a model of type 'bert'; expected 'r2d2'"):
        open_model(altered(folder, tmp_path / "bert", model_type="bert"))
    image = random_model().config.image.__dict__ | {"image_size": 25}
    with pytest.raises(UserError, match="image_size 25 is not a multiple of model.image.patch_size 8"):
        open_model(altered(folder, tmp_path / "odd", image=image))
    image = random_model().config.image.__dict__ | {"layers": 4}
    with pytest.raises(UserError, match=r"missing: visual_encoder.encoder.layers.3.layer_norm1.weight \[64\]"):
        open_model(altered(folder, tmp_path / "deep", image=image))
    (tmp_path / "deep" / "config.json").write_text('{"model_type"')
    with pytest.raises(UserError, match="config.json cannot be read: .*; fetch it again"):
        open_model(tmp_path / "deep")


def test_a_model_without_vocabulary_is_not_exported(tmp_path: Path) -> None:
    for form in (Form.TRANSFORMERS, Form.ONNX):
        with pytest.raises(UserError, match="came without a vocabulary, which its tokenizer needs: name its vocab.txt"):
            write_model(random_model(), tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_given_the_name_of_a_file(tmp_path: Path, model: Model) -> None:
    with pytest.raises(UserError, match=r"out.pth is the name of a file and the form transformers is a folder"):
        write_model(model, tmp_path / "out.pth", Form.TRANSFORMERS)
