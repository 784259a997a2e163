"""A dataset with unusable records, and a process of its own that reads batches, which several tests look at."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_data import encode, example

from r2d2_jax.data.records import RecordSource
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> RecordSource:
    """Eight records in one shard, of which 1, 2, 4 and 7 are unusable for four reasons."""
    folder = tmp_path_factory.mktemp("spoiled")
    records = [example(number) for number in range(8)]
    records[1] = example(1, image=encode((60, 60))[:-200])
    records[2] = Example(encode(), (), "image2")
    records[4] = example(4, "一只狗", " ")
    records[7] = example(7, image_id="")
    write_dataset(folder, {"train": records})
    return RecordSource(folder, "train")


_PROGRAM = """
if __name__ == "__main__":
    import json, sys
    import cv2
    from absl import flags
    from PIL import Image
    settings = cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS
    from r2d2_jax.config.data import DataConfig
    from r2d2_jax.data.mixture import Mixture
    from r2d2_jax.data.records import RecordSource
    from r2d2_jax.data.text.tokenizer import load_tokenizer
    from r2d2_jax.data.train_batches import train_batches

    def first_batch(workers, number_words):
        stream = train_batches(Mixture([RecordSource(sys.argv[1], "train")]),
                               load_tokenizer(sys.argv[2], 8, number_words=number_words),
                               DataConfig(directory="", workers=workers, augmentation="random_augment"),
                               image_size=16, batch_size=2, seed=0, first_step=0)
        return stream, next(stream)

    stream, batch = first_batch(0, False)
    told = {"shape": batch["images"].shape, "modules": sorted(sys.modules)}
    first_batch(0, True)
    told["modules_with_words"] = sorted(sys.modules)
    endless, _ = first_batch(1, False)  # never closed
    told["settings_kept"] = settings == (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS)
    told["flags_parsed"] = flags.FLAGS.is_parsed()
    print(json.dumps(told))
"""


@pytest.fixture(scope="session")
def reading_process(dataset: Path, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process of its own tells that reads batches: without words, with words, and from a worker."""
    script, root = tmp_path_factory.mktemp("program") / "program.py", Path(__file__).resolve().parents[2]
    script.write_text(_PROGRAM)
    command = [sys.executable, script, dataset, vocabulary]
    environment = {"PYTHONPATH": str(root), "PATH": ""}
    done = subprocess.run(command, cwd=root, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
