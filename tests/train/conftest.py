"""The tiny prepared dataset that runs are tested on."""

from pathlib import Path

import pytest
from small_model import write_small_dataset


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training records, 10 for validation, 4 with a foil, and a vocabulary."""
    return write_small_dataset(tmp_path_factory.mktemp("prepared"), train=32)
