"""Published state dicts go in and come out bitwise equal; what does not belong there is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from random_models import SPECIAL_TOKENS, random_model
from reference import ABSENT, FOLDER, reference, reference_model

from r2d2_jax.convert.conversion import open_model, write_model
from r2d2_jax.convert.tensor_files import read_tensors, write_tensors
from r2d2_jax.convert.torch_r2d2 import blank_unused, from_published, published_places, sizes_of, to_published
from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert tensor.shape == right[name].shape, name
        assert tensor.tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("cross_layers", [0, 1, 3])
@pytest.mark.parametrize("name", ["out.pth", "out.safetensors"])
def test_published_to_ours_to_published_is_bitwise_equal(tmp_path: Path, cross_layers: int, name: str) -> None:
    published = to_published(random_model(cross_layers=cross_layers))
    rng = np.random.default_rng(1)
    for key, tensor in published.items():
        if tensor.dtype == np.float32 and not tensor.any():  # the tables that no output reads: never zero in real files
            published[key] = rng.normal(size=tensor.shape).astype(np.float32)
    write_tensors(tmp_path / "in.pth", published)
    model = open_model(tmp_path / "in.pth")
    assert model.config == random_model(cross_layers=cross_layers).config
    write_model(model, tmp_path / "ours")
    write_model(open_model(tmp_path / "ours"), tmp_path / name)
    assert_same(read_tensors(tmp_path / name), published)


@pytest.mark.parity
def test_the_reference_checkpoint_comes_out_as_it_went_in(tmp_path: Path) -> None:
    write_model(reference_model(), tmp_path / "ours")
    write_model(open_model(tmp_path / "ours"), tmp_path / "out.pth")
    assert_same(read_tensors(tmp_path / "out.pth"), reference("checkpoint.pth"))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["r2d2_base", "r2d2_large", "prd2_large"])
def test_a_model_that_was_never_published_has_every_name_of_the_layout(name: str) -> None:
    path = FOLDER.parent / f"layout_{name}.json"
    if not path.exists():
        pytest.skip(ABSENT)
    layout = {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in layout.items()}
    config = sizes_of(tensors, name)
    assert (config.image.heads, config.text.heads) == (layout["visual_encoder.pre_layrnorm.bias"][0] // 64, 12)
    blank = blank_unused(config)
    assert set(published_places(config)) | set(blank) == set(layout)
    assert {key: tensor.shape for key, tensor in blank.items()} == {key: layout[key] for key in blank}


def test_unused_tables_of_a_model_of_ours_are_zero_and_positions_are_counted() -> None:
    published = to_published(random_model())
    assert published["text_encoder.embeddings.position_ids"].tolist() == [list(range(7))]
    assert published["visual_encoder.embeddings.position_ids"].tolist() == [list(range(10))]
    assert not published["text_joint_layer.embeddings.word_embeddings.weight"].any()


def test_every_name_that_differs_is_listed() -> None:
    published = to_published(random_model())
    del published["itm_head.bias"]
    published["surprise"] = np.zeros((2, 3), np.float32)
    published["text_proj.weight"] = np.zeros((16, 65), np.float32)
    with pytest.raises(UserError) as refused:
        from_published(published, "some.pth")
    assert str(refused.value).splitlines() == [
        "some.pth does not hold the tensors of such a model; check that it is the right file. 3 name(s) differ:",
        "  - missing: itm_head.bias [2]",
        "  - shape: text_proj.weight is [16, 65], expected [16, 64]",
        "  - unexpected: surprise [2, 3]",
    ]


def test_position_ids_may_be_absent() -> None:
    published = to_published(random_model())
    absent = {name for name in published if name.endswith("position_ids")}
    kept = {name: tensor for name, tensor in published.items() if name not in absent}
    assert_same(to_published(from_published(kept, "some.pth")), kept)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"bert.pth is no R2D2 or PRD2 checkpoint: it has no tensor visual_encoder"):
        from_published({"bert.embeddings.word_embeddings.weight": np.zeros((3, 4), np.float32)}, "bert.pth")
    crooked = to_published(random_model()) | {"visual_encoder.embeddings.patch_embedding.weight": np.zeros((3, 4))}
    with pytest.raises(UserError, match=r"patch_embedding.weight has the shape \[3, 4\], expected 4 axes"):
        from_published(crooked, "some.pth")
    crooked = to_published(random_model()) | {
        "visual_encoder.embeddings.position_embedding.weight": np.zeros((9, 64), np.float32)
    }
    with pytest.raises(UserError, match="some.pth has 9 image positions; expected CLS and a square of patches"):
        from_published(crooked, "some.pth")


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_model(random_model(), tmp_path / "ours")
    tokens = (*SPECIAL_TOKENS, *map(str, range(7)))
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    with pytest.raises(UserError, match="the vocabulary has 12 tokens and the model 11 word embeddings"):
        open_model(tmp_path / "ours", vocabulary=tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens[:11]))
    model = open_model(tmp_path / "ours", vocabulary=tmp_path / "vocab.txt")
    write_model(model, tmp_path / "again")
    assert open_model(tmp_path / "again").vocabulary == tokens[:11]


def test_what_is_no_model_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model; expected a published"):
        open_model(tmp_path)
    write_model(random_model(), tmp_path / "ours")
    for name in ("ours", "ours/model.json"):
        with pytest.raises(UserError, match="exists already; choose another name or remove it first"):
            write_model(random_model(), tmp_path / name)


def damage(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    open_model(folder)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    write_model(random_model(), folder)
    described = (folder / "model.json").read_text()
    with pytest.raises(UserError, match="the model in .*ours is damaged"):
        damage(folder, "model.json", '{"model": ')
    with pytest.raises(
        UserError,
        match="the sizes of the model in .*ours are wrong; convert or copy it again:\n  - unknown key model.size",
    ):
        damage(folder, "model.json", '{"model": {"size": 3}}')
    with pytest.raises(
        UserError,
        match="the sizes of the model in .*ours are wrong; convert or copy it again:\n  - model is None; exp",
    ):
        damage(folder, "model.json", "{}")
    with pytest.raises(UserError, match="model.image.image_size 25 is not a multiple of model.image.patch_size 8"):
        damage(folder, "model.json", described.replace('"image_size": 24', '"image_size": 25'))
    with pytest.raises(UserError, match="model.image.patch_size is 0; expected a positive number"):
        damage(folder, "model.json", described.replace('"patch_size": 8', '"patch_size": 0'))
    with pytest.raises(
        UserError,
        match=r"params.safetensors does not fit model.json; convert it again:\n"
        r"  - image_encoder/position_embedding: \[10, 64\] in the weights, \[17, 64\]",
    ):
        damage(folder, "model.json", described.replace('"image_size": 24', '"image_size": 32'))
    with pytest.raises(UserError, match="the model in .*ours is damaged"):
        damage(folder, "params.safetensors", "short")


def test_a_model_without_match_heads_is_not_published_as_r2d2(tmp_path: Path) -> None:
    model = random_model()
    params = {name: value for name, value in model.params.items() if name != "text_image_match_head"}
    with pytest.raises(UserError, match="lacks text_image_match_head"):
        write_model(Model(model.config, params), tmp_path / "out.pth")
