"""benchmarks/ask.py: it times what was compiled before, and says how many of a batch that makes."""

import dataclasses

import pytest
from programs import loaded_benchmark
from random_models import random_model

from r2d2_jax.config.reading import Config
from r2d2_jax.launch.configuration import read_configuration


def test_rates_of_a_tiny_model() -> None:
    with loaded_benchmark("ask") as module:
        found = module.rates(random_model().config, batch_size=2, repeats=1)
    assert set(found) == {"images", "texts", "pairs"}
    assert all(rate > 0 for rate in found.values())


def test_the_first_call_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded_benchmark("asking") as module:
        now = [0.0]
        costs = iter([100.0, 3.0, 1.0, 2.0])
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

        def work() -> None:
            now[0] += next(costs)

        assert module.median(work, 3) == 2.0


def test_the_published_sizes() -> None:
    with loaded_benchmark("asking") as module:
        assert module.SIZES == ("vitb", "vitl")
        for name, config in (("vitb", "vitb_2m"), ("vitl", "vitl_250m")):
            found, trained = (
                module.published_sizes(name, "float32"),
                Config.from_config_dict(read_configuration(config)),
            )
            assert dataclasses.replace(found, dtype=trained.model.dtype, remat=trained.model.remat) == trained.model
