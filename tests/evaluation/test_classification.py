"""Classification without training agrees with a naive oracle, and knows the pictures of the demonstration's scenes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jax.sharding import Mesh
from programs import called
from retrieval_cases import one_device
from scene_classes import SceneClasses, write_scene_classes

from r2d2_jax.data.classified_images import ClassifiedImages
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.classification import (
    TEMPLATES,
    class_embeddings,
    classification_report,
    evaluate_classification,
    read_templates,
)
from r2d2_jax.launch import prepare_data
from r2d2_jax.preparation.demonstration import training_vocabulary

CLASSES, IMAGES, SIZE, BATCH = 6, 4, 48, 10
# Of some pictures the model is wrong: (class, picture) -> the class that it takes it for.
MISTAKES = {(0, 1): 3, (0, 2): 3, (0, 3): 5, (4, 0): 2}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneClasses:
    """Classes that are scenes of the demonstration, prepared as a corpus of classes."""
    folder = tmp_path_factory.mktemp("scenes")
    written = write_scene_classes(folder / "images", CLASSES, IMAGES, SIZE)
    arguments = ("--corpus=classification", f"--images={folder / 'images'}", f"--output={folder / 'data'}")
    done = called(prepare_data.main, *arguments)
    assert done.returncode == 0, done.stderr
    return SceneClasses(folder / "data", written.names, written.files)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer_of(training_vocabulary(), 24)


class KnownModel:
    """An encoder whose answers are known: it reads the class from the very pixels, and from the very tokens.

    Texts of one class differ from template to template by noise, which their mean has less of.
    """

    batch_size = BATCH

    def __init__(self, images: ClassifiedImages, words: Tokenizer) -> None:
        rows = np.concatenate(list(images.image_batches(BATCH)))[: images.num_images]
        seen: dict[int, int] = {}
        self._answers: dict[bytes, int] = {}
        for pixels, label in zip(rows, images.label.tolist(), strict=True):
            number = seen[label] = seen.get(label, -1) + 1
            self._answers[pixels.tobytes()] = MISTAKES.get((label, number), label)
        self._names = [words.tokens(ids[mask][1:-1]) for ids, mask in zip(*words(images.class_names), strict=True)]
        self._words = words

    @property
    def mesh(self) -> Mesh:
        return one_device()

    def own_rows(self) -> np.ndarray:
        return np.ones(BATCH, bool)

    def encode_images(self, params: Any, batches: Any, count: int, keep: Any) -> Any:
        rows = np.concatenate(list(batches))[:count]
        return SimpleNamespace(embed=np.eye(CLASSES, dtype=np.float32)[[self._answers[row.tobytes()] for row in rows]])

    def encode_texts(self, params: Any, input_ids: np.ndarray, mask: np.ndarray, keep: Any) -> Any:
        rng = np.random.default_rng(0)
        rows = []
        for ids in input_ids:
            inside = "".join(self._words.tokens(ids[ids != self._words.pad_id]))
            label = next(number for number, name in enumerate(self._names) if "".join(name) in inside)
            row = np.eye(CLASSES)[label] + 0.2 * rng.normal(size=CLASSES)
            rows.append(row / np.linalg.norm(row))
        return SimpleNamespace(embed=np.array(rows, np.float32))


@pytest.mark.parametrize("templates", [("{}",), TEMPLATES])
def test_scenes_are_classified_as_the_model_answers(
    scenes: SceneClasses, words: Tokenizer, templates: tuple[str, ...]
) -> None:
    images = ClassifiedImages(RecordSource(scenes.folder, "test"), SIZE)
    assert (images.class_names, images.num_images) == (scenes.names, CLASSES * IMAGES)
    scorer: Any = SimpleNamespace(encoder=KnownModel(images, words), announce=lambda: None)
    report = evaluate_classification(scorer, {}, images, words, templates)
    assert report.accuracy["top1"] == pytest.approx(100 * (1 - len(MISTAKES) / (CLASSES * IMAGES)))
    assert report.accuracy["per_class"] == pytest.approx(report.accuracy["top1"])  # as many images of each class
    assert report.chance == {"top1": 100 / 6, "top5": 500 / 6, "per_class": 100 / 6}
    low, high = report.intervals["top1"]
    assert low < report.accuracy["top1"] < high < 100
    assert [(each.name, each.images, each.top1) for each in report.classes] == [
        (name, IMAGES, {0: 25.0, 4: 75.0}.get(number, 100.0)) for number, name in enumerate(scenes.names)
    ]
    worst, next_worst = report.worst()
    assert worst.confused == ((scenes.names[3], 2), (scenes.names[5], 1))
    assert (next_worst.name, next_worst.confused) == (scenes.names[4], ((scenes.names[2], 1),))


class OneText:
    """An encoder to which all names are one text, as names of unknown characters are to a vocabulary."""

    batch_size, mesh = BATCH, one_device()

    def own_rows(self) -> np.ndarray:
        return np.ones(BATCH, bool)

    def encode_images(self, params: Any, batches: Any, count: int, keep: Any) -> Any:
        return SimpleNamespace(embed=np.random.default_rng(0).normal(size=(count, 32)).astype(np.float32))

    def encode_texts(self, params: Any, input_ids: np.ndarray, mask: np.ndarray, keep: Any) -> Any:
        text = np.random.default_rng(1).normal(size=32).astype(np.float32)
        return SimpleNamespace(embed=np.repeat(text[None], len(input_ids), axis=0))


def test_classes_of_one_text_are_a_tie_whatever_their_number(scenes: SceneClasses, words: Tokenizer) -> None:
    """A product of matrices may add in another order at its end; the last classes would win or lose by a rounding."""
    images = ClassifiedImages(RecordSource(scenes.folder, "test"), SIZE, max_images=3)
    scorer: Any = SimpleNamespace(encoder=OneText(), announce=lambda: None)
    report = evaluate_classification(scorer, {}, images, words)
    assert report.accuracy == {"top1": 0.0, "top5": 0.0, "per_class": 0.0}


def oracle(scores: np.ndarray, label: np.ndarray, cutoff: int) -> float:
    """Per cent of the images whose class is among the first `cutoff`, every other of equal or no score before it."""
    hits = 0
    for row, own in zip(scores, label, strict=True):
        before = sum(1 for other, score in enumerate(row) if other != own and not score < row[own])
        hits += not np.isnan(row[own]) and before < cutoff
    return 100 * hits / len(label)


@pytest.mark.parametrize("seed", range(20))
def test_accuracies_agree_with_a_naive_oracle(seed: int) -> None:
    """With ties, NaN, classes without images, and fewer classes than the cut-off."""
    rng = np.random.default_rng(seed)
    count, images = int(rng.integers(2, 9)), int(rng.integers(1, 40))
    scores = rng.integers(0, 4, (images, count)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    label = rng.integers(0, count, images).astype(np.int32)
    report = classification_report(scores, label, [str(number) for number in range(count)])
    top = min(5, count)
    assert report.accuracy["top1"] == pytest.approx(oracle(scores, label, 1))
    assert (f"top{top}" in report.accuracy) == (top > 2)
    if top > 2:
        assert report.accuracy[f"top{top}"] == pytest.approx(oracle(scores, label, top))
    for number, each in enumerate(report.classes):
        rows = label == number
        assert each.images == rows.sum()
        assert each.top1 == (pytest.approx(oracle(scores[rows], label[rows], 1)) if rows.any() else None)
        wrong = round(each.images * (1 - each.top1 / 100)) if each.top1 is not None else 0
        assert sum(times for _, times in each.confused) <= wrong
        assert all(name != str(number) for name, _ in each.confused)
        assert (report.confusion[number].sum(), report.confusion[number, number]) == (rows.sum(), rows.sum() - wrong)
    shares = [each.top1 for each in report.classes if each.top1 is not None]
    assert report.accuracy["per_class"] == pytest.approx(np.mean(shares))


def test_one_score_for_everything_is_never_right() -> None:
    report = classification_report(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0], np.int32), list("abc"))
    assert report.accuracy == {"top1": 0.0, "top3": 100.0, "per_class": 0.0}


def test_a_class_is_the_mean_of_its_templates_and_of_unit_norm() -> None:
    embed = np.array([[1, 0], [0, 1], [-1, 0], [-1, 0]], np.float32)
    np.testing.assert_allclose(class_embeddings(embed, 2), [[0.5**0.5, 0.5**0.5], [-1, 0]], rtol=1e-6)


def test_templates_of_a_file_and_one_alone(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("\ufeff一张{}的照片\n\n{}\n", encoding="utf-8")
    assert read_templates(str(file)) == ("一张{}的照片", "{}")
    assert read_templates("这是{}") == ("这是{}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "has no template; expected one a line"),
        ("{}\n\n一张照片\n", "line 3: '一张照片' has no {}, where the class's name goes"),
        (None, "is no UTF-8 file that can be read .* and no template, which has {} where"),
    ],
)
def test_bad_templates_are_one_message(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_templates(str(file))
