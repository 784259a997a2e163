"""launch/evaluate.py: every task of any checkpoint on small sets, and what its table and JSON file say."""

import base64
import dataclasses
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import called
from random_models import VOCABULARY, random_model
from small_corpora import prepared, write
from small_data import encode

import r2d2_jax
from r2d2_jax.convert.conversion import Form, open_model, write_model
from r2d2_jax.evaluation.published import published_retrieval
from r2d2_jax.launch.evaluate import main, memory_of
from r2d2_jax.lineage import unrecorded
from r2d2_jax.preparation.corpora.chinese_clip import Muge
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset

IMAGES = 13
TEXTS = ("红圆", "蓝方", "大红圆", "小蓝圆", "大", "小方", "红", "蓝圆", "大蓝方", "小红方", "方", "圆", "红蓝")


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return called(main, "--batch_size=8", *arguments)


def measured(folder: Path, *arguments: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """The JSON document, and what was printed."""
    done = evaluate(f"--json={folder / 'out.json'}", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text(encoding="utf-8")), done


def drawn(folder: Path, done: subprocess.CompletedProcess[str]) -> list[str]:
    """The pictures of what `measured` measured, which are where it says."""
    assert done.stdout.endswith(f"\nPictures: {folder / 'out.plots'}\n")
    return [path.name for path in (folder / "out.plots").iterdir()]


def pairs(start: int, count: int = IMAGES, step: int = 0) -> Iterable[Example]:
    """Two captions an image; with `step`, one caption and whether it matches."""
    for number in range(start, start + count):
        text = TEXTS[number % len(TEXTS)]
        texts = (text,) if step else (text, f"{text}大")
        label = int(number % step == 0) if step else None
        yield Example(encode(seed=number), texts, f"image{number}", label=label)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder with a lineage."""
    folder = tmp_path_factory.mktemp("models") / "model"
    made = random_model(layers=1, cross_layers=1, tokens=VOCABULARY)
    write_model(dataclasses.replace(made, lineage=(unrecorded("r2d2.pth"),)), folder)
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned")
    write_dataset(folder, {"test": pairs(0), "validation": pairs(50, 5)})
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    splits = {"test": pairs(0, step=2), "validation": pairs(50, step=3)}
    write_dataset(folder, splits, class_names=("no match", "match"))
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    images = (Example(encode(seed=n), (), f"image{n}", label=n % 4) for n in range(IMAGES))
    write_dataset(folder, {"test": images}, class_names=("红圆", "蓝方", "大圆", "小方"))
    return folder


def test_pictures_elsewhere_or_none_where_nothing_is_written(model: Path, classes: Path, tmp_path: Path) -> None:
    arguments = (f"--checkpoint={model}", f"--data={classes}")
    assert "Pictures: " not in evaluate(*arguments).stdout
    (tmp_path / "file").touch()
    done = evaluate(*arguments, f"--plots={tmp_path / 'file'}")
    assert (done.returncode, "Pictures: " in done.stdout) == (0, False)
    assert "there are no pictures of the evaluation: cannot write " in done.stderr


def test_retrieval_of_everything_that_is_said(model: Path, captioned: Path, tmp_path: Path) -> None:
    document, done = measured(tmp_path, f"--checkpoint={model}", f"--data={captioned}", "--rerank=6")
    counts = document["counts"]
    assert (counts["images"], counts["texts"], counts["unusable"]) == (IMAGES, 2 * IMAGES, 0)
    assert set(document["figures"]) == {"dual", "cross", "reranked", "chance"}
    assert document["settings"].items() >= {"rerank": 6, "directions": ["i2t", "t2i"], "batch_size": 8}.items()
    assert document["checkpoint"]["lineage"] == [unrecorded("r2d2.pth")]
    assert "training not recorded: r2d2.pth" in done.stdout
    for stage in ("dual", "cross", "reranked"):
        for name, (low, high) in document["intervals"][stage].items():
            assert low <= document["figures"][stage][name] <= high
    row = next(line for line in done.stdout.splitlines() if line.startswith("T2I R@5")).split()
    figures = [document["figures"][stage]["t2i_r5"] for stage in ("dual", "cross", "reranked")]
    assert row[2::2] == [*(f"{value:.1f}" for value in figures), f"{document['figures']['chance']['t2i_r5']:.1f}"]
    assert document["published"] == []
    assert not (tmp_path / "out.json.work").exists()
    assert document["settings"]["work"] == ""  # which was not asked for, and is gone
    assert drawn(tmp_path, done) == ["recalls.png"]


def test_figures_are_those_of_a_ranker_that_is_asked_one_by_one(model: Path, captioned: Path, tmp_path: Path) -> None:
    """Whatever the size of the batches; each figure counted by hand."""
    found = [
        measured(tmp_path, f"--checkpoint={model}", f"--data={captioned}", "--rerank=0", f"--batch_size={size}")[0]
        for size in (3, 64)
    ]
    assert found[0]["figures"] == found[1]["figures"]
    assert set(found[0]["figures"]) == {"dual", "chance"}
    examples, ranker = list(pairs(0)), r2d2_jax.load(model)
    image = ranker.encode_image([each.image for each in examples]).embed
    text = ranker.encode_text([caption for each in examples for caption in each.captions]).embed
    cosine, hits = image @ text.T, dict.fromkeys((1, 5, 10), 0)
    for place, column in enumerate(cosine.T):
        better = np.sum(column >= column[place // 2]) - 1
        hits = {k: count + (better < k) for k, count in hits.items()}
    for k, count in hits.items():
        assert found[0]["figures"]["dual"][f"t2i_r{k}"] == pytest.approx(100 * count / (2 * IMAGES))


def test_finished_blocks_are_used_again(model: Path, captioned: Path, tmp_path: Path) -> None:
    arguments = (f"--checkpoint={model}", f"--data={captioned}", "--rerank=6", f"--work={tmp_path / 'work'}")
    first, second = (measured(tmp_path, *arguments)[0] for _ in range(2))
    assert first["figures"] == second["figures"]
    assert first["forwards"]["images"] >= IMAGES
    assert first["forwards"]["pairs"] > 0
    assert set(second["forwards"].values()) == {0}
    rounded = evaluate(*arguments, "--dtype=bfloat16")  # and are no figures of another precision
    assert rounded.returncode == 2
    assert "dtype: 'float32', now 'bfloat16'" in rounded.stderr


def test_muge_is_asked_by_text_and_has_published_figures_beside(model: Path, tmp_path: Path) -> None:
    lines = (f"{n}\t{base64.b64encode(encode(seed=n)).decode()}" for n in range(4))
    write(tmp_path / "muge" / "valid_imgs.tsv", *lines)
    queries = ({"text_id": n, "text": TEXTS[n], "image_ids": [n, n + 1]} for n in range(3))
    write(tmp_path / "muge" / "valid_texts.jsonl", *(json.dumps(query) for query in queries))
    prepared(Muge(annotations=str(tmp_path / "muge")), tmp_path / "data")
    arguments = (f"--checkpoint={model}", f"--data={tmp_path / 'data'}", "--split=validation")
    document, done = measured(tmp_path, *arguments)
    assert document["settings"]["directions"] == ["t2i"]
    assert document["settings"]["rerank"] == 128  # of a gallery of four
    counts = {"images": 4, "texts": 3, "text_queries": 3, "texts_with_several_images": 3}
    assert document["counts"].items() >= counts.items()
    assert not any(name.startswith("i2t") for name in document["figures"]["dual"])
    assert len(document["published"]) == len(published_retrieval("muge"))
    assert "published, not measured here" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("R2D2 ViT-L, zero-shot, validation"))
    assert row.split()[-4:-1] == ["-", "49.5/75.7/83.2", "69.5"]
    assert "arXiv 2205.03860" in " ".join(done.stdout.split())


def test_matching_takes_its_threshold_from_validation(model: Path, labelled: Path, tmp_path: Path) -> None:
    given = (f"--checkpoint={model}", f"--data={labelled}")
    (tmp_path / "out.json.work").mkdir()  # of a retrieval that was killed, or the user's own
    document, done = measured(tmp_path, *given)
    assert (tmp_path / "out.json.work").exists()
    validation, alone = measured(tmp_path, *given, "--split=validation")
    assert (document["task"], document["settings"]["threshold_split"]) == ("matching", "validation")
    chosen = validation["figures"]["match"]["threshold"]
    assert document["figures"]["match"]["threshold"] == chosen
    assert f"threshold: the best of validation (dual {document['figures']['dual']['threshold']:.4f}," in done.stdout
    assert "upper bound" not in done.stdout
    assert validation["threshold_is_best_of_this_split"]
    assert "threshold: the best of this very split" in alone.stdout
    assert "an upper bound, not a result" in alone.stdout
    assert document["counts"]["matches"] == 7
    assert drawn(tmp_path, done) == ["matching.png"]
    assert {"auc", "accuracy", "half_accuracy", "match_accuracy"} <= set(document["figures"]["match"])


def test_classification_of_named_classes(model: Path, classes: Path, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("{}\n大{}\n", encoding="utf-8")
    arguments = (f"--checkpoint={model}", f"--data={classes}", f"--templates={tmp_path / 'templates.txt'}")
    document, done = measured(tmp_path, *arguments)
    assert (document["task"], document["settings"]["templates"]) == ("classification", ["{}", "大{}"])
    assert document["figures"]["chance"] == {"top1": 25.0, "top4": 100.0, "per_class": 25.0}
    assert [each["images"] for each in document["classes"]] == [4, 3, 3, 3]
    ranker = r2d2_jax.load(model)
    image = ranker.encode_image([encode(seed=n) for n in range(IMAGES)]).embed
    names = [each["name"] for each in document["classes"]]
    text = ranker.encode_text([f"{way}{name}" for name in names for way in ("", "大")]).embed
    mean = text.reshape(4, 2, -1).mean(1)
    best = np.argmax(image @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T, axis=1)
    assert document["figures"]["dual"]["top1"] == pytest.approx(100 * np.mean(best == np.arange(IMAGES) % 4))
    assert "taken for, of the worst classes" in done.stdout
    assert drawn(tmp_path, done) == ["confusion.png"]


@pytest.mark.parametrize("form", [Form.PUBLISHED, Form.TRANSFORMERS])
def test_other_forms_of_the_checkpoint_give_the_same(form: Form, model: Path, classes: Path, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if form is Form.PUBLISHED else "model")
    write_model(open_model(model), path, form)
    vocabulary = (f"--vocabulary={model}",) if form is Form.PUBLISHED else ()
    kept = open_model(model).maps_punctuation  # which a published file does not record
    vocabulary += (f"--map_punctuation={kept}",) if vocabulary else ()
    document, _ = measured(tmp_path, f"--checkpoint={path}", f"--data={classes}", "--templates={}", *vocabulary)
    assert document["checkpoint"]["maps_punctuation"] == kept
    expected, _ = measured(tmp_path, f"--checkpoint={model}", f"--data={classes}", "--templates={}")
    assert document["figures"] == expected["figures"]
    source = "model.safetensors" if form is Form.PUBLISHED else "r2d2.pth"
    assert document["checkpoint"]["lineage"] == [unrecorded(source)]


def test_amounts_of_memory() -> None:
    given = ("8GiB", "500MB", "1.5 KiB", "1000", "")
    assert [memory_of(each) for each in given] == [8 * 2**30, 500 * 10**6, 1536, 1000, None]
