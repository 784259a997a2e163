"""benchmarks/where_time_goes.py: what it adds up, on a CPU and of a GPU's streams."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from programs import called, loaded_benchmark, write_config
from small_model import config_values

from r2d2_jax.planning.hlo import parse
from r2d2_jax.planning.work import operations


@pytest.fixture(scope="module")
def where_time_goes() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("where_time_goes") as module:
        yield module


def test_a_step_on_this_cpu(where_time_goes: ModuleType, tmp_path: Path) -> None:
    config_file, report_file = write_config(tmp_path, config_values()), tmp_path / "time.json"
    flags = f"--config={config_file}", "--pairs=8", "--steps=2", "--longest=3", f"--json={report_file}"
    ended = called(where_time_goes.main, *flags)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(report_file.read_text(encoding="utf-8"))["operations"]
    seconds = [each["seconds"] for each in found]
    assert seconds == sorted(seconds, reverse=True)
    kinds, parts = ({each[key] for each in found} for key in ("kind", "part"))
    assert kinds >= {where_time_goes.PRODUCTS, where_time_goes.REST}
    assert parts >= {"text_encoder, forward", "text_encoder, backward", "text_encoder, teacher"}
    assert parts >= {"text_image_encoder, backward", "masked_lm_head, forward"}
    lines = ended.stdout.splitlines()
    assert lines[1].split()[0] == f"{1e3 * sum(seconds):.1f}"
    assert len(lines) == lines.index(next(line for line in lines if line.startswith("the longest"))) + 1 + 3


def event(name: str, nanoseconds: float, **stats: str) -> Any:
    """What the profiler saw."""
    return SimpleNamespace(name=name, duration_ns=nanoseconds, stats=list(stats.items()))


def test_a_gpu_s_streams_and_what_no_program_names(
    where_time_goes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel is the operation that it names; one that names none is shown; the host's threads do not count."""
    compiled = jax.jit(lambda x, y: jnp.sin(x @ y)).lower(jnp.ones((64, 32)), jnp.ones((32, 16))).compile()
    program = parse(compiled.as_text() or "")
    (product,) = (each.name for each in operations(program) if each.products or each.exact_products)
    (sine,) = (each.name for each in operations(program) if each.name != product)
    stream = SimpleNamespace(
        name="Stream #16(Compute)",
        events=[event("nvjet_tst", 3e6, hlo_op=product), event(sine, 1e6), event("MemcpyD2H", 2e6)],
    )
    host = SimpleNamespace(name="tf_XLAEigen", events=[event(product, 9e9)])
    planes = [SimpleNamespace(name="/device:GPU:0", lines=[stream]), SimpleNamespace(name="/host:CPU", lines=[host])]
    measured: dict[str, float] = {}
    for name, seconds in where_time_goes.events(SimpleNamespace(planes=planes)):
        measured[name] = measured.get(name, 0.0) + seconds
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = {each.kind: each for each in where_time_goes.timed(program, measured, steps=2)}
    assert {kind: round(each.seconds, 9) for kind, each in found.items()} == {
        where_time_goes.PRODUCTS: 1.5e-3,
        where_time_goes.REST: 0.5e-3,
        where_time_goes.UNKNOWN: 1e-3,
    }
    assert found[where_time_goes.PRODUCTS].products == 64 * 32 * 16
