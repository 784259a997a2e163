"""What a run trains for: the terms of each task and their constants."""

from collections.abc import Iterator
from dataclasses import dataclass

from r2d2_jax.config.model import MAX_SIZE, ModelConfig
from r2d2_jax.config.ranges import negative, not_a_share, not_positive


@dataclass(frozen=True)
class LossConfig:
    """The terms of pre-training and their constants.

    contrastive: "tgd" (GCPR with soft targets and queue) or "gcpr" (hard targets, no teacher, no queue).
    enhanced_training: one masked text forward serves every term; otherwise clean text, and an extra masked pass.
    soft_target_share: alpha, the share of the teacher in the target; reached linearly over `soft_target_ramp_epochs`.
    queue_length: `k`. queue_decay: what a queue entry's weight is multiplied with each step.
    mask_share: share of the tokens masked. teacher_momentum: of the exponential moving average.
    whole_word_masking: mask all tokens of a word together, as the text tower's own pre-training did (Cui et al.,
        "Pre-Training with Whole Word Masking for Chinese BERT", arXiv 1906.08101), not single tokens (article).
    match_class_weights: weights of (no match, match) in FGR's cross-entropy.
    negative_hardness: from 0, FGR's negatives are drawn evenly, to 1, by similarity (article); see
        `tasks.stages.Similarities.softened`.
    fgd_features: what feature-guided distillation takes the softmax of, in whose units its temperatures are:
        "layer_norm", "unit" or "projected", see `losses.distillation.distilled_feature`.
    fgd_ramp_epochs: feature-guided distillation reaches its weight of 1 linearly over so many epochs, because a teacher
        that has learnt nothing has nothing to teach (our decision); 0 means at once.
    text_ids: a text that several images share by its text_id is right for each of them, in the batch and in the queue,
        which keeps the ids (our decision); off, each text is right for the image that it came with.
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
    negative_hardness: float = 1.0
    teacher_momentum: float = 0.995
    fgd_features: str = "layer_norm"
    fgd_teacher_temperature: float = 4.0
    fgd_student_temperature: float = 4.0
    fgd_mean_momentum: float = 0.9
    fgd_ramp_epochs: float = 1.0
    text_ids: bool = False

    @property
    def has_teacher(self) -> bool:
        """Whether any term distils from momentum weights."""
        return self.contrastive == "tgd" or self.fgd

    @property
    def mlm_reads_ranking(self) -> bool:
        """Whether the ranking pass has read the masked text, so that MLM needs no pass of its own (article)."""
        return self.mlm and self.fgr and self.enhanced_training


def loss_contradictions(loss: LossConfig, model: ModelConfig, batch_size: int) -> Iterator[str]:
    """Yields one sentence per value that is out of range or contradicts another, the model or the global batch."""
    if loss.contrastive not in ("tgd", "gcpr"):
        yield f"loss.contrastive is {loss.contrastive!r}; expected 'tgd' or 'gcpr'"
    if loss.contrastive == "tgd" and loss.queue_length < batch_size:
        yield (
            f"loss.queue_length {loss.queue_length} is shorter than the global train.batch_size {batch_size}; "
            "a whole batch must fit into the queue"
        )
    if loss.contrastive == "tgd" and loss.queue_length > MAX_SIZE:
        yield f"loss.queue_length is {loss.queue_length}; expected {MAX_SIZE:,} at most"
    if (loss.fgr or loss.mlm) and not model.cross.layers:
        yield "loss.fgr or loss.mlm is on but model.cross.layers is 0; PRD2 has neither"
    if loss.fgr and batch_size < 2:
        yield "loss.fgr needs a hard negative, so train.batch_size must be at least 2"
    shares = ("soft_target_share", "negative_hardness", "queue_decay", "teacher_momentum", "fgd_mean_momentum")
    yield from not_a_share((f"loss.{name}", getattr(loss, name)) for name in shares)
    if loss.fgd_features not in ("layer_norm", "unit", "projected"):
        yield f"loss.fgd_features is {loss.fgd_features!r}; expected 'layer_norm', 'unit' or 'projected'"
    if not 0 < loss.mask_share < 1:
        yield f"loss.mask_share is {loss.mask_share}; expected a number between 0 and 1"
    temperatures = ("fgd_teacher_temperature", "fgd_student_temperature")
    yield from not_positive((f"loss.{name}", getattr(loss, name)) for name in temperatures)
    ramps = ("soft_target_ramp_epochs", "fgd_ramp_epochs")
    yield from negative((f"loss.{name}", getattr(loss, name)) for name in ramps)
    yield from negative([("loss.match_class_weights", min(loss.match_class_weights))])


@dataclass(frozen=True)
class RetrievalConfig:
    """The terms of fine-tuning for retrieval beside GCPR with hard targets (published code).

    fgr: also train the cross encoders to rank, with hard negatives; off for PRD2.
    match_class_weights: weights of (no match, match) in FGR's cross-entropy.
    negative_hardness: as in pre-training; 1 is the published one.
    """

    fgr: bool = True
    match_class_weights: tuple[float, float] = (1.0, 2.0)
    negative_hardness: float = 1.0


def retrieval_contradictions(retrieval: RetrievalConfig, model: ModelConfig, batch_size: int) -> Iterator[str]:
    """Yields one sentence per value that is out of range or contradicts the model or the global batch."""
    if retrieval.fgr and not model.cross.layers:
        yield "retrieval.fgr is on but model.cross.layers is 0; PRD2 has no cross encoders to train: set it to False"
    if batch_size < 2:
        yield "a pair is compared with the others of its batch, so train.batch_size must be at least 2"
    yield from not_a_share([("retrieval.negative_hardness", retrieval.negative_hardness)])
    yield from negative([("retrieval.match_class_weights", min(retrieval.match_class_weights))])


@dataclass(frozen=True)
class MatchingConfig:
    """Fine-tuning for matching: cross-entropy of labelled pairs.

    loss: "cross_entropy", the mean of both cross encoders' on their logits; or "published", that of the published code,
        which takes the averaged probabilities for logits and so applies softmax twice.
    """

    loss: str = "cross_entropy"

    @property
    def fgr(self) -> bool:
        """Whether the match heads are trained, as in the other tasks' blocks: they are all that this task trains."""
        return True


def matching_contradictions(matching: MatchingConfig, model: ModelConfig, batch_size: int) -> Iterator[str]:
    """Yields one sentence per value that is out of range or contradicts the model."""
    if matching.loss not in ("cross_entropy", "published"):
        yield f"matching.loss is {matching.loss!r}; expected 'cross_entropy' or 'published'"
    if not model.cross.layers:
        yield "task is 'matching' but model.cross.layers is 0; PRD2 has no cross encoders, and matching trains these"
