"""Windows of steps, and a log that is rewound to where a run goes on."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.train.metrics import MetricsLog, Window


def test_window_is_the_mean_since_the_last_one() -> None:
    window = Window()
    for loss in (1.0, 2.0, 6.0):
        window.add({"loss": jnp.float32(loss), "fgr": jnp.float32(loss / 2)})
        window.wait(2)
    assert window.means() == {"loss": 3.0, "fgr": 1.5}
    assert window.means() == {}
    window.add({"loss": jnp.float32(4.0)})
    assert window.means() == {"loss": 4.0}


def test_an_open_window_survives_json_exactly() -> None:
    losses = [0.1, 1 / 3, 2e-9]
    window = Window()
    for loss in losses[:2]:
        window.add({"loss": jnp.float32(loss)})
    resumed = Window(json.loads(json.dumps(window.fetched())))
    for one in (window, resumed):
        one.add({"loss": jnp.float32(losses[2])})
    assert window.means() == resumed.means()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_first_not_finite_counts_back_from_the_newest(bad: float) -> None:
    window = Window()
    assert window.first_not_finite() is None
    for loss, norm in ((1.0, 1.0), (2.0, 1.0), (3.0, bad), (bad, bad), (4.0, 1.0)):
        window.add({"loss": jnp.float32(loss), "fgr": jnp.float32(0.5), "gradient_norm": jnp.float32(norm)})
    assert window.first_not_finite() == (3, ["gradient_norm"])


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir: Path, first_step: int, steps: range, mark: float) -> None:
    log = MetricsLog(workdir, first_step, active=True)
    for step in steps:
        log.write(step, {"loss": mark})
    log.close()


def test_log_goes_on_behind_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "run", 0, range(1, 7), 1.0)
    write(tmp_path / "run", 4, range(5, 9), 2.0)
    assert lines(tmp_path / "run") == [{"step": step, "loss": 1.0 if step <= 4 else 2.0} for step in range(1, 9)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_figures_of_the_test_split_are_measured_again(tmp_path: Path) -> None:
    """Those of before may be of another split than the run that is started again names."""
    write(tmp_path, 0, range(1, 4), 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "validation/dual/mean": 2}\n{"step": 3, "test/dual/mean": 1}\n')
    write(tmp_path, 3, range(0), 2.0)
    assert "validation/dual/mean" in lines(tmp_path)[-1]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4), 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    write(tmp_path, 3, range(4, 5), 2.0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage, count",
    [
        (b"\0" * 40, 1),
        (b"\0" * 40 + b"\n", 1),
        (b"\xff\xfe{}\n", 1),
        (b"\n\n", 2),
        (b"[1, 2]\n", 1),
        (b"{}\n", 1),
        (b'{"step": "4"}\n', 1),
        (b'{"step": 4, "loss"\n{"step": 5', 2),
        (b"[" * 100_000 + b"\n", 1),
    ],
)
def test_damaged_lines_are_dropped_and_counted(
    damage: bytes, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that loses power leaves zeros or half lines; a log never stops a run."""
    write(tmp_path, 0, range(1, 4), 1.0)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    write(tmp_path, 3, range(4, 5), 2.0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert f"{tmp_path}/metrics.jsonl: damaged lines that are dropped: {count}" in caplog.text


def test_a_log_in_good_order_is_not_remarked_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 0, range(1, 4), 1.0)
    write(tmp_path, 3, range(4, 5), 2.0)
    (tmp_path / "metrics.jsonl").write_text("")
    write(tmp_path, 4, range(5, 6), 2.0)
    assert [line["step"] for line in lines(tmp_path)] == [5]
    (tmp_path / "metrics.jsonl").unlink()
    write(tmp_path, 5, range(6, 7), 2.0)
    assert [line["step"] for line in lines(tmp_path)] == [6]
    assert not caplog.text


def test_a_log_that_cannot_be_read_is_renamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    write(tmp_path, 3, range(4, 6), 2.0)
    assert [line["step"] for line in lines(tmp_path)] == [4, 5]
    assert "metrics.jsonl cannot be read: [Errno 21] Is a directory" in caplog.text
    assert len(list(tmp_path.glob("metrics.jsonl.damaged-*"))) == 1


def test_a_log_that_nobody_may_write_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4), 1.0)
    (tmp_path / "metrics.jsonl").chmod(0o444)
    write(tmp_path, 3, range(4, 5), 2.0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert (tmp_path / "metrics.jsonl").stat().st_mode & 0o200


def test_damaged_tensorboard_files_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "run", 0, range(1, 4), 1.0)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    events.write_bytes(b"\0" * 100)
    write(tmp_path / "run", 3, range(4, 5), 2.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tensorboard").touch()
    write(tmp_path / "other", 0, range(1, 3), 1.0)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(tmp_path / "other")] == [1, 2]
    assert "there will be no TensorBoard files: [Errno 20] Not a directory" in caplog.text


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, active=True)
    log.write(1, {"loss": math.nan, "norm": math.inf, "fgr": 0.5})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss": null, "norm": null, "fgr": 0.5}\n'


def test_a_disk_that_takes_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log is needed to go on, the TensorBoard files are not."""
    log = MetricsLog(tmp_path, 0, active=True)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*/metrics.jsonl: .*No space left.*; make room or mend the fol"):
        log.write(1, {"loss": 1.0})

    def close() -> None:
        raise OSError(28, "No space left on device")

    original, log._board.close = log._board.close, close
    log.close()
    assert "the TensorBoard files are not complete: [Errno 28] No space left on device" in caplog.text
    original()


def test_tensorboard_file(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4), 1.0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()


def test_only_one_process_writes(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run", 0, active=False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not (tmp_path / "run").exists()
