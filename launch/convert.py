"""Converts models between published PyTorch checkpoints, ours, transformers and
ONNX, and proves that they agree.

    python launch/convert.py --input=r2d2_vitl.pth --output=models/r2d2_vitl \\
        --vocabulary=vocab.txt --verify
    python launch/convert.py --input=models/r2d2_vitl --output=exports/onnx \\
        --format=onnx --verify
    python launch/convert.py --input=r2d2_vitl.pth --verify

Exit status: 1 if a stage differs by more than the limit, 2 on bad input.
"""

import logging
import sys
from collections.abc import Sequence

import jax
from absl import flags

from r2d2_jax.convert.conversion import STUDENT, TEACHER, Form, form_of, open_model, write_model, write_rest
from r2d2_jax.convert.verification import LIMIT, ParityReport, verify
from r2d2_jax.errors import UserError
from r2d2_jax.launch.program import parse, run
from r2d2_jax.paths import path_or_bucket

FLAGS = flags.FlagValues()
INPUT = flags.DEFINE_string(
    "input",
    None,
    "A published .pth or .safetensors, a converted or transformers folder, or a run's workdir.",
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where to write; a name in .pth or .safetensors is a published file.", flag_values=FLAGS
)
FORMAT = flags.DEFINE_enum_class(
    "format", None, Form, "Of the output; if not given, its name decides: file or folder.", flag_values=FLAGS
)
VERIFY = flags.DEFINE_bool("verify", False, "Compare with PyTorch or ONNX Runtime, stage by stage.", flag_values=FLAGS)
VERIFY_LIMIT = flags.DEFINE_float(
    "limit", LIMIT, "Largest absolute difference that --verify lets pass.", flag_values=FLAGS
)
WEIGHTS = flags.DEFINE_enum("weights", STUDENT, [STUDENT, TEACHER], "Which weights of a run.", flag_values=FLAGS)
REST = flags.DEFINE_string(
    "rest", None, "Also write a run's teacher, queue, optimizer and MLM head: a .safetensors.", flag_values=FLAGS
)
VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "The WordPiece vocab.txt of the model, or a folder or hub name with one, to be kept with it.",
    flag_values=FLAGS,
)
MAP_PUNCTUATION = flags.DEFINE_bool(
    "map_punctuation",
    None,
    "Trained on mapped punctuation; if not given, as the model says, or not if published.",
    flag_values=FLAGS,
)
IMAGE_HEADS = flags.DEFINE_integer(
    "image_heads", None, "Heads of the image tower; one per 64 channels if not given.", flag_values=FLAGS
)
TEXT_HEADS = flags.DEFINE_integer(
    "text_heads", None, "Heads of text tower and cross encoders; likewise.", flag_values=FLAGS
)
flags.mark_flag_as_required("input", flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Converts and verifies what the flags say; returns the exit status."""
    return run(_work, argv, level=logging.WARNING)


def _work(arguments: Sequence[str]) -> int:
    parse(FLAGS, arguments, __doc__)
    jax.config.update("jax_platforms", "cpu")
    report = converted()
    if report is None:
        return 0
    print(report.table())
    return 0 if report.first_broken is None else 1


def converted() -> ParityReport | None:
    """Reads, writes and verifies as the flags say; the report, if one was asked for."""
    source, target = path_or_bucket(str(INPUT.value)), path_or_bucket(OUTPUT.value) if OUTPUT.value else None
    if not (target or VERIFY.value or REST.value):
        raise UserError("there is nothing to do; expected --output, --verify or --rest")
    model = open_model(
        source,
        weights=WEIGHTS.value,
        image_heads=IMAGE_HEADS.value,
        text_heads=TEXT_HEADS.value,
        vocabulary=path_or_bucket(VOCABULARY.value) if VOCABULARY.value else None,
        map_punctuation=MAP_PUNCTUATION.value,
    )
    form = (FORMAT.value or form_of(target)) if target else None
    if target:
        if form == Form.ONNX:
            _say("exporting the graphs: seconds for a small model, minutes for a large one")
        write_model(model, target, form)
    if REST.value:
        write_rest(source, path_or_bucket(REST.value))
    if model.notes:
        print(f"{source}: {'; '.join(model.notes)}")
    print(f"{target or source}: {model.summary()}")
    if not VERIFY.value:
        return None
    _say(f"comparing with {'ONNX Runtime' if form == Form.ONNX else 'PyTorch'}")
    return verify(model, source, target, form, VERIFY_LIMIT.value)


def _say(what: str) -> None:
    print(what, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
