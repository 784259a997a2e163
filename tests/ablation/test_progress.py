"""What is said of an ablation while its runs are at work."""

import logging
from pathlib import Path

import pytest

from r2d2_jax.ablation import progress
from r2d2_jax.ablation.progress import Progress
from r2d2_jax.ablation.runs import AblationRun


def test_between_two_runs_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    shown = Progress(3, 1)
    shown.show(1, [])
    assert caplog.messages == []
    shown.show(1, [AblationRun(tmp_path, "prd2", 0)])
    assert caplog.messages == ["prd2/seed_0 begins; 1 of 3 runs are done"]
    shown.close()
