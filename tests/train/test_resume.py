"""Whole runs that are stopped, killed or refused: a disturbed run ends as an undisturbed one does."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_model import (
    CHEAPEST,
    DROPPED,
    RETRIEVAL,
    assert_bitwise_equal,
    config_values,
    log_lines,
    saved_state,
    small_config,
    write_small_dataset,
)
from small_runs import NO_EVALUATION, RUN, STEPS, Left, before_batch, kept, killed_before_batch, run

from r2d2_jax.convert.conversion import open_model
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.progress import before_each_batch
from r2d2_jax.train import loop, setup, signals
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.loop import RunOutcome

DROPPED_RETRIEVAL = RETRIEVAL | DROPPED


@pytest.fixture(scope="module")
def undisturbed_retrieval(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    workdir = tmp_path_factory.mktemp("runs") / "retrieval"
    return workdir, run(prepared, workdir, RUN, DROPPED_RETRIEVAL)


def assert_as_undisturbed(workdir: Path, undisturbed: Path) -> None:
    """Same final state, same log (but for speed), same evaluation, same checkpoints kept."""
    assert_bitwise_equal(saved_state(workdir), saved_state(undisturbed))
    assert log_lines(workdir) == log_lines(undisturbed)
    assert (workdir / "evaluation.json").read_text() == (undisturbed / "evaluation.json").read_text()
    assert kept(workdir) == kept(undisturbed)


# --- stopped, killed, started again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [6, 7])
def test_a_stopped_run_goes_on_exactly(
    step: int,
    prepared: Path,
    undisturbed: tuple[Path, RunOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the middle of a window of the log; after step 6 there is also an evaluation due."""
    with monkeypatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == step else None)
        outcome = run(prepared, tmp_path, RUN)
    assert (outcome.step, outcome.finished) == (step, False)
    assert kept(tmp_path)[-1] == step
    assert not (tmp_path / "evaluation.json").exists()
    assert run(prepared, tmp_path, RUN).finished
    assert_as_undisturbed(tmp_path, undisturbed[0])


@pytest.mark.parametrize("evaluation, step", [(1, 6), (3, STEPS)])
def test_a_run_stopped_during_an_evaluation_goes_on_exactly(
    evaluation: int,
    step: int,
    prepared: Path,
    undisturbed: tuple[Path, RunOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It saves without the figures, which the resumed run makes anew: also those of the last evaluation."""
    original, begun, seen = loop.Run._evaluate, [], []

    def evaluate(self: loop.Run, *, final: bool) -> Any:
        begun.append(final)
        return original(self, final=final)

    def stop() -> None:
        seen.append(len(begun))
        if seen.count(evaluation) == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, before_each_batch(stop):
        patch.setattr(loop.Run, "_evaluate", evaluate)
        outcome = run(prepared, tmp_path, RUN)
    assert seen.count(evaluation) == 2
    assert (outcome.step, outcome.finished, kept(tmp_path)[-1]) == (step, False, step)
    assert not any(line["step"] == step and "loss" not in line for line in log_lines(tmp_path))
    assert not (tmp_path / "evaluation.json").exists()
    assert run(prepared, tmp_path, RUN).finished
    assert_as_undisturbed(tmp_path, undisturbed[0])


@pytest.mark.parametrize("task, changes", [("undisturbed", {}), ("undisturbed_retrieval", DROPPED_RETRIEVAL)])
def test_a_killed_run_goes_on_exactly(
    task: str, changes: dict[str, Any], prepared: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """SIGKILL before step 10: what steps 7 to 9 did and logged is lost, and done again."""
    undisturbed: tuple[Path, RunOutcome] = request.getfixturevalue(task)
    values = config_values(RUN, changes, {"data": {"directory": str(prepared)}})
    killed_before_batch(10, values, tmp_path)
    assert [line["step"] for line in log_lines(tmp_path)] == [4, 6, 8]
    assert run(prepared, tmp_path, RUN, changes).finished
    assert_as_undisturbed(tmp_path, undisturbed[0])


def test_an_evaluation_is_logged_once(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped where one is due, killed after it was made up for and before the next checkpoint, and gone on with."""
    changes = (CHEAPEST, {"train": {"epochs": 1.0, "evaluate_every": 2}})
    with monkeypatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 2 else None)
        assert run(prepared, tmp_path, *changes).step == 2

    def die(call: int) -> None:
        if call == 2:
            raise Left

    with monkeypatch.context() as patch:
        before_batch(patch, die)
        with pytest.raises(Left):
            run(prepared, tmp_path, *changes)
    assert [line["step"] for line in log_lines(tmp_path)] == [2, 2]
    assert run(prepared, tmp_path, *changes).finished
    steps = [(line["step"], "loss" in line) for line in log_lines(tmp_path)]
    assert steps == [(2, True), (2, False), (4, True), (4, False)]


def test_a_finished_run_started_again_changes_nothing(
    prepared: Path, undisturbed: tuple[Path, RunOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "compile_train_step", lambda *_: pytest.fail("no step is to be made"))
    shutil.copytree(undisturbed[0], tmp_path / "run")
    outcome = run(prepared, tmp_path / "run", RUN)
    assert (outcome.step, outcome.finished) == (STEPS, True)
    assert_as_undisturbed(tmp_path / "run", undisturbed[0])


def test_a_stop_after_the_last_step_finishes(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_batch(monkeypatch, lambda call: signal.raise_signal(signal.SIGINT) if call == 4 else None)
    outcome = run(prepared, tmp_path, CHEAPEST, NO_EVALUATION, {"train": {"epochs": 1.0}})
    assert (outcome.step, outcome.finished) == (4, True)


# --- signals at either end of a run ---------------------------------------------------------------------------------


@pytest.fixture
def signal_while_closing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """SIGTERM comes while the last checkpoint may still be written; lists it if nobody of ours takes it."""
    original, unguarded = Checkpoints.close, []

    def close(checkpoints: Checkpoints) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(checkpoints)

    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(Checkpoints, "close", close)
    monkeypatch.setattr(signals.os, "_exit", leave)
    before = signal.signal(signal.SIGTERM, lambda number, frame: unguarded.append(number))
    yield unguarded
    signal.signal(signal.SIGTERM, before)


def test_a_first_signal_during_the_last_save_is_noted(
    prepared: Path, tmp_path: Path, signal_while_closing: list[int]
) -> None:
    outcome = run(prepared, tmp_path, CHEAPEST, NO_EVALUATION, {"train": {"epochs": 1.0}})
    assert (outcome.finished, outcome.asked_to_stop) == (True, True)
    assert signal_while_closing == []
    assert kept(tmp_path) == [4]


def test_a_second_signal_during_the_last_save_leaves_at_once(
    prepared: Path, tmp_path: Path, signal_while_closing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_batch(monkeypatch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 2 else None)
    with pytest.raises(Left, match="143"):
        run(prepared, tmp_path, CHEAPEST, NO_EVALUATION)
    assert signal_while_closing == []


def test_a_signal_before_the_first_step_leaves_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "keep_vocabulary", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    outcome = run(prepared, tmp_path, CHEAPEST, NO_EVALUATION)
    assert (outcome.step, outcome.finished, kept(tmp_path)) == (0, False, [])


# --- what a run goes on with ----------------------------------------------------------------------------------------


def test_another_configuration_or_dataset_is_refused(
    prepared: Path, undisturbed: tuple[Path, RunOutcome], tmp_path: Path
) -> None:
    workdir, before = tmp_path / "run", log_lines(undisturbed[0])
    shutil.copytree(undisturbed[0], workdir)
    with pytest.raises(UserError) as refused:
        run(prepared, workdir, RUN, {"loss": {"queue_length": 24}})
    assert "loss.queue_length: 20 in the checkpoint, 24 now" in str(refused.value)
    assert "queue/image_embed: float32[20, 16] in the checkpoint, float32[24, 16] now" in str(refused.value)
    fewer = write_small_dataset(tmp_path / "fewer", train=30)
    with pytest.raises(UserError, match="made with 32 training records, .* has 30; the data position would be lost"):
        run(fewer, workdir, RUN)
    assert log_lines(workdir) == before


def test_processes_that_see_different_checkpoints(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "gather_json", lambda step: [step, 40])
    said = r"is another one to each process: \[None, 40\]; --workdir must lie in a bucket or on a file"
    with pytest.raises(UserError, match=said):
        run(prepared, tmp_path, CHEAPEST, NO_EVALUATION)


def test_a_run_keeps_its_vocabulary_and_goes_on_with_no_other(prepared: Path, tmp_path: Path) -> None:
    """With a token on two lines the last of which has no embedding to spare, and bytes that a reader may lose."""
    vocabulary = (prepared / "vocab.txt").read_text(encoding="utf-8")
    *first, last, second_last = tokens = (*vocabulary.split(), "狗", "\u2028", "猫")
    odd = ("\ufeff" + "\r\n".join(tokens) + "\r\n\r\n").encode()
    (tmp_path / "odd.txt").write_bytes(odd)
    changes = (CHEAPEST, NO_EVALUATION, {"train": {"epochs": 0.5}, "data": {"vocabulary": str(tmp_path / "odd.txt")}})
    assert run(prepared, tmp_path, *changes).finished
    assert (tmp_path / "vocab.txt").read_bytes() == odd
    assert open_model(tmp_path).vocabulary == (*first, "", "猫")
    (tmp_path / "other.txt").write_text("\n".join([*first, second_last, last]) + "\n", encoding="utf-8")
    message = (
        r"the run was started with the vocabulary .*vocab.txt and data.vocabulary names another one, .*other.txt; go"
    )
    with pytest.raises(UserError, match=rf"{message}(.|\n)*line 31: '' there, '猫' here"):
        run(prepared, tmp_path, *changes, {"data": {"vocabulary": str(tmp_path / "other.txt")}})


def test_whole_words_are_masked_from_the_captions_on(prepared: Path, tmp_path: Path) -> None:
    """A run with them learns otherwise, goes on bitwise after a stop, and goes on with nothing else."""
    length = {"model": {"text": {"text_length": 12}}, "train": {"epochs": 1.0}}
    changes = (CHEAPEST, NO_EVALUATION, length, {"loss": {"whole_word_masking": True}})
    assert run(prepared, tmp_path / "whole", *changes).finished
    with pytest.MonkeyPatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 2 else None)
        assert not run(prepared, tmp_path / "stopped", *changes).finished
    tokens = {"loss": {"whole_word_masking": False}}
    with pytest.raises(UserError, match="loss.whole_word_masking: true in the checkpoint, false now"):
        run(prepared, tmp_path / "stopped", *changes, tokens)
    assert run(prepared, tmp_path / "stopped", *changes).finished
    assert_bitwise_equal(saved_state(tmp_path / "stopped"), saved_state(tmp_path / "whole"))
    run(prepared, tmp_path / "tokens", *changes, tokens)
    assert log_lines(tmp_path / "tokens") != log_lines(tmp_path / "whole")


def test_a_run_reads_punctuation_as_configured_and_goes_on_so(prepared: Path, tmp_path: Path) -> None:
    changes = (CHEAPEST, NO_EVALUATION, {"train": {"epochs": 0.5}})
    run(prepared, tmp_path, *changes, {"data": {"map_punctuation": False}})
    assert not open_model(tmp_path).maps_punctuation
    with pytest.raises(UserError, match="data.map_punctuation: false in the checkpoint, true now"):
        run(prepared, tmp_path, *changes)
    for mapped, unknown in ((True, 3), (False, 1)):
        config = small_config({"data": {"directory": str(prepared), "map_punctuation": mapped}})
        tokenizer = setup.build_tokenizer(config)
        assert (tokenizer(["…"])[0] == tokenizer.unk_id).sum() == unknown, "an ellipsis is three full stops"
