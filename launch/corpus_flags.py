"""The flags by which programs name a corpus."""

from collections.abc import Iterable

from absl import flags

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora import CORPORA, Corpus

CORPUS_FLAGS = ("corpus", "images", "annotations", "text_fields")


def define_corpus_flags(flag_values: flags.FlagValues) -> None:
    """Adds `CORPUS_FLAGS` to the flags of a program."""
    known = ", ".join(CORPORA)
    flags.DEFINE_string("corpus", "json_lines", f"What the files are: {known}.", flag_values=flag_values)
    flags.DEFINE_string(
        "images", "", "Folder of the images, or of the archives that hold them.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "annotations",
        "",
        'Folder of the published annotation files; for json_lines the file of lines like {"image": "a.jpg", '
        '"captions": ["..."], "split": "train"}. docs/corpora.md says what each corpus needs.',
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "text_fields",
        [],
        "Fields that hold an image's texts, where a corpus names several.",
        flag_values=flag_values,
    )


def given(flag_values: flags.FlagValues, names: Iterable[str]) -> list[str]:
    """Those of the flags that were set, each with its dashes."""
    return [f"--{name}" for name in names if not flag_values[name].using_default_value]


def corpus_from_flags(flag_values: flags.FlagValues) -> Corpus:
    """The corpus that the flags name.

    Raises:
        UserError: there is no such corpus, or it lacks something.
    """
    if flag_values.corpus not in CORPORA:
        raise UserError(f"--corpus={flag_values.corpus} is not known; expected one of {', '.join(CORPORA)}")
    return CORPORA[flag_values.corpus](flag_values.images, flag_values.annotations, flag_values.text_fields)
