"""Runs on several corpora: what they say, that they go on exactly though the data has moved, and what is refused."""

import logging
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from raw_data import serialized, write_raw
from small_model import CHEAPEST, RETRIEVAL, assert_bitwise_equal, log_lines, saved_state, small_config

from r2d2_jax.data.train_batches import text_id_hash
from r2d2_jax.errors import UserError
from r2d2_jax.runs import config_differences
from r2d2_jax.tasks import build_task
from r2d2_jax.train import loop
from r2d2_jax.train.loop import RunOutcome, train
from r2d2_jax.train.setup import build_batches, build_parts


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of 20 and 12 records, the second with a broken one; texts of the first have three identities."""
    folder = tmp_path_factory.mktemp("corpora")
    shared = [serialized(number, text_ids=[b"q%d" % (number % 3)]) for number in range(20)]
    write_raw(folder / "large", {"train": [shared]}, text_ids=True)
    broken = [serialized(4, image=b"nothing"), *map(serialized, range(11))]
    write_raw(folder / "small", {"train": [broken[3:], broken[:3]]})
    return folder


def run(prepared: Path, corpora: Path, workdir: Path, *changes: Mapping[str, Any]) -> RunOutcome:
    """Two epochs of 32 rows in batches of 8, 24 of them from the large corpus; evaluated on `prepared`.

    With target-guided distillation, so that the queue keeps identities of texts.
    """
    data = {
        "directory": str(prepared),
        "corpora": (str(corpora / "large"), str(corpora / "small")),
        "corpus_weights": (3.0, 1.0),
        "max_broken_share": 0.2,
    }
    settings = {"epochs": 2.0, "log_every": 4, "evaluate_every": 4}
    terms = {"contrastive": "tgd", "text_ids": True}
    return train(small_config(CHEAPEST, {"data": data, "train": settings, "loss": terms}, *changes), workdir)


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert run(prepared, corpora, workdir).finished
    return workdir


def test_how_often_each_corpus_is_seen_is_said(
    prepared: Path, corpora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(prepared, corpora, tmp_path)
    assert f"corpus {corpora}/large: 20 records, 75 % of the rows, each record seen 2.4 times in the run" in caplog.text
    assert f"corpus {corpora}/small: 12 records, 25 % of the rows, each record seen 1.33 times in" in caplog.text
    assert f"next one takes its place: {corpora}/small:train-00001-of-00002#0: not an image: 7 bytes" in caplog.text


def test_a_stopped_run_goes_on_exactly_though_its_corpora_moved(
    prepared: Path, corpora: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken records and epochs included."""
    calls = iter(range(100))
    original = loop.next_batch

    def next_batch(batches: Any, progress: Any) -> Any:
        if next(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(batches, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "next_batch", next_batch)
        assert run(prepared, corpora, tmp_path / "run").step == 5
    shutil.copytree(corpora, tmp_path / "moved")
    assert run(prepared, tmp_path / "moved", tmp_path / "run").finished
    assert_bitwise_equal(saved_state(tmp_path / "run"), saved_state(undisturbed))
    assert log_lines(tmp_path / "run") == log_lines(undisturbed)
    training = [line for line in log_lines(undisturbed) if "loss" in line]
    assert [line["epoch"] for line in training] == [1.0, 2.0]
    assert training[-1]["broken_records"] > 0


def test_the_queue_keeps_identities_of_texts(undisturbed: Path) -> None:
    """Three of the large corpus, and zeros for the small one, which has none."""
    kept = {tuple(row) for row in saved_state(undisturbed)["memory/queue/text_id"].tolist()}
    assert kept == {(0, 0), *(tuple(text_id_hash(f"0:q{number}").tolist()) for number in range(3))}


def test_a_run_begun_without_identities_of_texts_goes_on_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the data offers is said once; on data without there is nothing to turn on."""
    assert build_task(small_config(), text_ids=True).reads_text_ids is False
    assert caplog.text.count("the training data says which texts several images share (text_ids), but loss.") == 1
    with pytest.raises(UserError, match=r"loss.text_ids is on, but none of the training data has text_ids; set it"):
        build_task(small_config({"loss": {"text_ids": True}}), text_ids=False)
    saved = small_config().to_dict()
    del saved["loss"]["text_ids"]  # a checkpoint of version 0.2
    assert list(config_differences(saved, small_config().to_dict())) == []
    asked = small_config({"loss": {"text_ids": True}}).to_dict()
    assert list(config_differences(saved, asked)) == ["loss.text_ids: false in the checkpoint, true now"]


def test_fine_tuning_reads_identities_of_texts_wherever_there_are_any(prepared: Path, corpora: Path) -> None:
    for names, reads in ((("small", "large"), True), (("small",), False)):
        data = {"directory": str(prepared), "corpora": tuple(str(corpora / name) for name in names)}
        config = small_config(RETRIEVAL, {"data": data | {"validation_split": ""}})
        parts = build_parts(config)
        batches = build_batches(config, parts, 0, lambda lost: None)
        assert parts.task.reads_text_ids is reads
        assert ("text_id" in next(batches)) is reads
        batches.close()


def test_another_mixture_is_refused(prepared: Path, corpora: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Only looked at, so the undisturbed run can be used itself."""
    with pytest.raises(UserError, match=r"data.corpus_weights: \[3.0, 1.0\] in the checkpoint, \[1.0, 1.0\] now"):
        run(prepared, corpora, undisturbed, {"data": {"corpus_weights": (1.0, 1.0)}})
    shutil.copytree(corpora / "large", tmp_path / "large")
    write_raw(tmp_path / "small", {"train": [map(serialized, range(11))]})
    with pytest.raises(UserError) as refused:
        run(prepared, tmp_path, undisturbed)
    assert str(refused.value) == (
        f"the checkpoint was made with 20 + 12 training records, {tmp_path}/large, {tmp_path}/small has 20 + 11; the "
        "data position would be lost: use the same data, or an empty --workdir"
    )
    swapped = (str(corpora / "small"), str(corpora / "large"))
    with pytest.raises(UserError, match=r"made with 20 \+ 12 training records, .* has 12 \+ 20; the data position"):
        run(prepared, corpora, undisturbed, {"data": {"corpora": swapped}})


def test_a_corpus_that_is_not_there(prepared: Path, corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data folder {tmp_path}/large does not exist"):
        run(prepared, tmp_path, tmp_path / "run")
