"""Opens a model from any of its forms on disk, and writes it in any of them."""

import dataclasses
import enum
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from r2d2_jax.buckets.transfer import on_disk
from r2d2_jax.config.reading import model_config
from r2d2_jax.convert.naming import check_finite
from r2d2_jax.convert.tensor_files import INDEX, SUFFIXES, write_tensors
from r2d2_jax.convert.torch_r2d2 import from_published, read_published, to_published
from r2d2_jax.convert.transformers_folder import is_transformers, load_transformers, save_transformers
from r2d2_jax.convert.wrappings import listed
from r2d2_jax.errors import UserError
from r2d2_jax.extras import ONNX, require
from r2d2_jax.lineage import of_checkpoint, unrecorded
from r2d2_jax.models.store import Model, is_model, load_model, save_model
from r2d2_jax.runs import last_evaluation, load_state
from r2d2_jax.trees import flat
from r2d2_jax.vocabulary import Vocabulary, differences, find_vocabulary, read_vocabulary, vocabulary_in

STUDENT, TEACHER = "student", "teacher"
FILLED_UP = 128  # many fill word embeddings up to a multiple of this or less; fewer tokens than that are worth a note


class Form(enum.StrEnum):
    """How a model lies on disk."""

    OURS = "ours"  # a folder of `save_model`
    PUBLISHED = "published"  # a PyTorch or safetensors file with the published names
    TRANSFORMERS = "transformers"  # a folder of `save_transformers`
    ONNX = "onnx"  # a folder of `save_onnx`


def open_model(
    path: Path,
    *,
    weights: str = STUDENT,
    step: int | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    vocabulary: Path | None = None,
    map_punctuation: bool | None = None,
) -> Model:
    """Opens a published checkpoint, a model that was converted before, or a checkpoint of a run.

    Of a run it is the newest, or the best on validation where the run chooses; a note says which.

    Args:
        path: a `.pth` or `.safetensors` file, a folder of `save_model` or of `save_transformers`, or the --workdir of a
            run.
        weights: which parameters of a run: STUDENT, or TEACHER, the momentum teacher where it has its own.
        step: another checkpoint of a run.
        image_heads, text_heads: heads in a published checkpoint, see `from_published`.
        vocabulary: the model's WordPiece vocabulary, a file, a folder that holds one, or a hub name; None keeps the one
            that lies beside the model.
        map_punctuation: whether the model was trained on mapped punctuation, which a published file does not record;
            None keeps what the model records.

    Raises:
        UserError: there is no such model, it is damaged, its weights are not finite, or the vocabulary is not the one
            beside the model or does not fit the word embeddings.
    """
    if is_run(path):
        model = open_run(path, weights=weights, step=step).model
    else:
        with on_disk(str(path)) as copy:
            model = _of_files(Path(copy), image_heads, text_heads)
    if weights != STUDENT and not is_run(path):
        raise UserError(f"weights is {weights!r}, which only a run has; {path} holds one set: leave weights out")
    if step is not None and not is_run(path):
        raise UserError(f"step is {step}, which only a run has; {path} holds one set of weights: leave it out")
    if (image_heads is not None or text_heads is not None) and not is_published(path):
        raise UserError(f"heads are given, which only a published file does not say; {path} does: leave them out")
    if vocabulary is not None:
        given = read_vocabulary(find_vocabulary(str(vocabulary)))
        _check_the_same(model.vocabulary, given)
        model = dataclasses.replace(model, vocabulary=given)
    if map_punctuation is not None:
        model = dataclasses.replace(model, maps_punctuation=map_punctuation)
    check_vocabulary(model)
    return dataclasses.replace(model, notes=(*model.notes, *_fewer_tokens(model)))


def _of_files(path: Path, image_heads: int | None, text_heads: int | None) -> Model:
    """A model that is no run's."""
    if is_published(path):
        file = read_published(path)
        model = from_published(file.tensors, str(path), image_heads=image_heads, text_heads=text_heads)
        return dataclasses.replace(model, notes=file.notes, lineage=(unrecorded(path.name),))
    if is_model(path):
        model = load_model(path)
        check_finite(dict(flat(model.params)), str(path))
        return model
    if is_transformers(path):
        return load_transformers(path)
    raise UserError(
        f"{path} is no model; expected a published .pth or .safetensors, a folder that launch/convert.py wrote (ONNX "
        f"excepted), or the --workdir of a run{_meant_by(path)}"
    )


def is_run(path: Path) -> bool:
    """Whether a path is the --workdir of a run that has begun to save."""
    return (path / "checkpoints").is_dir()


def _meant_by(path: Path) -> str:
    """A hint at what could have been meant: the run in which a folder lies, or the files in it."""
    for folder in (path, *path.parents):
        if folder.name == "checkpoints" and any(step.name.isdecimal() for step in folder.glob("*/")):
            return f". It lies in a run: name {folder.parent}"
    files = sorted(file.name for file in path.glob("*") if file.suffix in SUFFIXES or file.name.endswith(INDEX))
    return f". It holds {listed(files)}: name the file itself" if files else ""


def is_published(path: Path) -> bool:
    """Whether a name is that of a file with the published names."""
    return path.is_file() or path.suffix in SUFFIXES


def form_of(path: Path) -> Form:
    """The form to write under a name: a published file if the name ends like one, else a folder of ours."""
    return Form.PUBLISHED if path.suffix in SUFFIXES else Form.OURS


def write_model(model: Model, path: Path, form: Form | None = None) -> None:
    """Writes a model, whole or not at all.

    Args:
        model: the model.
        path: where to; there must be nothing yet.
        form: None means `form_of(path)`.

    Raises:
        UserError: there is something already, it cannot be written, the name does not fit the form, or the model lacks
            what the form needs.
    """
    form = form or form_of(path)
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or remove it first")
    if form != Form.PUBLISHED and path.suffix in SUFFIXES:
        raise UserError(f"{path} is the name of a file and the form {form} is a folder; leave out {path.suffix}")
    if form == Form.PUBLISHED:
        write_tensors(path, to_published(model))
    elif form == Form.TRANSFORMERS:
        save_transformers(model, path)
    elif form == Form.ONNX:
        require(ONNX, "an ONNX export", "onnx")
        from r2d2_jax.convert.onnx_folder import save_onnx

        save_onnx(model, path)
    else:
        save_model(model, path)


def write_rest(workdir: Path, path: Path) -> None:
    """Writes the part of the checkpoint that `open_model` reads that no published file holds, by our names.

    That is teacher, queue, optimizer state, feature mean, step, and the masked-language-model head.

    Args:
        workdir: the run's folder.
        path: a `.safetensors` file.

    Raises:
        UserError: there is no checkpoint, or the file cannot be written.
    """
    state = load_state(workdir).state
    params = {name: value for name, value in state.pop("params").items() if name == "masked_lm_head"}
    kept = {**(state.pop("memory") or {}), **state, "params": params}
    leaves = dict(flat({name: _as_dicts(value) for name, value in kept.items()}))
    write_tensors(path, {name: np.asarray(leaf) for name, leaf in leaves.items() if leaf is not None})


def check_vocabulary(model: Model) -> None:
    """Raises UserError if the vocabulary has more tokens than there are word embeddings."""
    tokens, rows = model.vocabulary, model.config.text.vocabulary_size
    if tokens is not None and len(tokens) > rows:
        raise UserError(
            f"the vocabulary has {len(tokens)} tokens and the model {rows} word embeddings; name the vocab.txt "
            f"that the model was trained with in place of {tokens.name}"
        )


def _fewer_tokens(model: Model) -> list[str]:
    """A note on a vocabulary that may have been cut short."""
    tokens, rows = model.vocabulary, model.config.text.vocabulary_size
    if tokens is None or rows - len(tokens) < FILLED_UP:
        return []
    return [f"{tokens.name} has {len(tokens)} tokens for {rows} word embeddings: a token that it lacks becomes [UNK]"]


def _check_the_same(kept: Vocabulary | None, given: Vocabulary) -> None:
    if kept is not None and kept != given:
        raise UserError(
            f"the model was trained with {kept.name}, and {given.name} is another vocabulary; leave it out or, if it "
            f"is the right one, put it in the place of {kept.name}. What differs first:\n{differences(kept, given)}"
        )


class OpenedRun(NamedTuple):
    """A run as `open_run` finds it.

    model: as `open_model` opens it. config: the configuration, as `Config.to_dict` gave it.
    figures: of the last evaluation, by the names of the log; empty before there is one.
    measured_at: the step that the figures describe.
    """

    model: Model
    config: dict[str, Any]
    figures: dict[str, float]
    measured_at: int | None


def open_run(workdir: Path, *, weights: str = STUDENT, step: int | None = None) -> OpenedRun:
    """A model of a run, with the configuration and the last evaluation of the run.

    Raises:
        UserError: as `open_model`.
    """
    if weights not in (STUDENT, TEACHER):
        raise UserError(f"weights is {weights!r}; expected {STUDENT!r} or {TEACHER!r}")
    state, config, note = load_state(workdir, step)
    params = dict(state["params"])
    if weights == TEACHER:
        teacher = (state.get("memory") or {}).get("teacher")
        if not teacher:
            raise UserError(f"the run in {workdir} has no teacher; take the student's weights")
        params |= teacher
    sizes = dataclasses.replace(model_config(config["model"], f"the run in {workdir}"), dtype="float32")
    maps = config["data"]["map_punctuation"]
    notes = (f"read {note}",) if note else ()
    *before, own = of_checkpoint(workdir, config, int(state["step"]))
    lineage = (*before, own | {"weights": TEACHER} if weights == TEACHER else own)
    arrays, vocabulary = jax.tree.map(np.asarray, params), vocabulary_in(workdir)
    figures, measured_at = last_evaluation(workdir)
    evaluation = figures if weights == STUDENT and measured_at == int(state["step"]) else {}
    model = Model(sizes, arrays, {}, vocabulary, maps, notes, lineage, evaluation)
    check_finite(dict(flat(model.params)), str(workdir))
    check_vocabulary(model)
    return OpenedRun(model, config, figures, measured_at)


def _as_dicts(tree: Any) -> Any:
    """Lists and tuples as dicts by position, so that every leaf has a path."""
    if isinstance(tree, dict):
        return {str(name): _as_dicts(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return {str(position): _as_dicts(value) for position, value in enumerate(tree)}
    return tree
