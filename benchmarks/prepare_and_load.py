"""Prepares and loads many pairs: bytes after a kill, and memory, beside those of a tenth of the pairs.

    python benchmarks/prepare_and_load.py                  # 100,000 pairs, about ten minutes on two cores
    python benchmarks/prepare_and_load.py --pairs=20000

The images are generated, 64 x 48 pixels. `launch/prepare_data.py` is run undisturbed with one process, and then with
one and with two processes, killed with SIGKILL once half of the shards are there and started again. Every file of the
datasets is compared byte by byte. Memory is the peak of the largest process (resident set), of preparing and of one
epoch of batches, each beside the same with a tenth of the pairs in shards of the same size (ArrayRecord's writer has a
buffer that grows with a shard, up to 16 MiB). Exit status 1 if a file differs or if memory grows by more than 5 per
cent (the noise of the allocator).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

PAIRS = flags.DEFINE_integer("pairs", 100_000, "How many pairs.", lower_bound=100)

ROOT = Path(__file__).resolve().parents[1]
CHARACTERS = "红蓝黄绿大小圆方块在左右上下只个"
SHARDS = 20  # of all the pairs; a tenth of the pairs is in a tenth of the shards
MEMORY_LIMIT = 1.05
_LOAD = """
import resource, sys
from r2d2_jax.config.data import DataConfig
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.train_batches import train_batches
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import load_tokenizer
folder, steps = sys.argv[1], int(sys.argv[2])
mixture = Mixture([RecordSource(folder, "train")])
stream = train_batches(mixture, load_tokenizer(folder, 16), DataConfig(folder, workers=2), image_size=32,
                       batch_size=100, seed=0, first_step=0)
for _ in range(steps):
    next(stream)
stream.close()
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(max(peaks))
"""


def main(arguments: list[str]) -> None:
    """Runs everything below a temporary folder and prints what was found."""
    del arguments
    with tempfile.TemporaryDirectory() as folder:
        failures = list(_measure(Path(folder)))
    print("\n".join(failures) or "equal, and no more memory")
    sys.exit(bool(failures))


def _measure(root: Path) -> Iterator[str]:
    few, many = PAIRS.value // 10, PAIRS.value
    for pairs in (few, many):
        _draw(root / str(pairs), pairs)
    small = _prepared(root, few, 1)
    large = _prepared(root, many, 1)
    yield from _grown("preparing", small, large)
    reference = root / f"{many}-1"
    for processes in (1, 2):
        resumed = _killed_and_resumed(root, many, processes)
        different = _differing(reference, resumed)
        print(f"{many:,} pairs, {processes} processes, killed and resumed: {len(different)} files differ")
        yield from (f"{processes} processes: {name} differs" for name in different)
        shutil.rmtree(resumed)
    loads = [_loaded(root / f"{pairs}-1", pairs) for pairs in (few, many)]
    yield from _grown("loading an epoch", *loads)


def _draw(folder: Path, pairs: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(pairs):
            patches = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
            picture = Image.fromarray(patches).resize((64, 48), Image.Resampling.BICUBIC)
            picture.save(folder / "images" / f"{number}.jpg")
            captions = ["".join(rng.choice(list(CHARACTERS), 8)) for _ in range(2)]
            line = {"image": f"{number}.jpg", "captions": captions, "split": "train"}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def _command(root: Path, pairs: int, processes: int, output: Path) -> list[str]:
    source = root / str(pairs)
    return [
        sys.executable,
        str(ROOT / "launch" / "prepare_data.py"),
        f"--images={source / 'images'}",
        f"--annotations={source / 'captions.jsonl'}",
        f"--vocabulary={source / 'vocab.txt'}",
        f"--output={output}",
        f"--processes={processes}",
        f"--shards={SHARDS * pairs // PAIRS.value}",
    ]


def _prepared(root: Path, pairs: int, processes: int) -> int:
    """Prepares undisturbed; returns the peak memory of the largest process in KiB."""
    started = time.monotonic()
    peak = _peak(_command(root, pairs, processes, root / f"{pairs}-{processes}"))
    rate = pairs / (time.monotonic() - started)
    print(f"{pairs:,} pairs prepared, {processes} process: {rate:,.0f} pairs/s, {peak / 1024:,.0f} MiB")
    return peak


def _killed_and_resumed(root: Path, pairs: int, processes: int) -> Path:
    output = root / f"{pairs}-{processes}-killed"
    command = _command(root, pairs, processes, output)
    unfinished = output / "json_lines.unfinished"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(unfinished.glob("train-*.json"))) < SHARDS // 2:
        assert process.poll() is None, "the preparation ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("train-*.json")}
    assert not (output / "json_lines").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"killed when {len(kept)} of {SHARDS} shards were finished")
    return output


def _loaded(folder: Path, pairs: int) -> int:
    peak = int(
        subprocess.run(
            [sys.executable, "-c", _LOAD, str(folder), str(pairs // 100)],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ).stdout
    )
    print(f"{pairs:,} pairs loaded once, 2 worker processes: {peak / 1024:,.0f} MiB")
    return peak


def _peak(command: list[str]) -> int:
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, "
        "stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], check=True, capture_output=True, text=True)
    return int(done.stdout)


def _grown(what: str, small: int, large: int) -> Iterator[str]:
    print(f"{what}: {large / small:.3f} times the memory for ten times the pairs")
    if large > MEMORY_LIMIT * small:
        yield f"{what} takes {large / small:.3f} times the memory"


def _differing(expected: Path, found: Path) -> list[str]:
    names = {
        str(path.relative_to(folder)) for folder in (expected, found) for path in folder.rglob("*") if path.is_file()
    }
    return sorted(name for name in names if not _same(expected / name, found / name))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    app.run(main)
