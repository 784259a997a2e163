"""The tiny prepared dataset that runs are tested on, and executables that they share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_model import write_small_dataset


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training records, 10 for validation, 4 with a foil, and a vocabulary."""
    return write_small_dataset(tmp_path_factory.mktemp("prepared"), train=32)


@pytest.fixture(scope="module")
def compile_each_run_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of one configuration share their executables, over processes too."""
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
