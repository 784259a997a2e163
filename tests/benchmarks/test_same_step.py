"""benchmarks/same_step.py: what it compares, and where it fails."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from absl.testing import flagsaver
from programs import loaded_benchmark, write_config
from small_model import NO_CROSS, config_values

from r2d2_jax.errors import UserError


@pytest.fixture(scope="module")
def same_step() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("same_step") as module:
        yield module


def test_the_same_step_here_is_the_same_and_another_is_not(
    same_step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "step.npz"
    with flagsaver.flagsaver(config=str(write_config(tmp_path, config_values(NO_CROSS))), batch_size=4, steps_before=1):
        with flagsaver.flagsaver(write=str(kept)):
            same_step.main([])
        with flagsaver.flagsaver(compare=str(kept)):
            same_step.main([])
    lines = {text[:40].strip(): text.split()[-1] for text in capsys.readouterr().out.splitlines()[2:]}
    assert lines["loss"] == "0.0e+00"
    assert lines["change of params text_encoder"] == "0.0e+00"
    assert lines["change of memory queue image_embed"] == "0.0e+00"


def test_a_step_that_differs_fails(same_step: ModuleType) -> None:
    same_step.check({"loss": 9e-6, "change of opt_state mu": 9e-5, "change of params temperature": 0.5}, 1e-5)
    for name, difference in (("loss", 2e-5), ("change of opt_state mu", 2e-4), ("loss", float("nan"))):
        with pytest.raises(UserError, match=f"{name} differs by"):
            same_step.check({name: difference}, 1e-5)
