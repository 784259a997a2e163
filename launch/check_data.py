"""Says what is in a corpus or a prepared dataset, and whether training on it
should start.

    python launch/check_data.py --images=photos --annotations=captions.jsonl \\
        --vocabulary=vocab.txt
    python launch/check_data.py --data=data/mine --processes=8 --json=check.json

Exit status: 0 if training can start, 1 if an error should be mended first, 2
for bad input. docs/check_data.md says what is measured.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from r2d2_jax.cores import allowed_cores
from r2d2_jax.errors import UserError
from r2d2_jax.launch.corpus_flags import CORPUS_FLAGS, corpus_from_flags, define_corpus_flags, given
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import parse, run
from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.report import CheckSettings, Report
from r2d2_jax.preparation.checks.sources import CorpusSource, DatasetSource, Source, vocabulary_of
from r2d2_jax.preparation.checks.table import as_json, table

FLAGS = flags.FlagValues()
_DATA = flags.DEFINE_string(
    "data", "", "Folder of a prepared dataset, which is then checked instead of a corpus.", flag_values=FLAGS
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    "",
    "A WordPiece vocab.txt, a folder that holds one, or a hub name; by default that in --data.",
    flag_values=FLAGS,
)
_TEXT_LENGTH = flags.DEFINE_integer("text_length", 64, "Tokens to which training cuts a text.", flag_values=FLAGS)
_MAP_PUNCTUATION = flags.DEFINE_bool(
    "map_punctuation", True, "As config.data.map_punctuation in training.", flag_values=FLAGS
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images in training, in pixels.", flag_values=FLAGS)
_HOSTS = flags.DEFINE_integer("hosts", 1, "Number of hosts that will train.", flag_values=FLAGS)
_MAX_BROKEN_SHARE = flags.DEFINE_float(
    "max_broken_share", 0.01, "Largest tolerated share of unusable entries.", flag_values=FLAGS
)
_MAX_UNKNOWN_SHARE = flags.DEFINE_float(
    "max_unknown_share", 0.05, "Largest tolerated share of [UNK] among tokens.", flag_values=FLAGS
)
_PROCESSES = flags.DEFINE_integer("processes", allowed_cores(), "Number of processes that read.", flag_values=FLAGS)
_JSON = flags.DEFINE_string("json", "", "File to write the report to as JSON.", flag_values=FLAGS)
_WORK = flags.DEFINE_string("work", "", "Folder for temporary files; by default the system's own.", flag_values=FLAGS)
define_corpus_flags(FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the data that the flags name and prints the report; returns the exit status."""
    return run(_work, argv, stopped="stopped; there is no report, and the temporary files were removed")


def _work(arguments: Sequence[str]) -> int:
    parse(FLAGS, arguments, __doc__)
    report = _check()
    if _JSON.value:
        write_json(as_json(report), _JSON.value)
    print(table(report))
    return report.status


def _check() -> Report:
    open_source, name = _source()
    settings = CheckSettings(
        vocabulary=_VOCABULARY.value or (vocabulary_of(_DATA.value) if _DATA.value else None),
        text_length=_TEXT_LENGTH.value,
        image_size=_IMAGE_SIZE.value,
        hosts=_HOSTS.value,
        max_broken_share=_MAX_BROKEN_SHARE.value,
        max_unknown_share=_MAX_UNKNOWN_SHARE.value,
        map_punctuation=_MAP_PUNCTUATION.value,
    )
    if _JSON.value:
        check_json_path(_JSON.value)
    return check(open_source, name, settings, processes=_PROCESSES.value, work=_WORK.value)


def _source() -> tuple[Callable[[Path], Source], str]:
    if not _DATA.value:
        corpus = corpus_from_flags(FLAGS)
        return functools.partial(CorpusSource, corpus), f"corpus {corpus.name}"
    if named := given(FLAGS, CORPUS_FLAGS):
        raise UserError(f"--data and {named[0]} are both given; expected a prepared dataset or a corpus, not both")
    return lambda folder: DatasetSource(_DATA.value), f"dataset {_DATA.value}"


if __name__ == "__main__":
    sys.exit(main())
