"""A small valid configuration as plain values, changes of it, and what is wrong with one."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError


def values() -> dict[str, Any]:
    """A small valid configuration."""
    return {
        "model": {
            "image": {"image_size": 32, "patch_size": 16, "width": 24, "layers": 2, "heads": 3, "mlp_width": 48},
            "text": {
                "vocabulary_size": 50,
                "text_length": 8,
                "width": 16,
                "layers": 2,
                "heads": 2,
                "mlp_width": 32,
                "max_positions": 12,
            },
            "cross": {"layers": 2, "width": 16, "heads": 2, "mlp_width": 32},
            "dtype": "float32",
        },
        "loss": {"queue_length": 16},
        "data": {"directory": "somewhere"},
        "optimizer": {"learning_rate": 1e-4},
        "train": {"batch_size": 8, "epochs": 2.0},
    }


def changed(**changes: Any) -> dict[str, Any]:
    """`values()` with some keys set; `model__text__heads=3` sets model.text.heads."""
    result = values()
    for path, value in changes.items():
        *blocks, name = path.split("__")
        block = result
        for part in blocks:
            block = block.setdefault(part, {})
        block[name] = value
    return result


def without(path: str) -> dict[str, Any]:
    result = values()
    *blocks, name = path.split(".")
    block = result
    for part in blocks:
        block = block[part]
    del block[name]
    return result


def read(config: dict[str, Any]) -> Config:
    return Config.from_config_dict(ConfigDict(config))


def problems(config: dict[str, Any]) -> list[str]:
    """What is wrong, one problem a line, from the message."""
    with pytest.raises(UserError) as error:
        read(config)
    head, *lines = str(error.value).splitlines()
    assert head == (
        f"the configuration has {len(lines)} problem(s); correct them in the config file or with --config.KEY=VALUE:"
    )
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines]
