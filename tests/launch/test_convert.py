"""launch/convert.py: both directions, runs, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import called, limited_files
from random_models import VOCABULARY, random_model
from small_model import named_leaves, random_state, small_config, small_plan

import r2d2_jax
from r2d2_jax.convert.conversion import TEACHER, Form, open_model, write_model
from r2d2_jax.convert.tensor_files import read_tensors
from r2d2_jax.errors import UserError
from r2d2_jax.launch.convert import main
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.state import TrainState

PROGRAM = Path(__file__).parents[2] / "launch" / "convert.py"


def convert(*arguments: str) -> subprocess.CompletedProcess[str]:
    return called(main, *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """A run with a checkpoint, whose teacher and optimizer have moved away from the student."""
    workdir = tmp_path_factory.mktemp("run")
    config = small_config()
    state = random_state(small_plan(config))
    checkpoints = Checkpoints(workdir, config.train)
    checkpoints.save(state, config, {})
    checkpoints.close()
    return workdir, state


def test_in_and_out(tmp_path: Path) -> None:
    write_model(random_model(), tmp_path / "in.pth")
    done = convert(f"--input={tmp_path / 'in.pth'}", f"--output={tmp_path / 'ours'}")
    assert done.returncode == 0, done.stderr
    assert "R2D2," in done.stdout
    done = convert(f"--input={tmp_path / 'ours'}", f"--output={tmp_path / 'out.safetensors'}")
    assert done.returncode == 0, done.stderr
    before, after = read_tensors(tmp_path / "in.pth"), read_tensors(tmp_path / "out.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_a_run_is_published_with_the_rest_beside_it(tmp_path: Path, run: tuple[Path, TrainState]) -> None:
    workdir, state = run
    rest = tmp_path / "rest.safetensors"
    done = convert(f"--input={workdir}", f"--output={tmp_path / 'out.pth'}", f"--rest={rest}")
    assert done.returncode == 0, done.stderr
    tensors = read_tensors(tmp_path / "out.pth")
    kernel = np.asarray(state.params["text_projection"]["kernel"])
    assert np.array_equal(tensors["text_proj.weight"], kernel.T)
    beside = read_tensors(rest)
    assert {name.split("/")[0] for name in beside} == {
        "params",
        "teacher",
        "opt_state",
        "queue",
        "feature_mean",
        "step",
    }
    assert {name.split("/")[1] for name in beside if name.startswith("params/")} == {"masked_lm_head"}
    assert np.array_equal(beside["teacher/text_projection/kernel"], state.memory.teacher["text_projection"]["kernel"])
    assert len(beside) + len(jax.tree.leaves(state.params)) == len(jax.tree.leaves(state)) + len(
        jax.tree.leaves(state.params["masked_lm_head"])
    )


def test_the_teachers_weights_stand_in_for_the_students(run: tuple[Path, TrainState]) -> None:
    workdir, state = run
    assert state.memory.teacher is not None
    student, teacher = open_model(workdir).params, open_model(workdir, weights=TEACHER).params
    for part in state.params:
        want = state.memory.teacher if part in state.memory.teacher else state.params
        got, expected = named_leaves({part: teacher[part]}), named_leaves({part: want[part]})
        assert all(np.array_equal(got[name], expected[name]) for name in expected)
    assert not np.array_equal(student["text_projection"]["kernel"], teacher["text_projection"]["kernel"])


def test_a_run_without_a_teacher_has_no_teachers_weights(tmp_path: Path) -> None:
    config = small_config({"loss": {"contrastive": "gcpr", "fgd": False}})
    checkpoints = Checkpoints(tmp_path, config.train)
    checkpoints.save(random_state(small_plan(config)), config, {})
    checkpoints.close()
    with pytest.raises(UserError, match="has no teacher; take the student's weights"):
        open_model(tmp_path, weights=TEACHER)


@pytest.mark.parametrize("mapped", [True, False])
def test_what_a_run_did_with_punctuation_goes_with_its_model(tmp_path: Path, mapped: bool) -> None:
    config = small_config({"data": {"map_punctuation": mapped}})
    checkpoints = Checkpoints(tmp_path / "run", config.train)
    checkpoints.save(random_state(small_plan(config)), config, {})
    checkpoints.close()
    (tmp_path / "run" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    model = open_model(tmp_path / "run")
    assert model.maps_punctuation is mapped
    for form in (Form.OURS, Form.TRANSFORMERS):
        write_model(model, tmp_path / form, form)
        assert open_model(tmp_path / form).maps_punctuation is model.maps_punctuation
    marks = r2d2_jax.load(tmp_path / "run").tokenizer(["…圆"])[0][0]
    unknown = 3 if mapped else 1  # mapped, an ellipsis is three full stops
    assert (marks == VOCABULARY.index("[UNK]")).sum() == unknown


def test_a_published_file_is_told_that_punctuation_was_mapped(tmp_path: Path) -> None:
    write_model(random_model(), tmp_path / "in.safetensors")
    assert not open_model(tmp_path / "in.safetensors").maps_punctuation
    done = convert(f"--input={tmp_path / 'in.safetensors'}", f"--output={tmp_path / 'ours'}", "--map_punctuation")
    assert done.returncode == 0, done.stderr
    assert open_model(tmp_path / "ours").maps_punctuation
    assert not open_model(tmp_path / "ours", map_punctuation=False).maps_punctuation


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pth", "absent.pth is no file; expected a checkpoint"),
        ("absent", "absent is no model; expected a published"),
    ],
)
def test_bad_input_ends_with_one_message_and_status_2(tmp_path: Path, name: str, message: str) -> None:
    done = convert(f"--input={tmp_path / name}", f"--output={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_absent_vocabulary_is_refused(tmp_path: Path) -> None:
    write_model(random_model(), tmp_path / "in.pth")
    with pytest.raises(UserError, match="vocabulary .*absent.txt does not exist"):
        open_model(tmp_path / "in.pth", vocabulary=tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("ours", "out"),
        ("published", "out.pth"),
        ("published", "out.safetensors"),
        ("transformers", "out"),
        ("onnx", "out"),
    ],
)
def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path, form: str, name: str) -> None:
    write_model(random_model(tokens=VOCABULARY), tmp_path / "in")
    with limited_files(25_000):
        done = convert(f"--input={tmp_path / 'in'}", f"--output={tmp_path / name}", f"--format={form}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: cannot write {tmp_path / name}: " in done.stderr
    assert "nothing was left there" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pytorch_is_not_needed_but_for_its_own_files(tmp_path: Path) -> None:
    write_model(random_model(tokens=VOCABULARY), tmp_path / "in.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    conversions = (
        ("in.safetensors", "ours", "ours"),
        ("ours", "hf", "transformers"),
        ("hf", "out.safetensors", "published"),
    )
    arguments = [
        [f"--input={source}", f"--output={target}", f"--format={form}", "--vocabulary=vocab.txt"]
        for source, target, form in conversions
    ]
    program = (
        "import runpy, sys; sys.modules['torch'] = None; "
        f"main = runpy.run_path({str(PROGRAM)!r})['main']; print([main(each) for each in {arguments}])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0]"], done.stderr
    before, after = read_tensors(tmp_path / "in.safetensors"), read_tensors(tmp_path / "out.safetensors")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    done = convert(f"--input={tmp_path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is nothing to do; expected --output, --verify or --rest" in done.stderr
