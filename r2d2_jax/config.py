"""The configuration: a ConfigDict goes in, frozen dataclasses come out.

This is the only reader of ConfigDict. All unknown keys, missing keys, wrong types and contradictions of a configuration
are reported together in one `UserError`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ml_collections

from r2d2_jax.errors import UserError, bulleted


@dataclass(frozen=True)
class ImageTowerConfig:
    """Sizes of the image tower; `image_size` and `patch_size` in pixels."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int

    @property
    def patches(self) -> int:
        """How many patches an image has; with CLS, one more are its tokens."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextTowerConfig:
    """Sizes of the text tower; `text_length` is the `l` every text is padded or cut to."""

    vocabulary_size: int
    text_length: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int = 512
    token_types: int = 2


@dataclass(frozen=True)
class CrossEncoderConfig:
    """Sizes of each of the two cross encoders; `layers` 0 means that there are none (PRD2)."""

    layers: int
    width: int
    heads: int
    mlp_width: int


@dataclass(frozen=True)
class ModelConfig:
    """The whole model. `dtype` is that of the matrix products: bfloat16 on accelerators, float32 on CPU."""

    image: ImageTowerConfig
    text: TextTowerConfig
    cross: CrossEncoderConfig
    embed_size: int = 768
    temperature_init: float = 0.07
    temperature_range: tuple[float, float] = (0.001, 0.5)
    freeze_image_tower: bool = True
    dtype: str = "bfloat16"
    remat: bool = False
    unroll: bool = False


@dataclass(frozen=True)
class LossConfig:
    """Which terms there are and their constants.

    contrastive: "tgd" (GCPR with soft targets and queue) or "gcpr" (hard targets, no teacher, no queue).
    enhanced_training: one masked text forward serves every term; otherwise clean text, and an extra masked pass.
    soft_target_share: alpha, the share of the teacher in the target; reached linearly over `soft_target_ramp_epochs`.
    queue_length: `k`. queue_decay: what a queue entry's weight is multiplied with each step.
    mask_share: share of the tokens masked. teacher_momentum: of the exponential moving average.
    whole_word_masking: mask all tokens of a word together, as the text tower's own pre-training did (Cui et al.,
        "Pre-Training with Whole Word Masking for Chinese BERT", arXiv 1906.08101), not single tokens (article).
    match_class_weights: weights of (no match, match) in FGR's cross-entropy.
    """

    contrastive: str = "tgd"
    fgr: bool = True
    mlm: bool = True
    fgd: bool = True
    enhanced_training: bool = True
    soft_target_share: float = 0.4
    soft_target_ramp_epochs: float = 1.0
    queue_length: int = 36864
    queue_decay: float = 0.99
    mask_share: float = 0.15
    whole_word_masking: bool = False
    match_class_weights: tuple[float, float] = (1.0, 2.0)
    teacher_momentum: float = 0.995
    fgd_teacher_temperature: float = 0.04
    fgd_student_temperature: float = 0.1
    fgd_mean_momentum: float = 0.9

    @property
    def has_teacher(self) -> bool:
        """Whether any term distils from momentum weights."""
        return self.contrastive == "tgd" or self.fgd


@dataclass(frozen=True)
class DataConfig:
    """Where the records are and how they become batches.

    directory: the prepared data set. validation_split, foil_split: "" for none; a foil record's captions are the true
        one and the foil.
    corpora: prepared data sets that are trained on together, instead of `directory`'s training split; evaluation and
        vocabulary stay with `directory`. An epoch has as many rows as all of them have records.
    corpus_weights: the share of the rows that each of `corpora` gives, in any unit; a corpus with a larger share than
        it has records is repeated. () is by size: every record once an epoch.
    vocabulary: a WordPiece vocabulary file, a folder or a hub name; "" means `directory`/vocab.txt.
    map_punctuation: map Chinese quotation marks, ellipsis and dash, which RoBERTa-wwm's vocabulary lacks, to ASCII; off
        they become [UNK], as in the published model.
    augmentation: "crop_and_flip", or "random_augment": two random operations after these, as the published fine-tuning.
    crop_scale: range of the area share of the random resized crop. flip: mirror with probability 0.5.
    flip_exempt_directions: never mirror under a caption that says 左 or 右; no other operation swaps the two.
    augmentation_magnitude: of "random_augment", 0 to 10; 5 in the published code.
    workers: processes that decode; 0 decodes in the training process.
    max_broken_share: training stops when a larger share of the records read was unusable.
    validation_images: how many images of the validation split are used; 0 means all.
    """

    directory: str
    corpora: tuple[str, ...] = ()
    corpus_weights: tuple[float, ...] = ()
    train_split: str = "train"
    validation_split: str = "validation"
    foil_split: str = ""
    vocabulary: str = ""
    map_punctuation: bool = True
    augmentation: str = "crop_and_flip"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    flip_exempt_directions: bool = True
    augmentation_magnitude: float = 5.0
    workers: int = 0
    max_broken_share: float = 0.01
    validation_images: int = 0

    @property
    def magnitude(self) -> float | None:
        """The magnitude of the random operations; None if there are none."""
        return self.augmentation_magnitude if self.augmentation == "random_augment" else None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up to `learning_rate` and cosine decay to `final_learning_rate`."""

    learning_rate: float
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """The run: `batch_size` is global, in pairs; `epochs` counts visits to every image.

    The intervals are in steps; `evaluate_every` and `checkpoint_every` 0 mean once, at the end.
    """

    batch_size: int
    epochs: float
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    evaluate_every: int = 1000
    keep_last: int = 2
    keep_best: int = 1


@dataclass(frozen=True)
class MeshConfig:
    """Devices along the mesh's axes: the batch is split over both, parameters over `fsdp`. -1 takes what is left."""

    data: int = -1
    fsdp: int = 1


@dataclass(frozen=True)
class InitialWeightsConfig:
    """Where parameters come from before the first step; "" leaves them random.

    image: CLIP's image tower: a file, a folder of transformers, or a hub name. text: BERT or RoBERTa, likewise.
    model: a whole model instead: a published checkpoint, a converted folder, or another run's workdir.
    resize_positions: interpolate the image tower's position embeddings if they are for another image size.
    """

    image: str = ""
    text: str = ""
    model: str = ""
    resize_positions: bool = False


@dataclass(frozen=True)
class EvaluationConfig:
    """Retrieval on the validation split.

    rerank_candidates: how many of each query's nearest candidates the cross encoders re-rank; 0 means no re-ranking.
    rerank_during_training: also re-rank in the evaluations before the last one.
    batch_size: images, texts or pairs per forward.
    """

    rerank_candidates: int = 16
    rerank_during_training: bool = True
    batch_size: int = 64

    @property
    def compared_by(self) -> str:
        """The stage of retrieval that every evaluation of a run measures, so that its checkpoints can be compared."""
        return "reranked" if self.rerank_candidates and self.rerank_during_training else "dual"


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    loss: LossConfig = field(default_factory=LossConfig)
    initial: InitialWeightsConfig = field(default_factory=InitialWeightsConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @classmethod
    def from_config_dict(cls, config: ml_collections.ConfigDict) -> "Config":
        """Reads and checks a whole configuration.

        Raises:
            UserError: names every unknown or missing key, wrong type and contradiction, in one message.
        """
        problems: list[str] = []
        resolved = _read(cls, config.to_dict(), "", problems)
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


def model_config(values: Any) -> ModelConfig:
    """The sizes of a model from the plain values that `dataclasses.asdict` and JSON made of them.

    Raises:
        UserError: names every unknown or missing key, wrong type and contradiction, in one message.
    """
    problems: list[str] = []
    resolved = _read(ModelConfig, values, "model.", problems)
    if not problems:
        problems = list(_model_contradictions(resolved))
    if problems:
        raise UserError(f"the sizes of the model are wrong:\n{bulleted(problems)}")
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
    yield from _model_contradictions(config.model)
    yield from _loss_contradictions(config)
    yield from _out_of_range(config)
    yield from _data_contradictions(config.data)
    yield from _mesh_contradictions(config.mesh)
    if config.initial.model and (config.initial.image or config.initial.text):
        yield "initial.model is set and so is initial.image or initial.text; expected a whole model or towers, not both"
    if config.evaluation.rerank_candidates and not (config.loss.fgr and config.model.cross.layers):
        yield (f"evaluation.rerank_candidates is {config.evaluation.rerank_candidates} but no match heads are trained "
               "(loss.fgr is False or model.cross.layers is 0); set it to 0")


def _out_of_range(config: Config) -> Iterator[str]:
    train, optimizer, data = config.train, config.optimizer, config.data
    yield from _not_positive((
        ("train.batch_size", train.batch_size),
        ("train.epochs", train.epochs),
        ("train.log_every", train.log_every),
        ("train.keep_last", train.keep_last),
        ("optimizer.learning_rate", optimizer.learning_rate),
        ("optimizer.clip_norm", optimizer.clip_norm),
        ("evaluation.batch_size", config.evaluation.batch_size),
    ))
    for name, count in (
        ("train.seed", train.seed),
        ("train.checkpoint_every", train.checkpoint_every),
        ("train.evaluate_every", train.evaluate_every),
        ("train.keep_best", train.keep_best),
        ("data.workers", data.workers),
        ("data.validation_images", data.validation_images),
        ("evaluation.rerank_candidates", config.evaluation.rerank_candidates),
        ("optimizer.warmup_steps", optimizer.warmup_steps),
        ("optimizer.weight_decay", optimizer.weight_decay),
        ("optimizer.final_learning_rate", optimizer.final_learning_rate),
        ("optimizer.epsilon", optimizer.epsilon),
        ("loss.soft_target_ramp_epochs", config.loss.soft_target_ramp_epochs),
        ("loss.match_class_weights", min(config.loss.match_class_weights)),
    ):
        if not (count >= 0 and math.isfinite(count)):
            yield f"{name} is {count}; expected 0 or more"
    for name, share in (("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)):
        if not 0 <= share < 1:  # at 1 nothing of any gradient would be seen, and the bias correction divide by zero
            yield f"{name} is {share}; expected 0 or more and less than 1"


def _not_positive(numbers: Iterable[tuple[str, float]]) -> Iterator[str]:
    for name, number in numbers:
        if not (number > 0 and math.isfinite(number)):
            yield f"{name} is {number}; expected a positive number"


def _data_contradictions(data: DataConfig) -> Iterator[str]:
    if not 0 <= data.max_broken_share <= 1:
        yield f"data.max_broken_share is {data.max_broken_share}; expected a number from 0 to 1"
    if not data.directory:
        yield "data.directory is empty; expected the folder of a prepared dataset"
    for name in ("directory", "vocabulary"):
        if "://" in (path := getattr(data, name)):
            yield f"data.{name} is {path}, an address; expected a local or mounted path: mount it first"
    yield from _corpora_contradictions(data)
    if data.augmentation not in ("crop_and_flip", "random_augment"):
        yield f"data.augmentation is {data.augmentation!r}; expected 'crop_and_flip' or 'random_augment'"
    if not 0 <= data.augmentation_magnitude <= 10:
        yield f"data.augmentation_magnitude is {data.augmentation_magnitude}; expected a number from 0 to 10"
    low, high = data.crop_scale
    if not 0 < low <= high <= 1:
        yield f"data.crop_scale is {data.crop_scale}; expected 0 < low <= high <= 1"


def _corpora_contradictions(data: DataConfig) -> Iterator[str]:
    for folder in dict.fromkeys(data.corpora):
        if not folder:
            yield "data.corpora has an empty name; expected folders of prepared datasets"
        if "://" in folder:
            yield f"data.corpora names {folder}, an address; expected a local or mounted path: mount it first"
        if (times := data.corpora.count(folder)) > 1:
            yield f"data.corpora names {folder} {times} times; expected it once: give it a larger weight"
    if data.corpus_weights and len(data.corpus_weights) != len(data.corpora):
        yield (f"data.corpus_weights has {len(data.corpus_weights)} number(s) for the {len(data.corpora)} folder(s) of "
               "data.corpora; expected one for each, or none at all")
    yield from _not_positive(("data.corpus_weights", weight) for weight in data.corpus_weights)


def _mesh_contradictions(mesh: MeshConfig) -> Iterator[str]:
    for name, size in (("mesh.data", mesh.data), ("mesh.fsdp", mesh.fsdp)):
        if size != -1 and size < 1:
            yield f"{name} is {size}; expected a number of devices, or -1 for all that are left"
    if mesh.data == mesh.fsdp == -1:
        yield "mesh.data and mesh.fsdp are both -1; at most one axis can take what is left"


def _sizes(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Every size of the model that must be positive, with its name; the cross encoders' layers may be none."""
    yield "model.embed_size", model.embed_size
    for part in ("image", "text", "cross"):
        for name, size in vars(getattr(model, part)).items():
            if (part, name) != ("cross", "layers"):
                yield f"model.{part}.{name}", size


def _model_contradictions(model: ModelConfig) -> Iterator[str]:
    image, text, cross = model.image, model.text, model.cross
    yield from _not_positive(_sizes(model))
    if image.patch_size > 0 and image.image_size % image.patch_size:
        yield (f"model.image.image_size {image.image_size} is not a multiple of model.image.patch_size "
               f"{image.patch_size}")
    for name, tower in (("image", image), ("text", text), ("cross", cross)):
        if tower.heads > 0 and tower.width % tower.heads:
            yield f"model.{name}.width {tower.width} is not a multiple of model.{name}.heads {tower.heads}"
    if text.text_length > text.max_positions:
        yield (f"model.text.text_length {text.text_length} is larger than model.text.max_positions "
               f"{text.max_positions}; there is no position embedding for the last tokens")
    if text.text_length < 3:
        yield f"model.text.text_length is {text.text_length}; expected at least 3: CLS, one token, SEP"
    if cross.layers and cross.width != text.width:
        yield (f"model.cross.width {cross.width} differs from model.text.width {text.width}; the text-image cross "
               "encoder is fed with text tokens directly")
    if cross.layers < 0:
        yield f"model.cross.layers is {cross.layers}; expected 1 or more, or 0 for PRD2"
    if model.dtype not in ("bfloat16", "float32"):
        yield f"model.dtype is {model.dtype!r}; expected 'bfloat16' or 'float32'"
    low, high = model.temperature_range
    if not 0 < low <= model.temperature_init <= high:
        yield (f"model.temperature_init {model.temperature_init} lies outside model.temperature_range "
               f"{model.temperature_range}")


def _loss_contradictions(config: Config) -> Iterator[str]:
    loss = config.loss
    if loss.contrastive not in ("tgd", "gcpr"):
        yield f"loss.contrastive is {loss.contrastive!r}; expected 'tgd' or 'gcpr'"
    if loss.contrastive == "tgd" and loss.queue_length < config.train.batch_size:
        yield (f"loss.queue_length {loss.queue_length} is shorter than the global train.batch_size "
               f"{config.train.batch_size}; a whole batch must fit into the queue")
    if (loss.fgr or loss.mlm) and not config.model.cross.layers:
        yield "loss.fgr or loss.mlm is on but model.cross.layers is 0; PRD2 has neither"
    if loss.fgr and config.train.batch_size < 2:
        yield "loss.fgr needs a hard negative, so train.batch_size must be at least 2"
    for name, share in (
        ("soft_target_share", loss.soft_target_share),
        ("queue_decay", loss.queue_decay),
        ("teacher_momentum", loss.teacher_momentum),
        ("fgd_mean_momentum", loss.fgd_mean_momentum),
    ):
        if not 0 <= share <= 1:
            yield f"loss.{name} is {share}; expected a number from 0 to 1"
    if not 0 < loss.mask_share < 1:
        yield f"loss.mask_share is {loss.mask_share}; expected a number between 0 and 1"
    for name, temperature in (
        ("fgd_teacher_temperature", loss.fgd_teacher_temperature),
        ("fgd_student_temperature", loss.fgd_student_temperature),
    ):
        if not (temperature > 0 and math.isfinite(temperature)):
            yield f"loss.{name} is {temperature}; expected a positive number"
