"""Vocabulary files as people have them: what they mean to every reader, and that copies are the same file."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import transformers
from random_models import random_model

from r2d2_jax.convert.conversion import Form, open_model, write_model
from r2d2_jax.data.text.tokenizer import load_tokenizer, tokenizer_of
from r2d2_jax.errors import UserError
from r2d2_jax.vocabulary import (
    LARGEST,
    SPECIAL_TOKENS,
    Vocabulary,
    differences,
    find_vocabulary,
    read_vocabulary,
    vocabulary_in,
)

TEXTS = ["花草树木", "花", "\u2028花\u0085草", "a花ab", "草[UNK]树", "  ", "木\x0b花\x0c草\x1c树", "##a ## a"]


def lines(*tokens: str) -> bytes:
    return "".join(f"{token}\n" for token in (*SPECIAL_TOKENS, *tokens)).encode()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "vocab.txt"
    path.write_bytes(content)
    return path


# What transformers reads as we do.
SAME_IN_TRANSFORMERS = {
    "plain": (lines("花", "草"), 7),
    "a token twice": (lines("花", "草", "花", "树", *"甲乙丙丁"), 13),
    "the last token twice": (lines("花", "草", "花"), 8),
    "a special token twice": (lines("花", "[UNK]", "草"), 8),
    "a token three times": (lines("花", "花", "花", "草"), 9),
    "separators of lines that are tokens": (
        lines("花", "\u2028", "##\u2028", "\u0085", "\x0b", "\x0c", "\x1c", "树"),
        13,
    ),
    "a separator within a token": (lines("花", "a\u2028b", "a\x1c", "a", "草"), 10),
    "an empty line in the middle": (lines("花", "", "草", "", "树"), 10),
    "no line end at the end": (lines("花", "草")[:-1], 7),
    "CRLF": (lines("花", "草").replace(b"\n", b"\r\n"), 7),
    "blanks around tokens": (lines("花 ", " 草", "树\t", "木\u3000"), 9),
    "spaces of every kind": (lines("\u3000", "\u00a0", "花", "\ufeff", "\u200b"), 10),
}


@pytest.mark.parametrize("name", SAME_IN_TRANSFORMERS)
def test_size_and_ids_are_those_of_the_lines_and_of_transformers(tmp_path: Path, name: str) -> None:
    content, size = SAME_IN_TRANSFORMERS[name]
    path = written(tmp_path, content)
    tokenizer = load_tokenizer(str(path), 16, map_punctuation=False)
    assert (tokenizer.vocab_size, len(read_vocabulary(path))) == (size, size)
    theirs = transformers.BertTokenizer(str(path), split_special_tokens=True)
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    np.testing.assert_array_equal(tokenizer(TEXTS)[0], expected)
    assert {theirs.get_vocab()[token] for token in SPECIAL_TOKENS} == set(tokenizer.special_ids)


# What is meant, and what transformers takes for tokens.
MEANT = {
    "a byte-order mark": b"\xef\xbb\xbf" + lines("花", "草"),
    "a blank last line": lines("花", "草") + b"\n",
    "three blank last lines, one of blanks": lines("花", "草") + b"\n \t\n\n",
    "all of it with CRLF": b"\xef\xbb\xbf" + lines("花", "草").replace(b"\n", b"\r\n") + b"\r\n\r\n",
    "CR alone": lines("花", "草").replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("name", MEANT)
def test_a_file_is_read_as_it_is_meant(tmp_path: Path, name: str) -> None:
    plain, odd = Vocabulary((*SPECIAL_TOKENS, "花", "草")), read_vocabulary(written(tmp_path, MEANT[name]))
    assert (odd, len(odd)) == (plain, 7)
    tokenizer = load_tokenizer(str(tmp_path), 16)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    np.testing.assert_array_equal(tokenizer(TEXTS)[0], tokenizer_of(plain, 16)(TEXTS)[0])


@pytest.mark.parametrize("name", MEANT | SAME_IN_TRANSFORMERS)
def test_a_model_keeps_the_file_byte_by_byte(tmp_path: Path, name: str) -> None:
    content = (MEANT | {name: content for name, (content, _) in SAME_IN_TRANSFORMERS.items()})[name]
    path = written(tmp_path, content)
    write_model(random_model(layers=1, cross_layers=0), tmp_path / "model")
    if len(read_vocabulary(path)) > 11:
        with pytest.raises(UserError, match="the vocabulary has 13 tokens and the model 11 word embeddings"):
            open_model(tmp_path / "model", vocabulary=path)
        return
    write_model(open_model(tmp_path / "model", vocabulary=path), tmp_path / "ours")
    write_model(open_model(tmp_path / "ours"), tmp_path / "again")
    assert (tmp_path / "again" / "vocab.txt").read_bytes() == content


@pytest.mark.parametrize("name", MEANT)
def test_an_exported_vocabulary_is_read_alike_by_transformers(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, MEANT[name])
    write_model(random_model(layers=1, cross_layers=0), tmp_path / "model")
    write_model(open_model(tmp_path / "model", vocabulary=path), tmp_path / "hf", Form.TRANSFORMERS)
    assert (tmp_path / "hf" / "vocab.txt").read_bytes() == lines("花", "草")
    theirs = transformers.BertTokenizer(str(tmp_path / "hf" / "vocab.txt"))
    np.testing.assert_array_equal(
        theirs(TEXTS[:2], padding="max_length", max_length=7)["input_ids"],
        load_tokenizer(str(path), 7)(TEXTS[:2])[0],
    )


def test_the_published_vocabulary_keeps_its_odd_lines(shared: Path, tmp_path: Path) -> None:
    path = shared / "tokenizer" / "vocab.txt"
    vocabulary = load_tokenizer(str(path), 8).vocabulary
    assert (len(vocabulary), vocabulary.content) == (21128, path.read_bytes())
    assert vocabulary.content.decode().split("\n")[343] == "\u2028"
    assert vocabulary == pickle.loads(pickle.dumps(vocabulary)) == Vocabulary(vocabulary)


REFUSED = {
    "GBK": (lines("花").decode().encode("gbk"), r"cannot be read \('utf-8' codec can't decode .* in UTF-8"),
    "UTF-16": (lines("花").decode().encode("utf-16"), r"cannot be read \('utf-8' codec can't decode .* in UTF-8"),
    "UTF-16 without a mark": (lines("a").decode().encode("utf-16-le"), r"has no \[PAD\], \[UNK\], "),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a Git LFS pointer, not the file that it stands for; run `git lfs pull`",
    ),
    "JSON": (b'{"[PAD]": 0, "[UNK]": 1}', r"has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]; expected a WordPiece"),
    "nothing": (b"", r"has no \[PAD\], \[UNK\], "),
    "blank lines": (b"\n\n\n", r"has no \[PAD\], \[UNK\], "),
    "no [MASK]": (lines("花").replace(b"[MASK]\n", b""), r"has no \[MASK\]; expected a WordPiece vocabulary with"),
    "no [UNK]": (lines("花").replace(b"[UNK]", b"<unk>"), r"has no \[UNK\]; expected a WordPiece vocabulary with"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_vocabulary_is_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    path = written(tmp_path, content)
    write_model(random_model(layers=1, cross_layers=0), tmp_path / "model")
    for read in (
        lambda: load_tokenizer(str(path), 8),
        lambda: vocabulary_in(tmp_path),
        lambda: open_model(tmp_path / "model", vocabulary=path),
    ):
        with pytest.raises(UserError, match=f"{path} {message}"):
            read()


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match=r"model.bin cannot be read \(larger than 64 MiB\)"):
        read_vocabulary(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").mkdir()
    with pytest.raises(UserError, match=r"vocab.txt cannot be read \(.*Is a directory"):
        vocabulary_in(tmp_path)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/vocab.txt", "x" * 5000 + "/vocab.txt", "/dev/null", "a\0b.txt"])
def test_names_of_no_file(name: str) -> None:
    with pytest.raises(UserError, match="does not exist; expected a WordPiece vocab.txt"):
        find_vocabulary(name)


def test_the_first_lines_that_differ() -> None:
    there, here = Vocabulary((*SPECIAL_TOKENS, *"花草树")), Vocabulary((*SPECIAL_TOKENS, *"草花树木"))
    assert differences(there, here) == (
        "  - line 6: '花' there, '草' here\n  - line 7: '草' there, '花' here\n  - line 9: nothing there, '木' here"
    )
    many = Vocabulary((*SPECIAL_TOKENS, *map(str, range(100))))
    assert len(differences(there, many).split("\n")) == 10


def test_a_vocabulary_in_memory_must_be_one() -> None:
    with pytest.raises(UserError, match=r"vocabulary in memory has no \[MASK\]"):
        tokenizer_of(SPECIAL_TOKENS[:4], 8)


def test_a_model_is_not_read_with_another_vocabulary(tmp_path: Path) -> None:
    model = random_model(layers=1, cross_layers=0, tokens=(*SPECIAL_TOKENS, *"花草"))
    write_model(model, tmp_path / "model")
    same = written(tmp_path, b"\xef\xbb\xbf" + lines("花", "草").replace(b"\n", b"\r\n"))
    assert open_model(tmp_path / "model", vocabulary=same).vocabulary == model.vocabulary
    other = written(tmp_path, lines("草", "花"))
    message = (
        r"trained with .*model/vocab.txt, and .*vocab.txt is another vocabulary; leave it out or(.|\n)*line 6: '花'"
    )
    with pytest.raises(UserError, match=message):
        open_model(tmp_path / "model", vocabulary=other)


def test_a_vocabulary_that_was_cut_short_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2d2_jax.convert.conversion.FILLED_UP", 4)
    write_model(random_model(layers=1, cross_layers=0, tokens=(*SPECIAL_TOKENS, *"花草树木红蓝")), tmp_path / "model")
    assert open_model(tmp_path / "model").notes == ()
    written(tmp_path / "model", lines("花", "草", "树"))
    assert open_model(tmp_path / "model").notes == ()
    written(tmp_path / "model", lines("花", "草"))
    (note,) = open_model(tmp_path / "model").notes
    assert note == (
        f"{tmp_path}/model/vocab.txt has 7 tokens for 11 word embeddings: a token that it lacks becomes [UNK]"
    )
