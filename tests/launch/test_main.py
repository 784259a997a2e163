"""launch/main.py runs again and again, and refuses what it cannot run: exit status 2, one message, no traceback."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from programs import called
from small_model import CHEAPEST, config_values, write_small_dataset
from small_runs import before_batch

from r2d2_jax.launch.main import _keep_compiled, main

ROOT = Path(__file__).resolve().parents[2]
WRONG_CONFIG = """
import runpy
def get_config():
    config = runpy.run_path("configs/demo.py")["get_config"]()
    config.loss.queue_lenght = 512
    config.train = {**config.train, "batch_size": "64"}
    return config
"""
NO_VOCABULARY = """
import runpy
def get_config():
    config = runpy.run_path("configs/demo.py")["get_config"]()
    config.data.directory, config.data.vocabulary = "{folder}", "{folder}/none/vocab.txt"
    return config
"""
# case -> flags, what the message must say
REFUSED = {
    "unknown key and wrong type": (
        ["--config={folder}/wrong.py"],
        [
            "the configuration has 2 problem(s); correct them in the config file or with --config.KEY=VALUE",
            "unknown key loss.queue_lenght; known here: contrastive, fgr, ",
            "train.batch_size is '64' of type str; expected int",
        ],
    ),
    "queue shorter than the batch": (
        ["--config=configs/demo.py", "--config.loss.queue_length=32"],
        [
            "the configuration has 1 problem(s)",
            "loss.queue_length 32 is shorter than the global train.batch_size 64; a whole batch must fit into the",
        ],
    ),
    "batch that the mesh does not divide": (
        ["--config=configs/demo.py", "--cpu_devices=8", "--config.train.batch_size=12"],
        ["train.batch_size 12 is not a multiple of the mesh's 8 devices; the nearest that is: 16"],
    ),
    "no data": (
        ["--config=configs/demo.py", "--config.data.directory={folder}/no"],
        ["data folder {folder}/no does not exist; expected NAME/1.0.0/dataset_info.json in it. Make it with"],
    ),
    "no vocabulary": (
        ["--config={folder}/no_vocabulary.py"],
        ["vocabulary {folder}/none/vocab.txt does not exist; expected a WordPiece vocab.txt with one token a line"],
    ),
    "a workdir in a bucket of another kind": (
        ["--config=configs/demo.py", "--workdir=s3://bucket/run"],
        ["s3://bucket/run is an address of s3://, which cannot be opened; expected a local or mounted folder, or gs:"],
    ),
    "a process without a place to meet": (
        ["--config=configs/demo.py", "--process_id=1"],
        ["--num_processes or --process_id is given without the place to meet; add --coordinator_address=HOST:PORT"],
    ),
    "a place to meet without a number": (
        ["--config=configs/demo.py", "--coordinator_address=127.0.0.1:1", "--num_processes=2"],
        ["cannot join the other processes: The process id of the current process must be defined. Give --coord"],
    ),
    "unknown key in a flag": (["--config=configs/demo.py", "--config.loss.queue_lenght=3"], ["queue_lenght"]),
    "wrong type in a flag": (["--config=configs/demo.py", "--config.train.batch_size=many"], ["batch_size", "many"]),
    "a variant that a built-in configuration lacks": (["--config=vitb_2m:without_mlm"], ["no variant 'without_mlm'"]),
    "an unknown flag": (["--config=demo", "--confg.train.seed=3"], ["unknown flag --confg.train.seed=3; --help lists"]),
    "a stray argument": (["--config=demo", "demo"], ["unknown argument 'demo'; every setting is a flag, like --NAME"]),
    "a key that the config file leaves at its default, and a queue that is too short": (
        ["--config=configs/demo.py", "--config.train.seed=3", "--config.loss.queue_length=32"],
        ["the configuration has 1 problem(s)", "loss.queue_length 32 is shorter"],
    ),
}


# What only a process that has not used JAX yet can refuse, in an order that keeps it so.
OF_A_FRESH_PROCESS = ("a place to meet without a number", "batch that the mesh does not divide")
CALL_EACH = """
import json, sys
from programs import called
from r2d2_jax.launch.main import main
for done in (called(main, *flags) for flags in json.loads(sys.argv[1])):
    print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""


def as_a_program(*flags: str, shell: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*shell, sys.executable, "launch/main.py", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=300, capture_output=True, text=True)


def write_small_run(folder: Path) -> Path:
    """A dataset and the configuration of four steps on it."""
    write_small_dataset(folder, train=16)
    values = config_values(CHEAPEST, {"data": {"directory": str(folder), "validation_split": ""}})
    values["train"] |= {"epochs": 2.0, "checkpoint_every": 1}
    config = folder / "config.py"
    config.write_text(f"from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({values!r})\n")
    return config


def test_processes_that_decode_do_not_import_the_loop() -> None:
    """They import the program under the name that multiprocessing gives it."""
    program = """
import runpy, sys
runpy.run_path("launch/main.py", run_name="__mp_main__")
print(sorted({"torch", "flax", "r2d2_jax.config.reading", "r2d2_jax.train.loop"} & set(sys.modules)))
"""
    command, environment = [sys.executable, "-c", program], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "['r2d2_jax.config.reading']", done.stderr


def test_a_run_that_is_stopped_says_so_by_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher must not take it for a finished one."""
    flags = (f"--config={write_small_run(tmp_path)}", f"--workdir={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 2 else None)
        stopped = called(main, *flags)
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert "stopped by SIGTERM after step 2; run the same command again to resume" in stopped.stderr
    assert called(main, *flags).returncode == 0


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    """No file may become longer than 20 kB. The libraries' own reports of it do not bury ours.

    The compilations that the tests share stay out of it: the limit would cut them short.
    """
    config = write_small_run(tmp_path)
    limited = ("bash", "-c", 'ulimit -f 20; unset JAX_COMPILATION_CACHE_DIR; exec "$@"', "bash")
    done = as_a_program(f"--config={config}", f"--workdir={tmp_path / 'run'}", shell=limited)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) < 20
    folder = tmp_path / "run" / "checkpoints"
    assert done.stderr.splitlines()[-1] == (
        f"error: cannot write a checkpoint to {folder}: File too large; there is no checkpoint yet; make room or mend "
        "the folder, then run the same command again to resume"
    )


def test_called_again_it_forgets_the_flags_of_before(tmp_path: Path) -> None:
    config = write_small_run(tmp_path)
    flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    shorter = called(main, *flags, "--config.train.epochs=1.0")
    assert shorter.returncode == 0, shorter.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert_says_what_it_does(shorter)
    longer = called(main, *flags)
    assert (longer.returncode, longer.stdout) == (2, "")
    assert "train.epochs" in longer.stderr  # which a run that goes on may not change


def assert_says_what_it_does(done: subprocess.CompletedProcess[str]) -> None:
    """Before every silence a line; nothing of other libraries; no head of a table where nothing was evaluated."""
    said = (
        "loading libraries",
        "making the initial weights",
        "initial weights: ",
        "starting; ",
        "compiling the train step: seconds",
        "compiled in ",
        "step 2/2 ",
        "drawing the pictures of the run",
        "writing the report of the run",
    )
    lines = done.stderr.splitlines()
    assert len(lines) == len(said), done.stderr
    assert all(line.startswith(begin) for line, begin in zip(lines, said, strict=True)), done.stderr
    assert re.fullmatch(
        r"Step 2, 0 unusable records. Checkpoints and logs: .*run\nPictures: .*run/plots\nReport: .*run/report.html\n",
        done.stdout,
    ), done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations that are wrong, and a dataset with a vocabulary."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "wrong.py").write_text(WRONG_CONFIG, encoding="utf-8")
    (folder / "no_vocabulary.py").write_text(NO_VOCABULARY.format(folder=folder), encoding="utf-8")
    write_small_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def in_a_fresh_process(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """What each case of `OF_A_FRESH_PROCESS` gives, all of them in one process."""
    every = [flags_of(case, folder) for case in OF_A_FRESH_PROCESS]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CALL_EACH, json.dumps(every)]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {
        case: subprocess.CompletedProcess(flags, *line)
        for case, flags, line in zip(OF_A_FRESH_PROCESS, every, lines, strict=True)
    }


def flags_of(case: str, folder: Path) -> list[str]:
    flags, _ = REFUSED[case]
    return [f"--workdir={folder / 'run'}", *(flag.format(folder=folder) for flag in flags)]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(
    case: str,
    folder: Path,
    in_a_fresh_process: dict[str, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    done = in_a_fresh_process.get(case) or called(main, *flags_of(case, folder))
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, done.stderr
    assert all(text.format(folder=folder) in done.stderr for text in REFUSED[case][1]), done.stderr
    assert done.stderr.count("error:") == 1
    assert done.stdout == ""
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    "backend, chosen, kept", [("tpu", None, "run/compiled"), ("gpu", "mine", "mine"), ("cpu", None, None)]
)
def test_what_is_compiled_for_accelerators_is_kept_with_the_run(
    backend: str, chosen: str | None, kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    try:
        jax.config.update("jax_compilation_cache_dir", chosen)
        _keep_compiled(Path("run"))
        assert jax.config.jax_compilation_cache_dir == kept
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
