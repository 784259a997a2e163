"""planning/devices.py: chips that are only described."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.planning import devices
from r2d2_jax.planning.devices import Topology

TPUS = [
    SimpleNamespace(platform="tpu", device_kind="TPU v5 lite", coords=(x, y, 0)) for x in range(2) for y in range(2)
]


def test_a_topology_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise RuntimeError("INVALID_ARGUMENT: no such thing\nand more")

    monkeypatch.setattr(devices.topologies, "get_topology_desc", nothing)
    said = "there is no topology --topology=v5e:3x7: INVALID_ARGUMENT: no such thing; name one like v5e:8x8"
    with pytest.raises(UserError, match=re.escape(said)):
        Topology("v5e:3x7").devices()


def test_libtpu_that_another_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words are to remove the other's lock."""

    def locked(*_: Any, **__: Any) -> None:
        raise RuntimeError('ABORTED: multi-process lockfile. Run "$ sudo rm /tmp/libtpu_lockfile".')

    monkeypatch.setattr(devices.topologies, "get_topology_desc", locked)
    with pytest.raises(UserError, match="another process of this machine uses libtpu, which one at a time may; wait"):
        Topology("v5e:2x2").devices()


@pytest.mark.parametrize(
    ("topology", "slices", "options"),
    [
        ("v5e:16x16", 1, {}),
        ("v5e:16x16", 4, {"num_slices": 4}),
        ("v4:2x2x1", 1, {"chip_config_name": "megacore"}),
    ],
)
def test_how_libtpu_is_asked(
    topology: str, slices: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a v4 a device is a whole chip, as JAX has it on a real one."""
    asked: dict[str, Any] = {}

    def described(name: str, platform: str, **given: Any) -> SimpleNamespace:
        asked.update(given)
        return SimpleNamespace(devices=TPUS)

    monkeypatch.setattr(devices.topologies, "get_topology_desc", described)
    assert Topology(topology, slices).devices() == TPUS
    assert asked == options


def test_a_topology_in_words_and_numbers() -> None:
    one, four = Topology("v4:2x2x4"), Topology("v5e:16x16", 4)
    assert (str(one), one.kind, one.axes, one.chips) == ("v4:2x2x4", "v4", (2, 2, 4), 16)
    assert (str(four), four.kind, four.axes, four.chips) == ("4 x v5e:16x16", "v5e", (16, 16), 1024)


def test_the_axes_of_a_topology() -> None:
    assert devices.torus(TPUS) == (2, 2)
    assert devices.torus([SimpleNamespace(platform="gpu", coords=(0, 0, 0))]) == ()
    assert devices.torus(TPUS[:1]) == ()
