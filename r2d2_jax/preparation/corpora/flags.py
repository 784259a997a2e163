"""The flags by which programs name a corpus."""

from collections.abc import Iterable

from absl import flags

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora import CORPORA, Corpus

_CORPUS = flags.DEFINE_string("corpus", "json_lines", f"What the files are: {', '.join(CORPORA)}.")
_IMAGES = flags.DEFINE_string("images", "", "Folder of the images, or of the archives that hold them.")
_ANNOTATIONS = flags.DEFINE_string(
    "annotations",
    "",
    'Folder of the published annotation files; for json_lines the file of lines like {"image": "a.jpg", "captions": '
    '["..."], "split": "train"}. docs/corpora.md says what each corpus needs.',
)
_TEXT_FIELDS = flags.DEFINE_list("text_fields", [], "Fields that hold an image's texts, where a corpus names several.")
CORPUS_FLAGS = ("corpus", "images", "annotations", "text_fields")


def given(names: Iterable[str]) -> list[str]:
    """Those of the flags that were set, each with its dashes."""
    return [f"--{name}" for name in names if not flags.FLAGS[name].using_default_value]


def corpus_from_flags() -> Corpus:
    """The corpus that the flags name.

    Raises:
        UserError: there is no such corpus, or it lacks something.
    """
    if _CORPUS.value not in CORPORA:
        raise UserError(f"--corpus={_CORPUS.value} is not known; expected one of {', '.join(CORPORA)}")
    return CORPORA[_CORPUS.value](_IMAGES.value, _ANNOTATIONS.value, _TEXT_FIELDS.value)
