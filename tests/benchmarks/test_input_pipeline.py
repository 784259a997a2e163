"""benchmarks/input_pipeline.py: both ways make the same kind of batches, and what it counts and prints."""

import importlib
import io
import itertools
import time
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image
from programs import loaded_benchmark

from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.writer import write_dataset


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("input_pipeline") as module:
        yield module


@pytest.fixture(scope="module")
def source(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> RecordSource:
    """Twelve generated records."""
    folder = tmp_path_factory.mktemp("generated")
    write_dataset(folder, {"train": benchmark.examples((64, 48), 12)})
    return RecordSource(folder, "train")


@pytest.fixture(scope="module")
def tokenizer(benchmark: ModuleType) -> Tokenizer:
    """The generated vocabulary."""
    return benchmark.generated_tokenizer()


def test_generated_images_are_like_photographs(benchmark: ModuleType) -> None:
    for size, kibibytes in (((224, 224), 14), ((500, 375), 40)):
        encoded = benchmark.photograph(size, 0)
        assert abs(len(encoded) / 1024 - kibibytes) < 3
        pixels = np.asarray(Image.open(io.BytesIO(encoded))).astype(float)
        assert pixels.shape == (size[1], size[0], 3)
        assert 30 < pixels.std() < 90
        assert np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1] > 0.9  # neighbours are alike
    assert benchmark.photograph((64, 48), 1) != benchmark.photograph((64, 48), 2)


def test_captions_have_no_unknown_characters(source: RecordSource, tokenizer: Tokenizer) -> None:
    captions = [caption for index in range(len(source)) for caption in source[index].captions]
    input_ids, mask = tokenizer(captions)
    assert (input_ids != tokenizer.unk_id).all()
    assert mask.sum(1).tolist() == [len(caption) + 2 for caption in captions]


def test_both_ways_make_the_same_kind_of_batch(
    benchmark: ModuleType, source: RecordSource, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("torch")
    usual_batches = importlib.import_module("usual_loader").usual_batches
    settings = {"image_size": 32, "batch_size": 4}
    usual, floating = (
        next(usual_batches(source, tokenizer, workers=0, normalised=normalised, **settings))
        for normalised in (False, True)
    )
    with benchmark.our_batches(source, tokenizer, 0, **settings) as batches:
        ours = next(batches)
    assert set(usual) == set(ours) - {"problems"}
    for key, value in usual.items():
        assert tuple(value.shape) == ours[key].shape
        assert np.asarray(value).dtype == ours[key].dtype
    assert tuple(floating["images"].shape) == (4, 3, 32, 32)
    assert -3 < float(floating["images"].min()) < 0 < float(floating["images"].max()) < 3


def test_the_usual_operations_are_ours(benchmark: ModuleType) -> None:
    """Up to the interpolation: so the mean difference is small, and a wrong direction or size would not be."""
    pytest.importorskip("torch")
    usual = importlib.import_module("usual_loader")
    ours = importlib.import_module("r2d2_jax.data.image.random_augment")
    image = Image.open(io.BytesIO(benchmark.photograph((64, 64), 0)))
    pixels, levels = np.asarray(image.convert("RGBA")), (None, None, None, 1.0, 1.0, 0.15, 0.15, 5, 5, 15)
    assert len(usual.OPERATIONS) == len(ours.OPERATIONS) == len(levels)
    for theirs, operation, level in zip(usual.OPERATIONS, ours.OPERATIONS, levels, strict=True):
        for sign in (1, -1):
            result = np.asarray(theirs(image, sign)).astype(float)
            directions = (1,) if level is None or level == 1.0 else (1, -1)
            expected = [operation(pixels, *(() if level is None else (level * way,)))[..., :3] for way in directions]
            assert min(np.abs(result - other).mean() for other in expected) < 8


def spin(seconds: float) -> None:
    """Uses so much processor time."""
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def test_seconds_by_stage(benchmark: ModuleType) -> None:
    class Work:
        def outer(self, numbers: range) -> None:
            for _ in numbers:
                self.inner()
            spin(0.02)

        def inner(self) -> None:
            spin(0.01)

    spent = benchmark.seconds_by_stage({"inner": [(Work, "inner")]}, Work().outer, 5, 3)
    assert 0.05 <= spent["inner"] <= spent["in all"] - 0.04


def test_medians_ask_each_loader_in_turn(benchmark: ModuleType) -> None:
    asked: list[str] = []

    def loader(name: str) -> Iterator[dict[str, np.ndarray]]:
        while True:
            asked.append(name)
            spin(0.03)
            yield {"input_ids": np.zeros((4, 2))}

    found = benchmark.medians({"a": loader("a"), "b": loader("b")}, rounds=2, seconds=0.0, ahead=3)
    assert [(name, len(list(group))) for name, group in itertools.groupby(asked)] == [
        ("a", 1),
        ("b", 1),
        ("a", 4),
        ("b", 4),
        ("a", 4),
        ("b", 4),
    ]
    assert all(rate > 0 for rates in found.values() for rate in rates)


def test_fails_below_the_target(benchmark: ModuleType) -> None:
    benchmark.check_ratio((224, 224), 2.0)
    with pytest.raises(UserError, match=r"224 x 224: 1.97 times the usual way, less than 2 times"):
        benchmark.check_ratio((224, 224), 1.97)


def test_whole_table(
    benchmark: ModuleType, source: RecordSource, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    with flagsaver.as_parsed(workers="0", batch_size="4", image_size="32", rounds="1", seconds="0.2"):
        assert benchmark.compare("generated", source, tokenizer) > 0
    printed = capsys.readouterr().out
    for label in ("generated: ", "usual way, float32 normalised", *benchmark.OUR_STAGES, "between processes"):
        assert label in printed


def test_without_torch(
    benchmark: ModuleType, source: RecordSource, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "torch", None)
    usual_batches = importlib.import_module("usual_loader").usual_batches
    with pytest.raises(UserError, match="needs torch, which is not installed; pip install -e"):
        usual_batches(source, tokenizer, image_size=32, batch_size=4, workers=0, normalised=False)
