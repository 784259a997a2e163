"""Which checkpoints are kept, what is restored, and what is refused."""

import json
import resource
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from small_model import assert_bitwise_equal, named_leaves, small_config
from small_states import CONFIG, abstract, saved, state_of, with_memory

from r2d2_jax import runs
from r2d2_jax.config.run import TrainConfig
from r2d2_jax.errors import UserError
from r2d2_jax.runs import load_state
from r2d2_jax.train.checkpoint import Checkpoints


@pytest.mark.parametrize(
    "keep, kept",
    [
        (dict(keep_last=2, keep_best=1), [2, 5, 6]),
        (dict(keep_last=1, keep_best=2), [2, 4, 6]),
        (dict(keep_last=1, keep_best=0), [6]),
        (dict(keep_last=9, keep_best=1), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_and_the_best_are_kept(tmp_path: Path, keep: dict[str, int], kept: list[int]) -> None:
    checkpoints = saved(tmp_path, {1: 20.0, 2: 90.0, 3: None, 4: 30.0, 5: None, 6: 10.0}, **keep)
    assert checkpoints.steps() == kept
    assert checkpoints.latest_step() == 6
    checkpoints.close()


def test_the_best_is_kept_when_the_run_goes_on(tmp_path: Path) -> None:
    saved(tmp_path, {1: 90.0, 2: None}, keep_last=1, keep_best=1).close()
    again = saved(tmp_path, {3: 50.0, 4: None}, keep_last=1, keep_best=1)
    assert again.steps() == [1, 4]
    again.close()


@pytest.mark.parametrize("compared_by, kept", [("dual", [1, 4]), ("reranked", [3, 4])])
def test_the_best_are_compared_by_one_quantity(tmp_path: Path, compared_by: str, kept: list[int]) -> None:
    """Re-ranking lifts every recall: a checkpoint must not win only because it was re-ranked."""
    checkpoints = Checkpoints(tmp_path, TrainConfig(batch_size=8, epochs=1.0, keep_last=1, keep_best=1), compared_by)
    recalls = [{"dual": 40.0}, {"dual": 30.0}, {"dual": 35.0, "reranked": 70.0}, {"dual": 20.0, "reranked": 60.0}]
    for step, means in enumerate(recalls, start=1):
        checkpoints.save(state_of(step), CONFIG, {"pairs": step}, means)
    checkpoints.wait()
    assert checkpoints.steps() == kept
    checkpoints.close()


def test_scores_that_are_measured_otherwise_from_here_on_are_remarked_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, {1: 20.0})
    for evaluation, warned in (({"rerank_candidates": 2}, True), ({"rerank_candidates": 0}, False), ({}, False)):
        caplog.clear()
        checkpoints.restore(abstract(state_of(1)), small_config({"evaluation": evaluation}))
        assert ("rerank_candidates: 4 in the checkpoint, 2 now" in caplog.text) is warned
    checkpoints.close()


def test_without_validation_only_the_last_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, dict.fromkeys(range(1, 6)), keep_last=2, keep_best=1)
    assert checkpoints.steps() == [4, 5]
    checkpoints.close()


def test_the_newest_is_restored_bit_by_bit(tmp_path: Path) -> None:
    saved(tmp_path, {3: None, 7: 1.0}, keep_last=2).close()
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    state, progress = checkpoints.restore(abstract(state_of(0)), CONFIG)
    checkpoints.close()
    assert progress == {"pairs": 7}
    assert jax.tree.structure(state) == jax.tree.structure(state_of(7))
    assert_bitwise_equal(named_leaves(state), named_leaves(state_of(7)))


def test_params_alone(tmp_path: Path) -> None:
    saved(tmp_path, {3: None, 7: 1.0}, keep_last=2).close()
    state, config, _ = load_state(tmp_path)
    assert_bitwise_equal(named_leaves(state["params"]), named_leaves(state_of(7).params))
    assert config == CONFIG.to_dict()


@pytest.mark.parametrize("make", [False, True])
def test_no_state_without_a_checkpoint(tmp_path: Path, make: bool) -> None:
    if make:
        saved(tmp_path / "run", {}).close()
    with pytest.raises(UserError, match=r"no checkpoint under .*run/checkpoints; expected the --workdir of a run"):
        load_state(tmp_path / "run")


def test_what_the_run_changes_while_a_checkpoint_is_written_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is held back until the run has changed its progress."""
    changed = threading.Event()
    real_dumps = json.dumps

    def dumps(value: Any, *arguments: Any, **options: Any) -> str:
        changed.wait(10)
        return real_dumps(value, *arguments, **options)

    monkeypatch.setattr(json, "dumps", dumps)
    checkpoints, progress = Checkpoints(tmp_path, CONFIG.train), {"window": [{"loss": 1.0}]}
    checkpoints.save(state_of(3), CONFIG, progress)
    progress["window"].append({"loss": jnp.ones(())})  # type: ignore[dict-item]
    changed.set()
    checkpoints.wait()
    assert checkpoints.restore(abstract(state_of(3)), CONFIG)[1] == {"window": [{"loss": 1.0}]}


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    """No file may become longer than 300 kB, and the arrays take more than that; said once, not again when closing."""
    checkpoints = saved(tmp_path, {3: None})
    large = with_memory(state_of(4), feature_mean=jax.random.normal(jax.random.key(0), (200_000,)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        checkpoints.save(large, CONFIG, {"pairs": 4})
        with pytest.raises(UserError) as stopped:
            checkpoints.wait()
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = f"{tmp_path}/checkpoints"
    assert str(stopped.value) == (
        f"cannot write a checkpoint to {folder}: File too large; the last good checkpoint is step 3 in {folder}; make "
        "room or mend the folder, then run the same command again to resume"
    )


def test_a_workdir_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"cannot use .*/run/checkpoints: .*; choose another --workdir"):
        Checkpoints(tmp_path / "run", CONFIG.train)


def test_another_configuration_is_refused_with_every_key(tmp_path: Path) -> None:
    saved(tmp_path, {3: None}).close()
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    other = small_config({"optimizer": {"learning_rate": 2e-3}, "loss": {"fgd": False}, "train": {"seed": 4}})
    with pytest.raises(UserError) as refused:
        checkpoints.restore(abstract(state_of(0)), other)
    checkpoints.close()
    message = str(refused.value)
    assert f"{tmp_path}/checkpoints/3 is of another model or configuration; start in an empty --workdir" in message
    listed = [line.strip() for line in message.splitlines()[1:]]
    assert listed == [
        "- loss.fgd: true in the checkpoint, false now",
        "- optimizer.learning_rate: 0.001 in the checkpoint, 0.002 now",
        "- train.seed: 0 in the checkpoint, 4 now",
    ]


def test_a_checkpoint_older_than_a_key_resumes_with_what_was_done_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if there had once been no keys for whole words and punctuation, when tokens were masked and marks mapped."""
    then = {"loss.whole_word_masking": False, "data.map_punctuation": True}
    before = CONFIG.to_dict()
    for key in then:
        block, name = key.split(".")
        del before[block][name]
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    checkpoints.save(state_of(3), SimpleNamespace(to_dict=lambda: before), {})  # type: ignore[arg-type]
    checkpoints.wait()
    monkeypatch.setattr(runs, "BEFORE_THE_KEY", then)
    assert int(checkpoints.restore(abstract(state_of(0)), CONFIG)[0].step) == 3
    other = small_config({"loss": {"whole_word_masking": True}, "data": {"map_punctuation": False}})
    with pytest.raises(UserError) as refused:
        checkpoints.restore(abstract(state_of(0)), other)
    checkpoints.close()
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "- data.map_punctuation: true in the checkpoint, false now",
        "- loss.whole_word_masking: false in the checkpoint, true now",
    ]


def test_a_checkpoint_with_the_former_keys_of_rematerialisation_resumes(tmp_path: Path) -> None:
    before = CONFIG.to_dict()
    before["model"] |= {"remat": True, "remat_keeps": "products"}
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    checkpoints.save(state_of(3), SimpleNamespace(to_dict=lambda: before), {})  # type: ignore[arg-type]
    checkpoints.wait()
    assert int(checkpoints.restore(abstract(state_of(0)), CONFIG)[0].step) == 3
    checkpoints.close()


def test_another_model_is_refused_with_every_leaf(tmp_path: Path) -> None:
    saved(tmp_path, {3: None}).close()
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    teacher = {"text_projection": {"bias": jnp.zeros(2, int)}}
    other = with_memory(state_of(0, width=4), feature_mean=None, teacher=teacher)
    with pytest.raises(UserError) as refused:
        checkpoints.restore(abstract(other), CONFIG)
    checkpoints.close()
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "- memory/feature_mean: float32[2] in the checkpoint, absent now",
        "- memory/teacher/text_projection/bias: float32[2] in the checkpoint, int32[2] now",
        "- memory/teacher/text_projection/kernel: float32[3, 2] in the checkpoint, absent now",
        "- opt_state/0/mu: float32[3, 2] in the checkpoint, float32[4, 2] now",
        "- params/text_projection/kernel: float32[3, 2] in the checkpoint, float32[4, 2] now",
    ]


@dataclass
class FormerState:
    """The train state of version 0.1."""

    step: jax.Array
    params: dict[str, Any]
    teacher: dict[str, Any] | None
    opt_state: Any


jax.tree_util.register_dataclass(FormerState, ["step", "params", "teacher", "opt_state"], [])


def test_a_checkpoint_of_the_former_layout_is_refused_by_all_readers(tmp_path: Path) -> None:
    now = state_of(3)
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    former = FormerState(now.step, now.params, now.memory.teacher, now.opt_state)
    checkpoints.save(former, CONFIG, {"pairs": 3})  # type: ignore[arg-type]
    checkpoints.wait()
    message = (
        rf"{tmp_path}/checkpoints/3 was written by version 0\.1 of r2d2_jax, which kept teacher, queue and feature "
        r"mean beside the parameters; resume it with that version, or convert its model with that version's "
        r"launch/convert\.py and name the result as initial\.model"
    )
    with pytest.raises(UserError, match=message):
        checkpoints.restore(abstract(now), CONFIG)
    checkpoints.close()
    with pytest.raises(UserError, match=message):
        load_state(tmp_path)


def test_what_only_moves_watches_or_keeps_a_run_may_change(tmp_path: Path) -> None:
    saved(tmp_path, {3: None}).close()
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    other = small_config(
        {
            "mesh": {"data": 4, "fsdp": 2},
            "evaluation": {"rerank_candidates": 0, "batch_size": 16},
            "data": {"directory": "elsewhere", "foil_split": "swapped", "workers": 3, "validation_images": 5},
            "model": {"remat": "all", "unroll": True},
            "train": {"log_every": 7, "checkpoint_every": 3, "evaluate_every": 9, "keep_last": 5, "keep_best": 0},
        }
    )
    state, _ = checkpoints.restore(abstract(state_of(0)), other)
    checkpoints.close()
    assert int(state.step) == 3


def test_a_checkpoint_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    saved(tmp_path, {3: None}).close()
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp-1").mkdir()
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp-1" / "state").mkdir()
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    assert checkpoints.steps() == [3]
    checkpoints.close()


def test_a_folder_that_was_renamed_is_refused(tmp_path: Path) -> None:
    """The run would save over the step that the folder really holds."""
    saved(tmp_path, {3: None}).close()
    folder = tmp_path / "checkpoints"
    (folder / "3").rename(folder / "99")
    checkpoints = Checkpoints(tmp_path, CONFIG.train)
    with pytest.raises(UserError) as refused:
        checkpoints.restore(abstract(state_of(0)), CONFIG)
    checkpoints.close()
    assert str(refused.value) == (
        f"the checkpoint {folder / '99'} holds the state of step 3, so its folder was renamed; rename it to 3, or "
        "remove it if there is one of that name"
    )
