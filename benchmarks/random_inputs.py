"""Throws random variations of what people bring at the public entry points: only results and messages may come out.

    python benchmarks/random_inputs.py                          # 500 of each kind
    python benchmarks/random_inputs.py --kinds=images --cases=20000 --seed=7
    python benchmarks/random_inputs.py --kinds=images --first=1234 --cases=1    # one of them again

Exit status 1 if anything else came out, if a case took longer than --seconds (then with a traceback of where it was),
or if memory grew by more than --mebibytes. Which input it was is printed.
"""

import contextlib
import faulthandler
import io
import logging
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import odd_inputs
from absl import app, flags
from odd_inputs import Rng
from PIL import Image

from r2d2_jax.config.model import CrossEncoderConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from r2d2_jax.convert.naming import our_shapes
from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.transforms import evaluation_image, train_image, verify_image
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import load_tokenizer
from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.inputs import ImageList
from r2d2_jax.launch import check_data, prepare_data
from r2d2_jax.models.store import Model
from r2d2_jax.preparation.downsizing import downsized
from r2d2_jax.trees import nested
from r2d2_jax.vocabulary import Vocabulary

CASES = flags.DEFINE_integer("cases", 500, "Variations of each kind.", lower_bound=1)
FIRST = flags.DEFINE_integer("first", 0, "Number of the first variation.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Of the variations.", lower_bound=0)
SECONDS = flags.DEFINE_integer("seconds", 60, "After so long a case counts as hanging.", lower_bound=1)
MEBIBYTES = flags.DEFINE_integer("mebibytes", 500, "So much may the peak of memory grow over the cases of a kind.")

Attempt = Callable[[Rng, Path], str]  # makes an input, gives it to its entry points, and says what became of it
TEXTS = ("红圆在蓝方左边", "Ａｐｐｌｅ [SEP] e\u0301 \U0001f60d", "")
SIZES = ModelConfig(
    image=ImageTowerConfig(image_size=24, patch_size=8, width=64, layers=1, heads=1, mlp_width=32),
    text=TextTowerConfig(
        vocabulary_size=24, text_length=7, width=64, layers=1, heads=1, mlp_width=24, max_positions=7
    ),
    cross=CrossEncoderConfig(layers=1, width=64, heads=1, mlp_width=24),
    embed_size=16,
    dtype="float32",
)  # fmt: skip


def main(_: list[str]) -> None:
    """Runs the kinds one after the other; prints a line for each, and what came out that should not."""
    logging.disable(logging.WARNING)  # of skipped lines
    failures = 0
    for kind in KINDS.value:
        with tempfile.TemporaryDirectory() as folder:
            failures += run_kind(kind, ATTEMPTS[kind](Path(folder)), Path(folder))
    sys.exit(1 if failures else 0)


def run_kind(kind: str, attempt: Attempt, folder: Path) -> int:
    """Number of cases of a kind that failed."""
    outcomes: Counter[str] = Counter()
    slowest, before = 0.0, peak_mebibytes()
    for number in range(FIRST.value, FIRST.value + CASES.value):
        faulthandler.dump_traceback_later(SECONDS.value, exit=True, file=2)
        start = time.perf_counter()
        outcomes[one_case(kind, number, attempt, folder)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    faulthandler.cancel_dump_traceback_later()
    growth = peak_mebibytes() - before
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{kind}: {counts}; slowest {slowest:.2f} s, peak memory grew by {growth:.0f} MiB", flush=True)
    too_much = growth > MEBIBYTES.value
    if too_much:
        print(f"{kind}: memory grew by more than --mebibytes={MEBIBYTES.value}")
    return outcomes["failed"] + too_much


def one_case(kind: str, number: int, attempt: Attempt, folder: Path) -> str:
    """What became of one input: as the attempt says, "refused" with a message, or "failed"."""
    rng = np.random.default_rng([SEED.value, number])
    try:
        return attempt(rng, folder)
    except UserError as error:
        if str(error).strip():
            return "refused"
        traceback.print_exc()
    except Exception:
        traceback.print_exc()
    print(f"{kind} {number} failed; --kinds={kind} --seed={SEED.value} --first={number} --cases=1 makes it again")
    return "failed"


def peak_mebibytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def vocabularies(folder: Path) -> Attempt:
    """Reads vocabulary files and has texts tokenised: every id has a place in the model's embeddings."""

    def attempt(rng: Rng, folder: Path) -> str:
        path = folder / "vocab.txt"
        content = odd_inputs.vocabulary_file(rng)
        path.write_bytes(content)
        tokenizer = load_tokenizer(str(path), 8)
        text = odd_inputs.text(rng).encode(errors="replace").decode()  # records and models refuse half a character
        ids, mask = tokenizer([*TEXTS, text])
        assert ids.shape == mask.shape == (4, 8)
        assert ids.min() >= 0
        assert ids.max() < len(tokenizer.vocabulary)
        assert tokenizer.vocabulary.content == content
        return "read"

    return attempt


def annotations(folder: Path) -> Attempt:
    """Prepares and checks corpora of odd lines; what was prepared is read again."""
    names = [f"{number}.jpg" for number in range(4)]
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30), (number * 60, 0, 0)).save(folder / name)

    def attempt(rng: Rng, folder: Path) -> str:
        lines = folder / "captions.jsonl"
        lines.write_bytes(odd_inputs.annotation_lines(rng, names))
        places = [f"--images={folder}", f"--annotations={lines}", "--processes=1", "--max_broken_share=0.9"]
        output = tempfile.mkdtemp(dir=folder)
        prepared = called(prepare_data.main, *places, f"--output={output}", "--shards=1")
        checked = called(check_data.main, *places)
        assert prepared in (0, 2), prepared
        assert checked in (0, 1, 2), checked
        if prepared:
            return "refused"
        for split in ("train", "validation", "test"):
            with contextlib.suppress(UserError):  # there is no such split
                source = RecordSource(output, split)
                for index in range(len(source)):
                    source[index].check_texts()
        return "prepared"

    return attempt


def images(folder: Path) -> Attempt:
    """Decodes image files in every way; once one has been verified, the others must do, and Pillow's picture agrees."""

    def attempt(rng: Rng, folder: Path) -> str:
        intact = odd_inputs.whole_image_file(rng)
        encoded = odd_inputs.damaged(rng, intact) if rng.random() < 0.6 else intact
        try:
            verify_image(encoded)
        except UnusableRecord:
            with contextlib.suppress(UnusableRecord):
                evaluation_image(encoded, 24)
            return "unusable"
        whole = evaluation_image(encoded, 24)
        crop = train_image(encoded, rng, image_size=24, crop_scale=(0.5, 1.0), flip=True, magnitude=7.0)
        small = evaluation_image(downsized(encoded, 32, 90), 24)
        for pixels in (whole, crop, small):
            assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)
        if encoded is intact:
            pillows = opened_by_pillow(encoded, folder)
            assert pillows is None or np.array_equal(pillows, whole)
        return "decoded"

    return attempt


def opened_by_pillow(encoded: bytes, folder: Path) -> np.ndarray | None:
    """What a caller sees who opens a file with Pillow and gives that to a model; None if Pillow's limits forbid it."""
    (folder / "picture").write_bytes(encoded)
    try:
        picture = Image.open(folder / "picture")
    except (OSError, ValueError, SyntaxError):
        return None
    with picture:
        try:
            return ImageList.of(picture, 24).rows(slice(None))[0]
        except UserError:
            assert picture.format == "PNG", picture.format  # of which Pillow reads the texts, too
            return None


def queries(folder: Path) -> Attempt:
    """Asks a model about anything: all numbers of an answer are finite."""
    model = random_model()

    def attempt(rng: Rng, folder: Path) -> str:
        way = rng.integers(4)
        if way == 0:
            answers = [model.encode_image(odd_inputs.query_images(rng, folder)).embed]
        elif way == 1:
            answers = [model.encode_text(odd_inputs.query_texts(rng)).embed]
        elif way == 2:
            answers = [model.match(odd_inputs.query_images(rng, folder), odd_inputs.query_texts(rng))]
        else:
            scores = model.score_all(odd_inputs.query_images(rng, folder), odd_inputs.query_texts(rng))
            assert scores.match is not None
            answers = [scores.cosine, scores.match]
        assert all(np.isfinite(answer).all() for answer in answers)
        return "answered"

    return attempt


def random_model() -> Ranker:
    """A tiny model with random weights and a vocabulary."""
    rng = np.random.default_rng(0)
    leaves = {path: (0.1 * rng.normal(size=shape)).astype(np.float32) for path, shape in our_shapes(SIZES).items()}
    tokens = (*odd_inputs.SPECIAL_TOKENS, *dict.fromkeys(odd_inputs.CHARACTERS), "a", "##a", "[", "]", "##d")
    return Ranker(Model(SIZES, nested(leaves), vocabulary=Vocabulary(tokens[: SIZES.text.vocabulary_size])))


def called(program: Callable[[list[str]], int], *arguments: str) -> int:
    """The exit status of a program that runs in this process, unheard."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return program(list(arguments))


ATTEMPTS: dict[str, Callable[[Path], Attempt]] = {
    "vocabularies": vocabularies,
    "annotations": annotations,
    "images": images,
    "queries": queries,
}
KINDS = flags.DEFINE_multi_enum("kinds", sorted(ATTEMPTS), sorted(ATTEMPTS), "What is varied.")

if __name__ == "__main__":
    app.run(main)
