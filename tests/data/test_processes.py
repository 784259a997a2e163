"""The training stream read by separate processes: stopped, gone on with by more or fewer, from any shape of shards."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from raw_data import serialized, write_raw

TESTS = Path(__file__).resolve().parents[1]
RECORDS, BATCH = 44, 8  # an epoch is five and a half batches
COLUMNS = ("images", "input_ids", "image_id")
# Stage -> (processes, first step, steps): two epochs, stopped twice; and all of them in one undisturbed process.
STAGES = {"first": (2, 0, 3), "second": (1, 3, 4), "third": (4, 7, 4), "undisturbed": (1, 0, 11)}
# Four operating-system processes serve all stages, so that few interpreters start: which one of them each part runs in.
RUNS_IN = {"first": (0, 1), "second": (2,), "third": (3, 2, 1, 0), "undisturbed": (3,)}
DISTURBED = ("first", "second", "third")
JOBS = ("one", "one_workers", "uneven", "mixture")
WORKERS = {"first": 1, "second": 2, "third": 0, "undisturbed": 0}  # of each process of a stage, in "one_workers"
SHARDS = {"one": [44], "uneven": [1, 40, 3]}


@dataclass
class Stream:
    """What the processes of one stage read, put together: arrays [steps batch ...], the row of process 0 first."""

    images: np.ndarray
    input_ids: np.ndarray
    image_id: np.ndarray


def task(name: str, stage: str, index: int, folder: Path, vocabulary: Path) -> dict[str, object]:
    """What process `index` of a stage reads, see `data_worker`."""
    datasets = ["one", "uneven"] if name == "mixture" else [name.removesuffix("_workers")]
    return {
        "folders": [str(folder / dataset) for dataset in datasets],
        "weights": [3, 1] if name == "mixture" else [],
        "vocabulary": str(vocabulary),
        "workers": WORKERS[stage] if name.endswith("_workers") else 0,
        "batch_size": BATCH,
        "first_step": STAGES[stage][1],
        "steps": STAGES[stage][2],
        "process_index": index,
        "process_count": STAGES[stage][0],
        "columns": COLUMNS,
        "output": str(folder / f"{name}_{stage}_{index}.npz"),
    }


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> dict[tuple[str, str], list[Stream]]:
    """(job, stage) -> the part that each process read."""
    folder = tmp_path_factory.mktemp("processes")
    for name, lengths in SHARDS.items():
        numbers = iter(range(RECORDS))
        write_raw(folder / name, {"train": [map(serialized, islice(numbers, length)) for length in lengths]})
    lists: list[list[dict[str, object]]] = [[] for _ in range(4)]
    for stage, processes in RUNS_IN.items():
        for index, process in enumerate(processes):
            lists[process] += [task(name, stage, index, folder, vocabulary) for name in JOBS]
    together(folder, lists)
    return {
        (name, stage): [Stream(**np.load(folder / f"{name}_{stage}_{index}.npz")) for index in range(STAGES[stage][0])]
        for name in JOBS
        for stage in STAGES
    }


def together(folder: Path, lists: list[list[dict[str, object]]]) -> None:
    """Runs one process for each list of tasks, all at once, to a good end."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    started = []
    for number, tasks in enumerate(lists):
        file = folder / f"{number}.json"
        file.write_text(json.dumps(tasks))
        command = [sys.executable, str(TESTS / "data_worker.py"), str(file)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def joined(stages: list[list[Stream]], field: str) -> np.ndarray:
    """All rows of all stages in the order of the stream: [rows ...]."""
    steps = [np.concatenate([getattr(part, field) for part in parts], axis=1) for parts in stages]
    return np.concatenate([stage.reshape(-1, *stage.shape[2:]) for stage in steps])


@pytest.mark.parametrize("name", JOBS)
def test_going_on_with_other_processes_changes_no_byte(name: str, read: dict[tuple[str, str], list[Stream]]) -> None:
    """2, then 1, then 4 processes give the images and tokens that one undisturbed process gives."""
    stages = [read[name, stage] for stage in DISTURBED]
    for field in COLUMNS:
        expected = joined([read[name, "undisturbed"]], field)
        assert len(expected) == 2 * RECORDS
        np.testing.assert_array_equal(joined(stages, field), expected, err_msg=field)


@pytest.mark.parametrize("name", ["one", "one_workers", "uneven"])
def test_every_pair_once_in_each_epoch(name: str, read: dict[tuple[str, str], list[Stream]]) -> None:
    """Though both stops lie within an epoch, and an epoch ends in the middle of a batch."""
    rows = joined([read[name, stage] for stage in DISTURBED], "image_id")
    for epoch in (rows[:RECORDS], rows[RECORDS:]):
        assert set(Counter(map(tuple, epoch.tolist())).values()) == {1}
        assert len(epoch) == RECORDS


def test_shares_of_a_mixture(read: dict[tuple[str, str], list[Stream]]) -> None:
    """88 rows at 3 to 1: 66 of the first corpus, each record once or twice, and 22 of the second."""
    rows = joined([read["mixture", stage] for stage in DISTURBED], "image_id")
    times = Counter(map(tuple, rows.tolist()))
    assert Counter(times.values()) == {2: 22, 1: 44}


@pytest.mark.parametrize("name", JOBS)
def test_fewer_or_uneven_shards_give_every_process_as_many_batches(
    name: str, read: dict[tuple[str, str], list[Stream]]
) -> None:
    """One shard for four processes; 1, 40 and 3 records in three shards for two."""
    for stage, (processes, _, steps) in STAGES.items():
        assert [part.images.shape[:2] for part in read[name, stage]] == [(steps, BATCH // processes)] * processes


def test_workers_change_nothing(read: dict[tuple[str, str], list[Stream]]) -> None:
    for stage in STAGES:
        with_workers, without = (joined([read[name, stage]], "images") for name in ("one_workers", "one"))
        np.testing.assert_array_equal(with_workers, without)
