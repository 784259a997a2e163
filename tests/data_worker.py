"""One process of several that read training streams; `data/test_processes.py` compares what they write.

    python data_worker.py TASKS.json

Each task of the list has folders, weights, vocabulary, workers, batch_size, first_step, steps, process_index,
process_count, columns and output, an .npz file that gets these columns of its batches.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import load_tokenizer
from r2d2_jax.data.train_batches import train_batches


def main() -> None:
    """Reads this process's part of every task's stream."""
    for task in json.loads(Path(sys.argv[1]).read_text()):
        batches = train_batches(
            Mixture([RecordSource(folder, "train") for folder in task["folders"]], task["weights"]),
            load_tokenizer(task["vocabulary"], 8),
            DataConfig(directory="", workers=task["workers"]),
            image_size=16,
            batch_size=task["batch_size"],
            seed=3,
            first_step=task["first_step"],
            process_index=task["process_index"],
            process_count=task["process_count"],
        )
        steps = list(itertools.islice(batches, task["steps"]))
        batches.close()
        np.savez(task["output"], **{key: np.stack([step[key] for step in steps]) for key in task["columns"]})


if __name__ == "__main__":
    main()
