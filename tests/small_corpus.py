"""A small corpus to prepare, and what lies in a folder afterwards."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from small_data import encode

from r2d2_jax.preparation.corpora.json_lines import JsonLines


def written_corpus(folder: Path, images: int, broken: set[int] | None = None) -> JsonLines:
    """So many images with two captions each; every fourth is for validation, the `broken` ones are cut off.

    The second caption of every third image is one text.
    """
    (folder / "images").mkdir()
    lines = []
    for number in range(images):
        image = encode(seed=number)
        (folder / "images" / f"{number}.jpg").write_bytes(image[:200] if number in (broken or ()) else image)
        split = "train" if number % 4 else "val"
        line = {"image": f"{number}.jpg", "captions": [f"{number}", "狗"], "split": split}
        lines.append(json.dumps(line if number % 3 else line | {"text_ids": [None, "q1"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return JsonLines(str(folder / "images"), str(folder / "captions.jsonl"))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def until(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Waits, at most a minute, and no longer than the process lives."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
