"""launch/plan.py: what it refuses, what it prints, and one real step compiled for two imitated devices."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
from programs import called, write_config
from random_models import VOCABULARY, random_model
from small_model import CHEAPEST, config_values, write_small_dataset

from r2d2_jax.config.data import DataConfig
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.launch.plan import main
from r2d2_jax.models.store import save_model
from r2d2_jax.planning import devices, epoch, estimate
from r2d2_jax.planning.chips import GIB, Chip, named_chip
from r2d2_jax.planning.devices import Topology
from r2d2_jax.planning.estimate import Estimate, Usage, Work, is_allowed, with_batch, with_remat
from r2d2_jax.planning.report import Plan, document, table
from r2d2_jax.train import plan as train_plan

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A configuration by its file."""
    return f"--config={write_config(tmp_path, config_values(CHEAPEST))}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--config is not given; --help lists the flags"),
        (("--config=demo", "--topology=v5e:2x2", "--devices=2"), "--topology and --devices are both given; name TPU"),
        (("--config=demo", "--slices=2"), "--slices joins several of a --topology, which is not given"),
        (
            ("--config=demo", "--machine_code"),
            "--machine_code is for a --topology, which is not given; devices at hand",
        ),
        (("--config=demo", "--chip="), "--chip=: there is no such chip in the table; it has v4, v5e, v5p, v6e,"),
        (("--config=demo", "--chip=TX"), "--chip=TX: there is no such chip in the table; it has v4, v5e, v5p, v6e,"),
        (("--config=nothing",), "there is no configuration nothing; expected a file, or one of the built-in"),
        (("--config=retrieval:own",), "initial.model is not set; a fine-tuning starts from a model and has its sizes"),
        (("--config=demo", "--remat=some"), "model.remat is 'some'; expected none, products, all for all"),
        (
            ("--config=demo", "--batch_size=7", "--chip=v5e"),
            "train.batch_size 7 is not a multiple of the mesh's 4 devices",
        ),
        (("--config=demo", "--fit"), "--fit needs to know the memory of a chip, and a CPU has none of its own; name"),
        (
            ("--config=demo", "--json=/dev/null/plan.json"),
            "--json=/dev/null/plan.json cannot be written: File exists; name a file",
        ),
    ],
)
def test_bad_input(flags: Sequence[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    four = jax.devices()[:1] * 4
    monkeypatch.setattr(jax, "devices", lambda *_: four)
    done = called(main, *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_libtpu_that_is_not_installed(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = called(main, small, "--topology=v5e:2x2")
    assert done.returncode == 2
    assert "--topology=v5e:2x2 needs libtpu, which compiles for TPUs and is not installed: pip install" in done.stderr


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v3:2x2", "v3 is a TPU that is in no table; plan for one of v4, v5e, v5p, v6e"),
        ("v5e:2x2x2", "there is no topology --topology=v5e:2x2x2: v5e has chips along 2 axes; name one like v5e:4x4"),
        ("v4:2x2", "there is no topology --topology=v4:2x2: v4 has chips along 3 axes; name one like v4:4x4x4"),
    ],
)
def test_chips_that_are_not_made_so(small: str, topology: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    done = called(main, small, f"--topology={topology}", "--chip=v4")
    assert done.returncode == 2
    assert f"error: {said}" in done.stderr


def test_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    config = Config.from_config_dict(_config_dict())
    with pytest.raises(UserError, match=r"no temporary folder can be made \(.*\); set TMPDIR to a folder with room"):
        estimate.estimate_apart(config, Topology("v5e:2x2"), named_chip("v5e"), machine_code=False)


@pytest.mark.parametrize("topology", ["", "v5e", "v5e:4", "v5e:0x4", "v5e:4xx4", "v5e:2x2x2x2", "v5litepod-16"])
def test_a_topology_that_is_none(small: str, topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never reaches libtpu, which ends the process for some of what it does not understand."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    done = called(main, small, f"--topology={topology}")
    assert done.returncode == 2
    assert f"error: there is no topology --topology={topology}; expected a kind of TPU and its chips" in done.stderr


def test_a_configuration_without_blocks_hears_which_keys_are_missing(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("from ml_collections import ConfigDict\nget_config = ConfigDict\n")
    done = called(main, f"--config={tmp_path / 'empty.py'}", "--batch_size=8", "--remat=all")
    assert done.returncode == 2
    assert "missing key train" in done.stderr
    assert "missing key model" in done.stderr


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v5e:32x32", "v5e has 16 chips along an axis at most; name one like v5e:16x16, and join several"),
        ("v4:16x16x20", "a pod of v4 has 4,096 chips; join several with --slices"),
        ("v5p:32x32x32", "a pod of v5p has 8,960 chips; join several with --slices"),
    ],
)
def test_a_topology_that_is_too_large(small: str, topology: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    done = called(main, small, f"--topology={topology}")
    assert done.returncode == 2
    assert f"there is no topology --topology={topology}: {said}" in done.stderr


def fake(needs: dict[str, float]) -> Any:
    """An estimate of a step that takes so many GiB a pair of each chip, without compiling it."""

    def estimated(config: Config, described: Topology, chip: Chip, *, machine_code: bool) -> Estimate:
        remat, pairs = config.model.remat, config.train.batch_size
        needed = GIB + needs[remat] * GIB * pairs / described.chips
        usage = Usage({"parameters": GIB, "batch": 8}, needed, named_chip("v5e").memory)
        return Estimate(remat, pairs, {"data": 2, "fsdp": 2}, "TPU v5 lite", chip, usage, Work([], [], None, []), 1.0)

    return estimated


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--batch_size=40",), 0, "small: 40 pairs on 4 x TPU v5 lite (data 2 x fsdp 2), rematerialisation: none"),
        (("--batch_size=400",), 1, "memory of a chip: 101.00 GiB of 15.75 GiB, DOES NOT FIT"),
        (("--batch_size=400", "--remat=all"), 0, "memory of a chip: 11.00 GiB of 15.75 GiB, fits"),
        (("--batch_size=400", "--remat=cross:all"), 0, "(data 2 x fsdp 2), rematerialisation: cross:all;"),
        (("--batch_size=200", "--fit"), 0, "rematerialisation: products"),
        (("--fit",), 0, "small: 512 pairs on 4 x TPU v5 lite (data 2 x fsdp 2), rematerialisation: all"),
        (("--fit", "--remat=none"), 0, "small: 48 pairs"),
        (("--batch_size=4000", "--fit"), 2, "a batch of 4000 pairs fits with no rematerialisation: of 15.75 GiB a"),
    ],
)
def test_exit_status_and_choice(
    small: str, flags: Sequence[str], status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 and the table where a step does not fit, 2 where no rematerialisation makes a batch fit."""
    monkeypatch.setattr(devices, "described", Topology)  # without libtpu
    needs = {"none": 1.0, "products": 0.25, "all": 0.1, "cross:all": 0.12}
    monkeypatch.setattr(estimate, "estimate_apart", fake(needs))
    monkeypatch.setattr(train_plan, "traced_forward_cost", lambda config: 1e9)
    done = called(main, small, "--topology=v5e:2x2", *flags)
    assert done.returncode == status, done.stderr
    assert message in done.stdout + done.stderr


def test_the_file_has_the_target_and_all_that_fits(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "described", Topology)
    monkeypatch.setattr(estimate, "estimate_apart", fake({"none": 1.0, "products": 0.25, "all": 0.1}))
    monkeypatch.setattr(train_plan, "traced_forward_cost", lambda config: 1e9)
    done = called(main, small, "--topology=v5e:2x2", "--slices=2", "--fit", f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert (plan["target"], plan["batch_size"], plan["rematerialisation"]) == ("2 x v5e:2x2", 1024, "all")
    others = [(each["batch_size"], each["rematerialisation"]) for each in plan["others"]]
    assert others == [(384, "products"), (96, "none")]
    assert plan["others"][1]["needed"] == GIB * (1 + 96 / 8)


def test_a_largest_batch_that_memory_does_not_limit(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "described", Topology)
    monkeypatch.setattr(estimate, "estimate_apart", fake({"all": 0.0}))
    monkeypatch.setattr(train_plan, "traced_forward_cost", lambda config: 1e9)
    done = called(main, small, "--topology=v5e:2x2", "--fit", "--remat=all")
    assert (
        "24576 pairs is the largest batch that is tried: more is beyond loss.queue_length or 6,144 pairs" in done.stdout
    )


def test_a_fine_tuning_has_the_sizes_of_its_initial_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(layers=1, cross_layers=2, tokens=VOCABULARY)
    save_model(model, tmp_path / "model")
    planned: list[Config] = []

    def estimated(config: Config, **given: Any) -> Estimate:
        planned.append(config)
        return fake({"none": 1.0})(with_remat(config, "none"), **given)

    monkeypatch.setattr(devices, "described", Topology)
    monkeypatch.setattr(estimate, "estimate_apart", estimated)
    monkeypatch.setattr(train_plan, "traced_forward_cost", lambda config: 1e9)
    flags = f"--config.initial.model={tmp_path / 'model'}", "--config.data.directory=elsewhere", "--topology=v5e:2x2"
    done = called(main, "--config=retrieval:own", *flags)
    assert done.returncode == 0, done.stderr
    assert planned[0].model.cross.layers == 2
    assert planned[0].model.image == model.config.image


@pytest.mark.parametrize(
    ("flag", "end"),
    [("--nomachine_code", "  assumed, not generated; --machine_code measures it"), ("--machine_code", "")],
)
def test_machine_code_is_assumed_or_generated(small: str, flag: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def estimated(*_: Any, machine_code: bool, **__: Any) -> Estimate:
        usage = Usage({"batch": 8}, 3 * GIB, 15 * GIB, [], GIB, GIB, GIB, code_is_assumed=not machine_code)
        return Estimate("none", 8, {"data": 1}, "TPU v5 lite", named_chip("v5e"), usage, None, 1.0)

    monkeypatch.setattr(devices, "described", Topology)
    monkeypatch.setattr(estimate, "estimate_apart", estimated)
    monkeypatch.setattr(train_plan, "traced_forward_cost", lambda config: 1e9)
    printed = called(main, small, "--topology=v5e:2x2", flag).stdout.splitlines()
    assert next(line for line in printed if line.startswith("  machine code")).endswith("1.00 GiB" + end)


class OneCpu(Topology):
    """Is "described" as one device that every process has."""

    def devices(self) -> list[Any]:
        return jax.local_devices(backend="cpu")[:1]


def test_a_topology_is_compiled_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It finds what compiling here finds, and leaves no dump behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config, chip = Config.from_config_dict(_config_dict()), named_chip("v5e")
    here = estimate.estimate(config, OneCpu("v5e:1x1").devices(), chip)
    there = estimate.estimate_apart(config, OneCpu("v5e:1x1"), chip, machine_code=False)
    assert there.usage == here.usage
    assert there.work is not None
    assert here.work is not None
    assert there.work.products == here.work.products
    assert not list(tmp_path.iterdir())


def test_pairs_of_an_epoch(tmp_path: Path) -> None:
    data = str(write_small_dataset(tmp_path / "data", train=28))
    assert epoch.pairs_of_epoch(DataConfig(data)) == 28
    assert epoch.pairs_of_epoch(DataConfig(data, corpora=(data, str(tmp_path / "elsewhere")))) is None
    with pytest.raises(UserError, match=r"has no split 'training'; it has .*train.*: see data.train_split"):
        epoch.pairs_of_epoch(DataConfig(data, train_split="training"))


def test_another_batch_and_rematerialisation() -> None:
    config = with_remat(with_batch(Config.from_config_dict(_config_dict()), 16), "cross:all")
    assert (config.train.batch_size, config.model.remat) == (16, "cross:all")


def test_a_batch_that_something_else_contradicts() -> None:
    """The queue has twenty entries, and holds a batch at least."""
    config = Config.from_config_dict(_config_dict())
    assert [is_allowed(config, batch_size) for batch_size in (1, 2, 20, 24)] == [False, True, True, False]


def _config_dict() -> Any:
    from ml_collections import ConfigDict

    return ConfigDict(config_values())


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The plan of a small step with hard negatives, on two imitated devices that share the parameters."""
    folder = tmp_path_factory.mktemp("plan")
    changes = {
        "model": {"cross": {"layers": 1}},
        "loss": {"contrastive": "gcpr", "fgd": False, "mlm": False},
        "mesh": {"data": 1, "fsdp": 2},
    }
    config = write_config(folder, config_values(changes))
    flags = [f"--config={config}", "--devices=2", "--chip=v5e", "--pairs=86_400", f"--json={folder / 'plan.json'}"]
    command = [sys.executable, str(ROOT / "launch" / "plan.py"), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "plan.json").read_text(encoding="utf-8"))


def test_memory_of_a_real_step(planned: tuple[Any, dict[str, Any]]) -> None:
    """Kernels and their moments are split over both; what is there at once adds up to nearly what XLA says."""
    memory = planned[1]["memory"]
    assert planned[1]["fits"]
    assert memory["parts"].keys() == {"parameters", "optimizer moments", "batch"}
    assert memory["parts"]["batch"] == 4 * (16 * 16 * 3 + 10 * (4 + 1) + 8)
    assert sum(memory["parts"].values()) <= memory["kept"] <= 1.05 * sum(memory["parts"].values())
    assert memory["needed"] == memory["kept"] + memory["temporaries"] + memory["code"]
    largest = sum(each["bytes"] for each in memory["largest"])
    assert 0.6 * memory["temporaries"] < largest < 1.5 * memory["temporaries"]


def test_hard_negatives_of_a_real_step_cost_few_times_the_tokens(planned: tuple[Any, dict[str, Any]]) -> None:
    """A chip's 4 pairs of 5 + 10 tokens of 16 numbers: two exchanges forwards, and two backwards of the texts alone.

    The image tower is frozen. Half of what is exchanged stays on the chip.
    """
    sent = {(row["origin"], row["kind"]): row["sent_bytes"] for row in planned[1]["collectives"]}
    assert sent["hard negatives", "all-to-all"] == 4 * 4 * 16 * (2 * 15 + 2 * 10) / 2
    assert sent["parameter gathers", "all-gather"] > 0
    assert sum(bytes_ for (origin, _), bytes_ in sent.items() if origin == "gradient reduction") > 0


def test_work_and_time_of_a_real_step(planned: tuple[Any, dict[str, Any]]) -> None:
    """A step is about three forwards; its frozen image tower and what only the forward has make it less."""
    document = planned[1]
    count = document["multiply_adds_per_pair"]
    assert 1.2 * count["forward"] < count["step"] < 3.2 * count["forward"]
    assert document["days"] == pytest.approx(4.0 / document["pairs_per_second"])  # epochs of as many as a day's seconds
    assert document["time"]["step"] == document["time"]["chip"] + document["time"]["links"]
    assert document["time"]["bound"] in ("matrix rate", "memory bandwidth", "links")
    assert any("imitated CPU devices" in each for each in document["assumptions"])


def test_the_table_of_a_real_step(planned: tuple[Any, dict[str, Any]]) -> None:
    done, _ = planned
    assert done.stderr.splitlines()[:2] == [
        "loading libraries",
        "compiling for 2 x cpu: 8 pairs, rematerialisation: none",
    ]
    for line in ("memory of a chip:", "  optimizer moments", "hard negatives", "time of a step by the roofline of v5e"):
        assert line in done.stdout
    assert "4 epochs of 86,400 pairs: 0.00 days" in done.stdout


def test_a_plan_without_a_chip_says_what_is_missing() -> None:
    usage = Usage({"batch": 8}, 100, None, kept=8, temporaries=90, code=2)
    made = Estimate("none", 8, {"data": 1}, "cpu", None, usage, Work([], [], None, ["once"]), 1.0)
    printed = table(Plan("small", "v5e:1x1", [made], 2e9, 4.0, None))
    assert "time: not known of a CPU; --chip names a chip" in printed
    assert "  (once)" in printed
    assert "what a chip sends and receives in a step:\n  nothing" in printed
    assert "fits" not in printed.lower()


@pytest.mark.parametrize(
    ("chip", "needed", "verdict"),
    [
        ("H100", 60e9, "55.88 GiB of 74.51 GiB, fits"),
        ("H100", 70e9, "65.19 GiB of 74.51 GiB, fits with XLA_PYTHON_CLIENT_MEM_FRACTION=0.88 or more; JAX hands out"),
        ("v5e", 15.7 * GIB, "15.70 GiB of 15.75 GiB, fits"),
        ("H100", 90e9, "83.82 GiB of 74.51 GiB, DOES NOT FIT"),
        ("v4", 31 * GIB, "31.00 GiB of 30.75 GiB, DOES NOT FIT unless its machine code is below 0.25 GiB; --machine_c"),
        ("v4", 31.5 * GIB, "31.50 GiB of 30.75 GiB, DOES NOT FIT"),
    ],
)
def test_what_a_plan_says_of_the_memory(chip: str, needed: float, verdict: str) -> None:
    """A GPU has more than JAX hands out."""
    known = named_chip(chip)
    usage = Usage({"batch": 8}, needed, known.memory, code=0.5 * GIB, code_is_assumed=chip == "v4")
    made = Estimate("none", 8, {"data": 1}, "a chip", known, usage, None, 1.0)
    plan = Plan("small", "v5e:1x1", [made], 2e9, 4.0, None)
    line = next(line for line in table(plan).splitlines() if line.startswith("memory of a chip: "))
    assert line.removeprefix("memory of a chip: ").startswith(verdict)
    assert line.endswith(("fits", "FIT", "unless told otherwise", "--machine_code measures it"))
    assert usage.fits == (", fits" in line)
    json.dumps(document(plan), allow_nan=False)
