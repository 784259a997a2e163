"""The configuration: a ConfigDict goes in, frozen dataclasses come out.

This is the only reader of ConfigDict. All unknown keys, missing keys, wrong types and contradictions of a configuration
are reported together in one `UserError`.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ml_collections

from r2d2_jax.config.data import DataConfig, data_contradictions
from r2d2_jax.config.model import ModelConfig, model_contradictions
from r2d2_jax.config.run import (
    EvaluationConfig,
    InitialWeightsConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    evaluation_contradictions,
    initial_contradictions,
    mesh_contradictions,
    optimizer_contradictions,
    train_contradictions,
)
from r2d2_jax.config.tasks import (
    LossConfig,
    MatchingConfig,
    RetrievalConfig,
    loss_contradictions,
    matching_contradictions,
    retrieval_contradictions,
)
from r2d2_jax.errors import UserError, bulleted


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    task: "pretraining", whose terms are in `loss`, or "retrieval" or "matching", whose terms are in the block of that
        name.
    """

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    task: str = "pretraining"
    loss: LossConfig = field(default_factory=LossConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    initial: InitialWeightsConfig = field(default_factory=InitialWeightsConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def terms(self) -> LossConfig | RetrievalConfig | MatchingConfig:
        """The block of the configured task's terms."""
        return getattr(self, TERMS[self.task][0])

    @classmethod
    def from_config_dict(cls, config: ml_collections.ConfigDict) -> "Config":
        """Reads and checks a whole configuration.

        Raises:
            UserError: names every unknown or missing key, wrong type and contradiction, in one message.
        """
        values = config.to_dict()
        problems = list(_former_remat(values.get("model")))
        resolved = _read(cls, values, "", problems)
        if not problems:
            problems = list(_contradictions(resolved))
        if problems:
            raise UserError(
                f"the configuration has {len(problems)} problem(s); correct them in the config file or with "
                f"--config.KEY=VALUE:\n{bulleted(problems)}"
            )
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON values, tuples as lists."""
        return typing.cast(dict[str, Any], _plain(dataclasses.asdict(self)))


def model_config(values: Any, name: str = "the model") -> ModelConfig:
    """The sizes of a model from the plain values that `dataclasses.asdict` and JSON made of them.

    Args:
        values: nested dicts. What a run's backward pass computes again says nothing of its model: it is left out, and
            so runs and models open that say it in former words.
        name: of the model, for messages.

    Raises:
        UserError: names every unknown or missing key, wrong type and contradiction, in one message.
    """
    problems: list[str] = []
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in ("remat", "remat_keeps")}
    resolved = _read(ModelConfig, values, "model.", problems)
    if not problems:
        problems = list(model_contradictions(resolved))
    if problems:
        raise UserError(f"the sizes of {name} are wrong; convert or copy it again:\n{bulleted(problems)}")
    return resolved


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Adds every key that a config leaves at its default, because flags can only override keys that are there."""

    def fill(values: ml_collections.ConfigDict, cls: type) -> None:
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[f.name]):
                if f.name not in values:
                    values[f.name] = ml_collections.ConfigDict()
                if isinstance(values[f.name], ml_collections.ConfigDict):
                    fill(values[f.name], typing.cast(type, hints[f.name]))
            elif f.name not in values and f.default is not dataclasses.MISSING:
                values[f.name] = f.default

    fill(config, Config)
    return config


def _former_remat(model: Any) -> Iterator[str]:
    """Replaces the former keys, a bool `remat` and `remat_keeps`, and yields what to write instead of them."""
    if isinstance(model, dict) and ("remat_keeps" in model or isinstance(model.get("remat"), bool)):
        word = "products" if model.pop("remat_keeps", None) == "products" else "all"
        model["remat"] = "none" if model.get("remat", False) in (False, "none") else word
        yield (
            "model.remat is a word now, no longer True or False, and there is no model.remat_keeps; instead of both "
            f"write remat={model['remat']!r}"
        )


Dataclass = TypeVar("Dataclass")


def _read(cls: type[Dataclass], values: Any, where: str, problems: list[str]) -> Dataclass:
    """Builds a dataclass from a dict, appending to `problems`; what it returns is of use only if there are none."""
    if not isinstance(values, dict):
        problems.append(f"{where.rstrip('.')} is {values!r}; expected a block of keys")
        values = {}
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in sorted(set(values) - set(fields)):
        problems.append(f"unknown key {where}{name}; known here: {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, declared in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], f"{where}{name}", problems)
        elif declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
            problems.append(f"missing key {where}{name} ({_type_name(hints[name])})")
            arguments[name] = None
    return cls(**arguments)


def _value(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read(typing.cast(type, kind), value, f"{where}.", problems)
    if kind is float and type(value) is int:
        return float(value)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[-1] is Ellipsis and isinstance(value, (list, tuple)):
            parts = parts[:1] * len(value)
        if isinstance(value, (list, tuple)) and len(value) == len(parts):
            return tuple(_value(part, item, where, problems) for part, item in zip(parts, value, strict=True))
    elif type(value) is kind:
        return value
    problems.append(f"{where} is {value!r} of type {type(value).__name__}; expected {_type_name(kind)}")
    return value


def _type_name(kind: Any) -> str:
    return str(kind) if isinstance(kind, types.GenericAlias) else kind.__name__


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _contradictions(config: Config) -> Iterator[str]:
    """Yields one sentence per value that is out of range or contradicts another."""
    yield from model_contradictions(config.model)
    yield from _task_contradictions(config)
    yield from optimizer_contradictions(config.optimizer)
    yield from train_contradictions(config.train)
    yield from data_contradictions(config.data)
    yield from mesh_contradictions(config.mesh)
    yield from initial_contradictions(config.initial)
    yield from _choice_contradictions(config)
    if config.task in TERMS:
        match_heads = config.terms.fgr and config.model.cross.layers != 0
        yield from evaluation_contradictions(config.evaluation, match_heads=match_heads)


def _choice_contradictions(config: Config) -> Iterator[str]:
    """What a run needs to choose its best weights on validation."""
    data, train = config.data, config.train
    if data.test_split and not train.keep_best:
        yield "data.test_split is set and train.keep_best is 0; the best weights are tested: expected 1 at least"
    if train.evaluate_every_epochs and not data.validation_split:
        yield "train.evaluate_every_epochs is set and data.validation_split is not; expected the name of a split"
    if config.task == "matching" and not data.validation_split:
        yield "task is 'matching' and data.validation_split is not set; expected a split of labelled pairs"
    if config.task == "matching" and data.foil_split:
        yield f"data.foil_split is {data.foil_split!r} and task is 'matching', which measures no foils; leave it out"


# Task -> the block of its terms, and what contradicts them.
TERMS: dict[str, tuple[str, Callable[[Any, ModelConfig, int], Iterator[str]]]] = {
    "pretraining": ("loss", loss_contradictions),
    "retrieval": ("retrieval", retrieval_contradictions),
    "matching": ("matching", matching_contradictions),
}


def _task_contradictions(config: Config) -> Iterator[str]:
    if config.task not in TERMS:
        yield f"task is {config.task!r}; expected one of {', '.join(TERMS)}"
        return
    for task, (block, contradictions) in TERMS.items():
        terms = getattr(config, block)
        if task == config.task:
            yield from contradictions(terms, config.model, config.train.batch_size)
        elif changed := [name for name, value in vars(type(terms)()).items() if getattr(terms, name) != value]:
            defaults = ", ".join(f"{block}.{name}={getattr(type(terms)(), name)}" for name in changed)
            yield f"{block} has terms of {task} and task is {config.task!r}; leave them out, or at {defaults}"
