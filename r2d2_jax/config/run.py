"""How a run goes: optimizer, length and intervals, devices, initial weights, evaluation."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from r2d2_jax.config.model import DTYPES, MAX_SIZE
from r2d2_jax.config.ranges import negative, not_positive
from r2d2_jax.trees import path_end


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and the schedule of its rate.

    schedule: "cosine", `warmup_steps` up in a line from `initial_learning_rate` to `learning_rate`, then a cosine to
        `final_learning_rate` at the end of the run; or "triangular", as many steps up and as many down again, over and
        over, as PyTorch's CyclicLR in its mode "triangular".
    warmup_share: the way up before a cosine takes no larger share of the run than this.
    first_moment_dtype: of the mean of gradients: "float32", or "bfloat16", which saves two bytes a trained parameter.
        The mean of squares stays float32: at beta2 0.999 a step moves it by less than bfloat16 tells apart.
    rates: (pattern, factor) pairs. A parameter's rate is the scheduled one times the factor of the first pattern that
        matches the end of its path, such as ("bias", 2.0) or ("text_encoder/.*", 0.1); 1 where none does.
    """

    learning_rate: float
    initial_learning_rate: float = 0.0
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    warmup_share: float = 1.0
    schedule: str = "cosine"
    weight_decay: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    first_moment_dtype: str = "float32"
    rates: tuple[tuple[str, float], ...] = ()


def optimizer_contradictions(optimizer: OptimizerConfig) -> Iterator[str]:
    """Yields one sentence per value that is out of range."""
    yield from not_positive((f"optimizer.{name}", getattr(optimizer, name)) for name in ("learning_rate", "clip_norm"))
    counts = ("warmup_steps", "weight_decay", "initial_learning_rate", "final_learning_rate", "epsilon")
    yield from negative((f"optimizer.{name}", getattr(optimizer, name)) for name in counts)
    yield from _schedule_contradictions(optimizer)
    if optimizer.first_moment_dtype not in DTYPES:
        yield f"optimizer.first_moment_dtype is {optimizer.first_moment_dtype!r}; expected 'float32' or 'bfloat16'"
    for pattern, factor in optimizer.rates:
        yield from negative([(f"optimizer.rates of {pattern!r}", factor)])
        try:
            path_end(pattern)
        except re.error as error:
            yield f"optimizer.rates has the pattern {pattern!r}, no regular expression for the end of a path: {error}"
    for name, share in (("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)):
        if not 0 <= share < 1:  # at 1 nothing of any gradient would be seen, and the bias correction divide by zero
            yield f"{name} is {share}; expected 0 or more and less than 1"


def _schedule_contradictions(optimizer: OptimizerConfig) -> Iterator[str]:
    if not 0 < optimizer.warmup_share <= 1:
        yield f"optimizer.warmup_share is {optimizer.warmup_share}; expected more than 0 and at most 1"
    if optimizer.schedule not in ("cosine", "triangular"):
        yield f"optimizer.schedule is {optimizer.schedule!r}; expected 'cosine' or 'triangular'"
    if 0 < optimizer.learning_rate < optimizer.initial_learning_rate:
        yield (
            f"optimizer.initial_learning_rate is {optimizer.initial_learning_rate}; expected optimizer.learning_rate "
            f"{optimizer.learning_rate} at most, to which the rate rises"
        )
    if optimizer.warmup_steps == 0 and (optimizer.initial_learning_rate > 0 or optimizer.schedule == "triangular"):
        yield (
            "optimizer.warmup_steps is 0, so there is no way up for optimizer.initial_learning_rate "
            f"{optimizer.initial_learning_rate} or the schedule {optimizer.schedule!r}; expected a number of steps"
        )
    if optimizer.schedule == "triangular" and optimizer.warmup_share != 1:
        yield (
            f"optimizer.warmup_share is {optimizer.warmup_share}, and the sides of a triangular schedule may be longer "
            "than the run; leave it at 1"
        )
    if optimizer.schedule == "triangular" and optimizer.final_learning_rate:
        yield (
            f"optimizer.final_learning_rate is {optimizer.final_learning_rate}, and a triangular schedule falls to "
            "optimizer.initial_learning_rate; leave it at 0"
        )


LARGEST_SEED = 2**32 - 1  # JAX reads the lower 32 bits alone, so that a larger seed would draw what a smaller one does


@dataclass(frozen=True)
class TrainConfig:
    """The run: `batch_size` is global, in pairs; `epochs` counts visits to every image.

    micro_batches: parts of each batch that go through the model, and are compared with the whole batch, one after the
        other, for a batch that does not fit.
        Nothing changes but memory, time and rounding: all losses, hard negatives included, are those of the whole
        batch, because the fewer pairs, the worse a contrastive loss (our decision). Dropout draws other masks.

    The intervals are in steps; `evaluate_every` and `checkpoint_every` 0 mean once, at the end.

    weigh_terms_every: before so many steps the log gets the norm of each term's gradient, first before the first one,
        see `train.term_gradients`; each time takes as long as some steps, and 0 is never.
    stall_seconds: a process that waits so long for one batch or one step ends itself, so that whoever started the run
        can start it again; 0 waits for ever.
    evaluate_every_epochs: evaluate also after so many epochs, 1 for each. A run that does so ends with a choice: the
        epoch that is best on validation.
    """

    batch_size: int
    epochs: float
    seed: int = 0
    micro_batches: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    evaluate_every: int = 1000
    weigh_terms_every: int = 0
    stall_seconds: float = 600.0
    evaluate_every_epochs: float = 0.0
    keep_last: int = 2
    keep_best: int = 1


def train_contradictions(train: TrainConfig) -> Iterator[str]:
    """Yields one sentence per value that is out of range."""
    counts = ("batch_size", "epochs", "micro_batches", "log_every", "keep_last")
    yield from not_positive((f"train.{name}", getattr(train, name)) for name in counts)
    intervals = ("checkpoint_every", "evaluate_every", "weigh_terms_every", "stall_seconds", "evaluate_every_epochs")
    yield from negative((f"train.{name}", getattr(train, name)) for name in ("seed", *intervals, "keep_best"))
    if train.batch_size > MAX_SIZE:  # from 2**31 on its rows could not be counted
        yield f"train.batch_size is {train.batch_size}; expected {MAX_SIZE:,} at most"
    if train.seed > LARGEST_SEED:
        yield f"train.seed is {train.seed}; expected {LARGEST_SEED} at most"
    if train.evaluate_every_epochs and not train.keep_best:
        yield "train.evaluate_every_epochs chooses the best epoch and train.keep_best is 0; expected to keep 1 at least"


@dataclass(frozen=True)
class MeshConfig:
    """Devices along the mesh's axes: the batch is split over both, parameters over `fsdp`. -1 takes what is left."""

    data: int = -1
    fsdp: int = 1


def mesh_contradictions(mesh: MeshConfig) -> Iterator[str]:
    """Yields one sentence per axis that is no number of devices."""
    for name, size in (("mesh.data", mesh.data), ("mesh.fsdp", mesh.fsdp)):
        if size != -1 and size < 1:
            yield f"{name} is {size}; expected a number of devices, or -1 for all that are left"
    if mesh.data == mesh.fsdp == -1:
        yield "mesh.data and mesh.fsdp are both -1; at most one axis can take what is left"


@dataclass(frozen=True)
class InitialWeightsConfig:
    """Where parameters come from before the first step; "" leaves them random.

    image: CLIP's image tower: a file, a folder of transformers, or a hub name. text: BERT or RoBERTa, likewise.
    model: a whole model instead: a published checkpoint, a converted folder, or another run's workdir.
    resize_positions: interpolate the image tower's position embeddings if they are for another image size.
    longer_vocabulary: the run's vocabulary may be that of the weights and more tokens at its end, which start random.
    """

    image: str = ""
    text: str = ""
    model: str = ""
    resize_positions: bool = False
    longer_vocabulary: bool = False


def initial_contradictions(initial: InitialWeightsConfig) -> Iterator[str]:
    """Yields a sentence if a whole model and a tower are named."""
    if initial.model and (initial.image or initial.text):
        yield "initial.model is set and so is initial.image or initial.text; expected a whole model or towers, not both"


@dataclass(frozen=True)
class EvaluationConfig:
    """Retrieval on the validation split.

    rerank_candidates: how many of each query's nearest candidates the cross encoders re-rank; 0 means no re-ranking.
        A cut-off beyond them goes on in the order of the dual encoder.
    rerank_during_training: also re-rank in the evaluations before the last one.
    batch_size: images, texts or pairs per forward.
    directions: of retrieval, those that are asked: "i2t", "t2i" or both; checkpoints are compared by their mean recall.
    """

    rerank_candidates: int = 16
    rerank_during_training: bool = True
    batch_size: int = 64
    directions: tuple[str, ...] = ("i2t", "t2i")

    @property
    def compared_by(self) -> str:
        """The stage of retrieval that every evaluation of a run measures, so that its checkpoints can be compared."""
        return "reranked" if self.rerank_candidates and self.rerank_during_training else "dual"


def evaluation_contradictions(evaluation: EvaluationConfig, *, match_heads: bool) -> Iterator[str]:
    """Yields one sentence per value that is out of range, or that asks untrained match heads to re-rank."""
    yield from not_positive([("evaluation.batch_size", evaluation.batch_size)])
    yield from negative([("evaluation.rerank_candidates", evaluation.rerank_candidates)])
    if evaluation.directions not in (("i2t", "t2i"), ("i2t",), ("t2i",)):
        yield f"evaluation.directions is {evaluation.directions}; expected ('i2t', 't2i'), or one of the two"
    if evaluation.rerank_candidates and not match_heads:
        yield (
            f"evaluation.rerank_candidates is {evaluation.rerank_candidates} but no match heads are trained "
            "(fgr is False or model.cross.layers is 0); set it to 0"
        )
