"""Says what is in a corpus or a prepared dataset, and whether training on it should start.

    python launch/check_data.py --images=photos --annotations=captions.jsonl --vocabulary=vocab.txt
    python launch/check_data.py --data=data/mine --processes=8 --json=check.json

Exit status: 0 if training can start, 1 if an error should be mended first, 2 for bad input. docs/check_data.md says
what is measured.
"""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.report import CheckSettings, Report
from r2d2_jax.preparation.checks.sources import CorpusSource, DatasetSource, Source, vocabulary_of
from r2d2_jax.preparation.checks.table import check_json_path, table, write_json
from r2d2_jax.preparation.corpora.flags import CORPUS_FLAGS, corpus_from_flags, given

_DATA = flags.DEFINE_string("data", "", "Folder of a prepared dataset, which is then checked instead of a corpus.")
_VOCABULARY = flags.DEFINE_string(
    "vocabulary", "", "A WordPiece vocab.txt, a folder that holds one, or a hub name; by default that in --data."
)
_TEXT_LENGTH = flags.DEFINE_integer("text_length", 64, "Tokens to which training cuts a text.")
_MAP_PUNCTUATION = flags.DEFINE_bool("map_punctuation", True, "As config.data.map_punctuation in training.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images in training, in pixels.")
_HOSTS = flags.DEFINE_integer("hosts", 1, "Number of hosts that will train.")
_MAX_BROKEN_SHARE = flags.DEFINE_float("max_broken_share", 0.01, "Largest tolerated share of unusable entries.")
_MAX_UNKNOWN_SHARE = flags.DEFINE_float("max_unknown_share", 0.05, "Largest tolerated share of [UNK] among tokens.")
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count() or 1, "Number of processes that read.")
_JSON = flags.DEFINE_string("json", "", "File to write the report to as JSON.")
_WORK = flags.DEFINE_string("work", "", "Folder for temporary files; by default the system's own.")


def main(arguments: Sequence[str]) -> None:
    """Checks the flags, checks the data, and prints the report."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("absl").setLevel(logging.WARNING)  # TFDS tells of every look at the dataset
    try:
        if len(arguments) > 1:
            raise UserError(f"unknown argument {arguments[1]!r}; every setting is a flag, like --data=FOLDER")
        report = _check()
        print(table(report))
        if _JSON.value:
            write_json(report, _JSON.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; there is no report, and the temporary files were removed", file=sys.stderr)
        sys.exit(130)
    sys.exit(report.status)


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
        corpus = corpus_from_flags()
        return functools.partial(CorpusSource, corpus), f"corpus {corpus.name}"
    if named := given(CORPUS_FLAGS):
        raise UserError(f"--data and {named[0]} are both given; expected a prepared dataset or a corpus, not both")
    return lambda folder: DatasetSource(_DATA.value), f"dataset {_DATA.value}"


if __name__ == "__main__":
    app.run(main)
