"""Measures any checkpoint on any prepared dataset: retrieval, matching, or
classification without training.

    python launch/evaluate.py --checkpoint=runs/mine --data=data/mine \\
        --split=test --json=test.json

docs/evaluation.md says how everything is measured. With --json, the same
command again goes on after a kill.
"""

import logging
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from r2d2_jax.buckets.path import is_address
from r2d2_jax.config.model import DTYPES
from r2d2_jax.errors import UserError
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.plot import drawn_at_the_end
from r2d2_jax.launch.program import parse, run
from r2d2_jax.paths import path_or_bucket, user_path
from r2d2_jax.report import PICTURES

if TYPE_CHECKING:
    from r2d2_jax.evaluation.measure import Measurement

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A published file, a converted or transformers folder, or a run's workdir.",
    flag_values=FLAGS,
)
_DATA = flags.DEFINE_string("data", None, "Folder of a prepared dataset.", flag_values=FLAGS)
_SPLIT = flags.DEFINE_string("split", "test", "The split to measure.", flag_values=FLAGS)
_TASK = flags.DEFINE_string(
    "task", "", "retrieval, matching or classification; by default what the data is made for.", flag_values=FLAGS
)
_WEIGHTS = flags.DEFINE_enum("weights", "student", ["student", "teacher"], "Which weights of a run.", flag_values=FLAGS)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary", "", "The model's vocab.txt, where it came without one.", flag_values=FLAGS
)
_MAP_PUNCTUATION = flags.DEFINE_bool(
    "map_punctuation",
    None,
    "Trained on mapped punctuation; if not given, as the model says, or not if published.",
    flag_values=FLAGS,
)
_IMAGE_HEADS = flags.DEFINE_integer("image_heads", None, "Of a published file of unusual sizes.", flag_values=FLAGS)
_TEXT_HEADS = flags.DEFINE_integer("text_heads", None, "Likewise: text tower and cross encoders.", flag_values=FLAGS)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images, texts or pairs of a forward; no figure depends on it.", flag_values=FLAGS
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    DTYPES,
    "Of matrix products: exact, or several times as fast on accelerators.",
    flag_values=FLAGS,
)
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images", 0, "Only the first so many images, or pairs of matching; 0 for all.", flag_values=FLAGS
)
_RERANK = flags.DEFINE_integer(
    "rerank",
    None,
    "Retrieval: candidates of each query that the cross encoders re-rank; by default 128, 0 for none.",
    flag_values=FLAGS,
)
_DIRECTIONS = flags.DEFINE_list(
    "directions",
    None,
    "Retrieval: i2t,t2i or one of them; by default both, for MUGE t2i.",
    flag_values=FLAGS,
)
_SAME_TEXT = flags.DEFINE_bool(
    "same_text_is_right",
    None,
    "Retrieval: a text of equal characters is right, too, whatever image it belongs to.",
    flag_values=FLAGS,
)
_MEMORY_LIMIT = flags.DEFINE_string(
    "memory_limit",
    "",
    "Retrieval: host memory, and memory of each device, that must not be passed, such as 8GiB.",
    flag_values=FLAGS,
)
_WORK = flags.DEFINE_string(
    "work",
    "",
    "Retrieval: folder of finished blocks, with which the same command goes on after a kill; by default "
    "FILE.work beside --json=FILE, removed at the end.",
    flag_values=FLAGS,
)
_THRESHOLD_SPLIT = flags.DEFINE_string(
    "threshold_split",
    None,
    "Matching: the split that chooses the threshold; by default validation, if there is one.",
    flag_values=FLAGS,
)
_TEMPLATES = flags.DEFINE_string(
    "templates",
    None,
    "Classification: a file with one template a line, or one template, with {} where the class's name goes; by "
    "default several.",
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_string("json", "", "File to write everything to as JSON.", flag_values=FLAGS)
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Imitate this many devices on the CPU.", lower_bound=1, flag_values=FLAGS
)
_PLOTS = flags.DEFINE_string(
    "plots",
    "",
    "Folder to draw into: recalls, a ROC curve or a confusion matrix; by default NAME.plots beside --json=NAME.json.",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["checkpoint", "data"], flag_values=FLAGS)

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the flags say, prints a table and writes the JSON file; returns the exit status."""
    return run(_work, argv, stopped="stopped; with --json or --work, the same command of retrieval goes on")


def _work(arguments: Sequence[str]) -> None:
    parse(FLAGS, arguments, __doc__)
    if _JSON.value:
        check_json_path(_JSON.value)
    memory_limit = memory_of(_MEMORY_LIMIT.value)
    logger.info("loading libraries")
    import jax

    if _CPU_DEVICES.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value)
    from r2d2_jax.evaluation.measure import RETRIEVAL, Request, measure
    from r2d2_jax.evaluation.tables import table

    request = Request(
        checkpoint=str(_CHECKPOINT.value),
        data=str(_DATA.value),
        split=_SPLIT.value,
        task=_TASK.value,
        weights=_WEIGHTS.value,
        vocabulary=_VOCABULARY.value,
        map_punctuation=_MAP_PUNCTUATION.value,
        image_heads=_IMAGE_HEADS.value,
        text_heads=_TEXT_HEADS.value,
        batch_size=_BATCH_SIZE.value,
        max_images=_MAX_IMAGES.value,
        dtype=_DTYPE.value,
        rerank=_RERANK.value,
        directions=None if _DIRECTIONS.value is None else tuple(_DIRECTIONS.value),
        same_text_is_right=_SAME_TEXT.value,
        memory_limit=memory_limit,
        work=user_path(_WORK.value) if _WORK.value else None,
        threshold_split=_THRESHOLD_SPLIT.value,
        templates=_TEMPLATES.value,
    )
    beside = _beside_json()
    measured = measure(request, default_work=beside)
    if _JSON.value:
        write_json(measured.document, _JSON.value)
    print(table(measured.document))
    if (folder := _pictures()) is not None:
        drawn_at_the_end(lambda: _draw(measured, folder), folder, "the evaluation")
    if beside is not None and measured.document["task"] == RETRIEVAL:
        shutil.rmtree(beside, ignore_errors=True)  # the last, so that a call that was stopped goes on from there


def _beside_json() -> Path | None:
    """The folder of finished blocks that goes once the result is written; None if one is named, or there is none.

    There is none in a bucket either: blocks are kept on a disk, and --work names one.
    """
    if not _JSON.value or _WORK.value or is_address(_JSON.value):
        return None
    file = user_path(_JSON.value)
    return file.with_name(f"{file.name}.work")


def _pictures() -> Path | None:
    """The folder of the pictures; None where nothing is to be written."""
    if _PLOTS.value:
        return path_or_bucket(_PLOTS.value)
    return path_or_bucket(_JSON.value).with_suffix(f".{PICTURES}") if _JSON.value else None


def _draw(measured: "Measurement", folder: Path) -> None:
    from r2d2_jax.plots.results import draw_results  # Matplotlib takes a second

    draw_results(measured.document, measured.arrays, folder)


def memory_of(given: str) -> int | None:
    """Bytes of an amount of memory such as 8GiB, 500MB or 1000000; None for "".

    Raises:
        UserError: it is no such amount.
    """
    if not given:
        return None
    amount = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)?", given, re.ASCII)
    size = int(float(amount[1]) * _UNITS[amount[2] or ""]) if amount else 0
    if not size:
        raise UserError(f"--memory_limit={given} is no amount of memory; expected one such as 8GiB or 500MB")
    return size


if __name__ == "__main__":
    sys.exit(main())
