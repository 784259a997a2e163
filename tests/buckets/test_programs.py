"""Programs whose flags name files and folders in a bucket."""

import json
from pathlib import Path

import numpy as np
import pytest
from bucket_server import FORBIDS, BucketServer
from programs import called

from r2d2_jax import paths
from r2d2_jax.buckets.path import ROLES, BucketPath
from r2d2_jax.convert import conversion
from r2d2_jax.convert.conversion import open_model
from r2d2_jax.inference import load
from r2d2_jax.launch import convert, evaluate, main, plot, status
from r2d2_jax.paths import user_path
from r2d2_jax.trees import flat


def test_a_run_is_converted_there_and_back(finished: BucketPath, bucket: BucketPath, tmp_path: Path) -> None:
    """A folder of ours, a published file, and what of the run no published file has: all in the bucket."""
    done = called(convert.main, f"--input={finished}", f"--output={bucket / 'ours'}")
    assert done.returncode == 0, done.stderr
    done = called(
        convert.main, f"--input={bucket / 'ours'}", f"--output={bucket / 'r2d2.pth'}", f"--vocabulary={finished}"
    )
    assert done.returncode == 0, done.stderr
    done = called(convert.main, f"--input={bucket / 'r2d2.pth'}", f"--output={tmp_path / 'ours'}", "--image_heads=2",
                  "--text_heads=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    there, here = (dict(flat(open_model(path).params)) for path in (bucket / "ours", user_path(tmp_path / "ours")))
    assert here.keys() < there.keys()  # the published names have no masked-language-model head
    assert all(np.array_equal(there[name], here[name]) for name in here)
    again = called(convert.main, f"--input={finished}", f"--output={bucket / 'ours'}")
    assert again.stderr == f"error: {bucket}/ours exists already; choose another name or remove it first\n"


def test_a_model_is_loaded(finished: BucketPath) -> None:
    assert load(str(finished)).encode_text(["一只狗"]).embed.shape[0] == 1


def test_status_and_pictures(finished: BucketPath, bucket: BucketPath) -> None:
    done = called(status.main, str(finished))
    assert done.returncode == 0, done.stderr
    assert "16 of 16" in done.stdout
    done = called(plot.main, str(finished), f"--output={bucket / 'pictures'}")
    assert done.returncode == 0, done.stderr
    pictures = sorted((bucket / "pictures").iterdir())
    assert f"{bucket}/pictures/losses.png" in map(str, pictures)
    assert pictures[0].read_bytes().startswith(b"\x89PNG")


def test_an_evaluation(finished: BucketPath, prepared: Path, bucket: BucketPath) -> None:
    done = called(evaluate.main, f"--checkpoint={finished}", f"--data={prepared}", "--split=validation",
                  f"--json={bucket / 'figures.json'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((bucket / "figures.json").read_text())


def test_a_bucket_that_is_not_there(server: BucketServer, prepared: Path) -> None:
    done = called(
        main.main, "--config=demo", "--workdir=gs://no-such-bucket/run", f"--config.data.directory={prepared}"
    )
    assert done.returncode == 2
    assert "error: cannot use gs://no-such-bucket/run: 404 " in done.stderr
    assert done.stderr.endswith("; check the name of the bucket and the network\n")


@pytest.mark.parametrize("program", [plot.main, status.main])
def test_a_folder_that_is_not_there(bucket: BucketPath, program: object) -> None:
    done = called(program, str(bucket / "run"))  # type: ignore[arg-type]
    assert done.returncode == 2
    assert f"{bucket}/run" in done.stderr


def test_a_bucket_that_is_lost_in_the_middle(
    finished: BucketPath, server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message, and the exit status of a failure, after which a launcher tries again."""
    monkeypatch.setattr(conversion, "load_state", lambda *_: (finished / "vocab.txt").read_text())
    monkeypatch.setattr(paths, "check_access", lambda path: setattr(server, "fault", FORBIDS))
    done = called(convert.main, f"--input={finished}", "--verify")
    server.fault = None
    assert done.returncode == 1
    assert done.stderr.startswith("error: Forbidden: ")
    assert done.stderr.endswith(f"; give its account {' and '.join(ROLES)} of the bucket\n")
