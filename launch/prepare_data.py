"""Prepares a dataset from a corpus in its published files, or from one's own,
or makes the demonstration data.

    python launch/prepare_data.py --images=photos --annotations=captions.jsonl \\
        --vocabulary=vocab.txt --output=data/mine
    python launch/prepare_data.py --corpus=muge --annotations=MUGE \\
        --output=data/muge --processes=8
    python launch/prepare_data.py --corpus=muge --annotations=/mnt/MUGE \\
        --output=/mnt/muge --beam_options="--runner=FlinkRunner \\
        --flink_master=HOST:8081 --parallelism=64"
    python launch/prepare_data.py --demo --output=data/demo

Without --corpus the annotations are JSON lines. The same command again goes on
where it was stopped.
"""

import sys
from collections.abc import Sequence

from absl import flags

from r2d2_jax.cores import allowed_cores
from r2d2_jax.errors import UserError
from r2d2_jax.launch.corpus_flags import CORPUS_FLAGS, corpus_from_flags, define_corpus_flags, given
from r2d2_jax.launch.program import parse, run
from r2d2_jax.preparation.beam_runner import in_beam
from r2d2_jax.preparation.demonstration import write_demonstration
from r2d2_jax.preparation.local_runner import in_processes
from r2d2_jax.preparation.prepare import Preparation, Runner, Settings, prepare

FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", "", "Folder to hold the dataset.", flag_values=FLAGS)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    "",
    "A WordPiece vocab.txt, or a folder or hub name with one, to copy beside the dataset.",
    flag_values=FLAGS,
)
_SHARDS = flags.DEFINE_integer(
    "shards", 0, "Number of files a split; 0 chooses a fitting number, at least 8.", flag_values=FLAGS
)
_PROCESSES = flags.DEFINE_integer(
    "processes", allowed_cores(), "Number of processes that read and write.", flag_values=FLAGS
)
_BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options",
    "",
    'Read and write on the workers of an Apache Beam pipeline with these options, such as "--runner=FlinkRunner '
    '--parallelism=64"; every path must mean the same on all of them. Without it, --processes do it here.',
    flag_values=FLAGS,
)
_SHORT_SIDE = flags.DEFINE_integer(
    "short_side",
    0,
    "Shrink images with a longer short side to so many pixels; 0 keeps the bytes as they are.",
    flag_values=FLAGS,
)
_JPEG_QUALITY = flags.DEFINE_integer(
    "jpeg_quality", 90, "Quality of images that are shrunk, 1 to 95.", flag_values=FLAGS
)
_MAX_BROKEN_SHARE = flags.DEFINE_float(
    "max_broken_share", 0.01, "Largest tolerated share of unusable entries.", flag_values=FLAGS
)
_REFUSE_DAMAGED = flags.DEFINE_bool(
    "refuse_damaged",
    False,
    "Leave out images that can be decoded although part of them is damaged, as check_data.py names them.",
    flag_values=FLAGS,
)
_DEMO = flags.DEFINE_bool("demo", False, "Draw the demonstration data instead of reading a corpus.", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the demonstration data.", flag_values=FLAGS)
define_corpus_flags(FLAGS)

_NOT_OF_DEMO = (
    *CORPUS_FLAGS,
    "vocabulary",
    "shards",
    "processes",
    "beam_options",
    "short_side",
    "jpeg_quality",
    "refuse_damaged",
    "max_broken_share",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares what the flags say and prints what was written; returns the exit status."""
    return run(_work, argv, stopped="stopped; the same command goes on: finished shards are kept")


def _work(arguments: Sequence[str]) -> None:
    parse(FLAGS, arguments, __doc__)
    print(_prepare().table())


def _prepare() -> Preparation:
    if not _OUTPUT.value:
        raise UserError("--output is not set; name the folder that is to hold the dataset")
    if _DEMO.value:
        _refuse_beside_demo()
        return Preparation(tuple(write_demonstration(_OUTPUT.value, _SEED.value)))
    settings = Settings(
        shards=_SHARDS.value,
        max_broken_share=_MAX_BROKEN_SHARE.value,
        short_side=_SHORT_SIDE.value,
        jpeg_quality=_JPEG_QUALITY.value,
        refuse_damaged=_REFUSE_DAMAGED.value,
    )
    return prepare(corpus_from_flags(FLAGS), _OUTPUT.value, settings, vocabulary=_VOCABULARY.value, run=_runner())


def _refuse_beside_demo() -> None:
    if unwanted := given(FLAGS, _NOT_OF_DEMO):
        raise UserError(f"--demo draws its own data and has no use for {', '.join(unwanted)}; leave that out")


def _runner() -> Runner:
    if not _BEAM_OPTIONS.value:
        return in_processes(_PROCESSES.value)
    if given(FLAGS, ["processes"]):
        raise UserError(
            "--processes and --beam_options are both set; with Beam its own options say how many workers "
            "there are. Set one of the two"
        )
    return in_beam(_BEAM_OPTIONS.value)


if __name__ == "__main__":
    sys.exit(main())
