"""One process of several that read a training stream; `data/test_processes.py` compares what they write.

    python data_worker.py JOBS.json PROCESS_INDEX PROCESS_COUNT

Each job of the list has folders, weights, vocabulary, workers, batch_size, first_step, steps and output, an .npz file
that gets the batches of this process one after the other.
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
    """Reads every job's part of the stream."""
    index, count = map(int, sys.argv[2:])
    for job in json.loads(Path(sys.argv[1]).read_text()):
        batches = train_batches(
            Mixture([RecordSource(folder, "train") for folder in job["folders"]], job["weights"]),
            load_tokenizer(job["vocabulary"], 8),
            DataConfig(directory="", workers=job["workers"]),
            image_size=16,
            batch_size=job["batch_size"],
            seed=3,
            first_step=job["first_step"],
            process_index=index,
            process_count=count,
        )
        steps = list(itertools.islice(batches, job["steps"]))
        batches.close()
        rows = {key: np.stack([step[key] for step in steps]) for key in ("images", "input_ids", "image_id")}
        np.savez(f"{job['output']}_{index}_of_{count}.npz", **rows)


if __name__ == "__main__":
    main()
