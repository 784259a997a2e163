"""The one set of forwards: any number of devices gives the same, and tokens move only when they are asked for."""

import dataclasses
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from encoder_cases import BATCH, IMAGES, MODEL, TEXTS, encoded, images, ranked, texts
from retrieval_cases import retrieved

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.encoder import Encoder, Keep, fetched
from r2d2_jax.forwards import compiled_forwards
from r2d2_jax.inference import Ranker
from r2d2_jax.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[1]
MESHES = ("8x1", "2x4")
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(MODEL.module, make_mesh(MeshConfig(), jax.devices()[:1]), BATCH)


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the worker found, by mesh and name."""
    output = tmp_path_factory.mktemp("worker") / "found.npz"
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    environment = os.environ | devices | {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "tests" / "encoder_worker.py"), str(output), *MESHES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(output) as found:
        return dict(found)


@pytest.fixture(scope="module")
def on_one_device() -> dict[str, np.ndarray]:
    return encoded(make_mesh(MeshConfig(), jax.devices()[:1]))


def part(found: dict[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
    """The results of one mesh, or of the Ranker."""
    return {name.removeprefix(f"{place} "): value for name, value in found.items() if name.startswith(f"{place} ")}


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_give_what_one_gives(
    mesh: str, on_eight_devices: dict[str, np.ndarray], on_one_device: dict[str, np.ndarray]
) -> None:
    found = part(on_eight_devices, mesh)
    assert found.keys() == on_one_device.keys()
    for name in found.keys() - {"image rows by device", "text rows by device"}:
        np.testing.assert_allclose(found[name], on_one_device[name], err_msg=name, **CLOSE)


def test_a_ranker_on_eight_devices_gives_what_it_gives_on_one(on_eight_devices: dict[str, np.ndarray]) -> None:
    found, alone = part(on_eight_devices, "ranker"), ranked(jax.devices()[:1])
    assert found.keys() == alone.keys()
    for name in found:
        np.testing.assert_allclose(found[name], alone[name], err_msg=name, **CLOSE)


def test_recall_depends_on_neither_batch_size_nor_devices(on_eight_devices: dict[str, np.ndarray]) -> None:
    """To the last digit, with ties: every third text is one before it."""
    alone = retrieved(make_mesh(MeshConfig(), jax.devices()[:1]))
    assert len(alone) == 2 * 3 * 2 * (10 + 5)
    for name, figure in alone.items():
        assert figure.tolist() == alone[f"{name.rsplit(maxsplit=1)[0]} 8"].tolist(), name
        for mesh in MESHES:
            assert figure.tolist() == on_eight_devices[f"retrieval {mesh} {name}"].tolist(), f"{mesh} {name}"


@pytest.mark.parametrize("mesh", MESHES)
def test_tokens_lie_split_by_rows_over_all_devices(mesh: str, on_eight_devices: dict[str, np.ndarray]) -> None:
    found = part(on_eight_devices, mesh)
    assert found["image rows by device"].tolist() == [32 // 8] * 8, "two batches of 16"
    assert found["text rows by device"].tolist() == [48 // 8] * 8, "three batches of 16"


@pytest.mark.parametrize("place", ["one", *MESHES])
def test_what_becomes_of_tokens_changes_no_bit(
    place: str, on_eight_devices: dict[str, np.ndarray], on_one_device: dict[str, np.ndarray]
) -> None:
    """Appended on the devices and gathered there, or fetched and sent again."""
    found = on_one_device if place == "one" else part(on_eight_devices, place)
    for name in ("image tokens", "text tokens", "match"):
        np.testing.assert_array_equal(found[f"{name} ON_DEVICES"], found[f"{name} ON_HOST"], err_msg=name)
    for name in ("image feature", "image embed", "text feature", "text embed"):
        np.testing.assert_array_equal(found[f"{name} ON_DEVICES"], found[f"{name} ON_HOST"], err_msg=name)
        np.testing.assert_allclose(found[f"{name} NOTHING"], found[f"{name} ON_HOST"], err_msg=name, **CLOSE)


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of everything that is brought to the host."""
    shapes: list[tuple[int, ...]] = []
    device_get = jax.device_get

    def spy(tree: Any) -> Any:
        shapes.extend(leaf.shape for leaf in jax.tree.leaves(tree))
        return device_get(tree)

    monkeypatch.setattr(jax, "device_get", spy)
    return shapes


@pytest.mark.parametrize("keep", Keep)
def test_tokens_are_fetched_only_when_asked_for(keep: Keep, encoder: Encoder, fetches: list[tuple[int, ...]]) -> None:
    encoder.encode_images(MODEL.params, encoder.slices(images()), IMAGES, keep)
    encoder.encode_texts(MODEL.params, *texts(), keep)
    assert fetches.count((BATCH, 16)) == 2 * (2 + 3), "feature and embed of every batch"
    assert [shape for shape in fetches if len(shape) == 3] == (
        [(BATCH, 10, 64)] * 2 + [(BATCH, 7, 64)] * 3 if keep is Keep.ON_HOST else []
    )


def test_a_ranker_fetches_tokens_only_when_asked_for(fetches: list[tuple[int, ...]]) -> None:
    ranker = Ranker(MODEL, batch_size=BATCH)
    assert ranker.encode_image(images()).tokens is ranker.encode_text("红").tokens is None
    ranker.match(images(1), ["红", "圆"])
    ranker.score_all(images(2), ["红", "圆"])
    assert {len(shape) for shape in fetches} == {1, 2}, "probabilities and embeddings"
    assert len(ranker.encode_image(images(2), tokens=True).host_tokens) == 2
    assert 3 in {len(shape) for shape in fetches}


def test_without_tokens_the_program_returns_none() -> None:
    compiled = compiled_forwards(MODEL.module, make_mesh(MeshConfig(), jax.devices()[:1]))
    shapes = jax.tree.map(lambda leaf: leaf.shape, compiled.embed_image.eval_shape(MODEL.params, images(8)))
    assert shapes == ((8, 16), (8, 16))


def spied(ranker: Ranker, name: str, seen: list[Any], look: Callable[..., Any]) -> None:
    """Appends `look(inputs)` to `seen` whenever a forward of this Ranker is called."""
    forward = getattr(ranker._encoder._compiled, name)

    def spy(*inputs: Any) -> Any:
        seen.append(look(*inputs))
        return forward(*inputs)

    ranker._encoder._compiled = dataclasses.replace(ranker._encoder._compiled, **{name: spy})


def test_one_image_with_many_texts_stays_within_a_batch() -> None:
    """8,000 pairs: the image is encoded once, each text once, and no tokens wait for a later batch."""
    ranker = Ranker(MODEL, batch_size=64)
    image_rows: list[int] = []
    text_rows: list[int] = []
    passed: list[tuple[int, ...]] = []
    alive: list[int] = []
    spied(ranker, "encode_image", image_rows, lambda params, rows: len(rows))
    spied(ranker, "encode_text", text_rows, lambda params, ids, mask: len(ids))
    spied(ranker, "match", passed, lambda params, text, mask, image: (len(text), len(mask), len(image)))
    spied(ranker, "match", alive, lambda *_: sum(array.nbytes for array in jax.live_arrays()))
    captions = ["".join("红蓝圆方大小"[number // 6**place % 6] for place in range(5)) for number in range(7776)]
    captions += captions[: 8000 - len(captions)]
    gc.collect()  # what other tests have left is not to go meanwhile
    found = ranker.match(images(1), captions)
    assert found.shape == (8000,)
    assert image_rows == [1]
    assert text_rows == [64] * 125
    assert passed == [(64, 64, 64)] * 125
    batch_bytes = 64 * (7 + 10) * 64 * 4
    assert max(alive) - min(alive) < 4 * batch_bytes, "two batches are on their way"
    np.testing.assert_array_equal(found[7776:], found[:224])
    np.testing.assert_allclose(ranker.match(images(1), captions[70:73]), found[70:73], **CLOSE)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (70, 60)])
def test_scores_of_all_stay_within_two_batches(shape: tuple[int, int]) -> None:
    """However many rows and columns there are, no more tokens are alive than those of 64 images and 64 texts."""
    ranker, alive, image_rows = Ranker(MODEL, batch_size=64), [], []
    spied(ranker, "match", alive, lambda *_: sum(array.nbytes for array in jax.live_arrays() if array.ndim == 3))
    spied(ranker, "encode_image", image_rows, lambda params, rows: len(rows))
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays() if array.ndim == 3)
    scores = ranker.score_all([images(1)[0]] * shape[0], ["红"] * shape[1])
    assert scores.match is not None
    assert scores.match.shape == scores.cosine.shape == shape
    np.testing.assert_allclose(scores.match, scores.match[0, 0], **CLOSE)
    assert sum(image_rows) < shape[0] + 64, "each image is encoded once"
    batch_bytes = 64 * (7 + 10) * 64 * 4
    assert max(alive) - before < 5 * batch_bytes, "the tokens, those of two batches of pairs, and the next texts"


def test_score_all_encodes_each_image_and_text_once() -> None:
    ranker, captions = Ranker(MODEL, batch_size=4), ["红", "圆", "大圆", "小圆", "方", "红"]
    rows: list[int] = []
    spied(ranker, "encode_image", rows, lambda params, batch: len(batch))
    spied(ranker, "encode_text", rows, lambda params, ids, mask: len(ids))
    scores = ranker.score_all(images(3), captions)
    assert rows == [4, 4, 2], "three images in one batch, six texts in two"
    assert scores.match is not None
    for row in range(3):
        np.testing.assert_allclose(scores.match[row], ranker.match(images()[row], captions), **CLOSE)
    embed = ranker.encode_image(images(3)).embed @ ranker.encode_text(captions).embed.T
    np.testing.assert_allclose(scores.cosine, embed, **CLOSE)


def test_encoders_of_equal_models_share_what_is_compiled(encoder: Encoder) -> None:
    again = Encoder(dataclasses.replace(MODEL).module, make_mesh(MeshConfig(), jax.devices()[:1]), 2)
    assert again._compiled is encoder._compiled


def test_two_batches_are_on_their_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(jax, "device_get", lambda number: events.append(f"fetch {number}") or number)
    dispatched = (events.append(f"dispatch {number}") or number for number in range(3))
    assert list(fetched(dispatched)) == [0, 1, 2]
    assert events == ["dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "fetch 2"]


@pytest.mark.parametrize("batch_size", [0, 12])
def test_a_batch_that_the_devices_do_not_divide(batch_size: int) -> None:
    mesh: Any = jax.sharding.AbstractMesh((8,), ("data",))
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; expected a positive multiple of 8 devices"):
        Encoder(MODEL.module, mesh, batch_size)


def test_tokens_that_were_not_kept_are_not_made_up(encoder: Encoder) -> None:
    text = encoder.encode_texts(MODEL.params, *texts(TEXTS), Keep.NOTHING)
    with pytest.raises(ValueError, match="tokens were not kept on the host"):
        _ = text.host_tokens


def test_moved_parameters_are_on_the_devices_alone(encoder: Encoder) -> None:
    """In the very dict that was given, so that nobody's copy in host memory stays."""
    params = jax.tree.map(np.copy, MODEL.params)
    moved = encoder.moved(params)
    assert moved is params
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, moved, MODEL.params)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(moved)} == {encoder.mesh}
