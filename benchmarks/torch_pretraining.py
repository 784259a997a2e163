"""Pre-training's step in PyTorch, of transformers' modules, as one would write it there: the measure of ours.

It is the same method: from the same weights, masked tokens and hard negatives it has the same losses and learns the
same, which `tests/benchmarks/test_beside_torch.py` holds step by step. Matrix products run in autocast's bfloat16 or in
float32, attention is PyTorch's scaled_dot_product_attention, AdamW is PyTorch's own.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from r2d2_jax.arrays import Params
from r2d2_jax.config.reading import Config
from r2d2_jax.config.tasks import LossConfig
from r2d2_jax.convert.modeling_r2d2 import R2D2Model, bert_config
from r2d2_jax.convert.naming import TensorPlace as Place
from r2d2_jax.convert.naming import linear, norm, to_theirs
from r2d2_jax.convert.torch_model import torch_model
from r2d2_jax.convert.torch_r2d2 import published_places
from r2d2_jax.errors import UserError
from r2d2_jax.losses.masked_lm import mask_slots
from r2d2_jax.models.r2d2 import CLIP_DEVIATION, CLIP_MEAN
from r2d2_jax.tasks.pretraining import Pretraining
from r2d2_jax.train.plan import StepPlan

TEACHER = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
# Ends of names of PyTorch parameters without weight decay; see `train.optimizer.NOT_DECAYED`.
NOT_DECAYED = ("bias", "temp", "LayerNorm.weight", "layer_norm1.weight", "layer_norm2.weight", "layrnorm.weight")
MASKED_LM_PLACES = {
    **linear("transform.dense", "masked_lm_head/transform"),
    **norm("transform.LayerNorm", "masked_lm_head/transform_norm"),
    "decoder.bias": Place("masked_lm_head/bias"),
}


class TorchBatch(NamedTuple):
    """A batch: images uint8 [b h w 3], input_ids and attention_mask int64 [b l], image_id int64 [b 2]."""

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    image_id: Tensor


class Masked(NamedTuple):
    """Masked texts; see `losses.masked_lm.MaskedText`."""

    input_ids: Tensor
    position: Tensor
    label: Tensor
    masked: Tensor


class Draws:
    """What a step draws, from PyTorch's own generator."""

    def masked(self, step: "TorchPretraining", batch: TorchBatch) -> Masked:
        """As `losses.masked_lm.mask_tokens`."""
        tokens, share = step.task.tokens, step.terms.mask_share
        special = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        for token in (tokens.cls_id, tokens.sep_id, tokens.pad_id):
            special |= batch.input_ids == token
        maskable = batch.attention_mask.bool() & ~special
        available = maskable.sum(1)
        count = torch.minimum((available * share + 0.5).floor().clamp(min=1), available)
        lottery = torch.where(maskable, torch.rand(maskable.shape, device=maskable.device), -1.0)
        slots = mask_slots(batch.input_ids.shape[1], share)
        position = lottery.topk(slots, dim=1).indices
        masked = torch.arange(slots, device=maskable.device) < count[:, None]
        label = batch.input_ids.gather(1, position)
        hidden = batch.input_ids.scatter(1, position, torch.where(masked, tokens.mask_id, label))
        return Masked(hidden, position, label, masked)

    def negatives(self, step: "TorchPretraining", i2t: Tensor, t2i: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """A hard negative text for each image, and a hard negative image for each text."""
        text, image = (
            logits.masked_fill(positive, -torch.inf).softmax(1).multinomial(1)[:, 0] for logits in (i2t, t2i)
        )
        return text, image


@dataclass
class Queue:
    """Teacher embeddings of past batches; see `tasks.queue.Queue`."""

    image_embed: Tensor
    text_embed: Tensor
    image_id: Tensor
    age: Tensor
    valid: Tensor
    head: int = 0


class Trained(nn.Module):
    """What is trained: the model, and the head of masked-language modelling, whose decoder is the word embedding."""

    def __init__(self, config: Config, params: Params) -> None:
        super().__init__()
        sizes = config.model
        self.model: R2D2Model = torch_model(sizes, to_theirs(params, published_places(sizes)))
        self.masked_lm = BertLMPredictionHead(bert_config(sizes.described()["text"]))
        state = {name: torch.tensor(value) for name, value in to_theirs(params, MASKED_LM_PLACES).items()}
        self.masked_lm.load_state_dict(state | {"bias": state["decoder.bias"]}, strict=False)
        self.masked_lm.decoder.weight = self.model.text_encoder.embeddings.word_embeddings.weight
        set_dropout(self.model.text_encoder, sizes.text.dropout)
        for encoder in (self.model.text_joint_layer, self.model.img_joint_layer):
            set_dropout(encoder, sizes.cross.dropout)
        self.model.visual_encoder.requires_grad_(not sizes.freeze_image_tower)


class TorchPretraining:
    """The whole step: losses, gradients, AdamW, then teacher and queue.

    Args:
        config: of pre-training with the whole method.
        plan: its step, from which come tokens, ramps and learning rates.
        params: ours, with which it starts.
        device: where it runs.
        compiled: compile the losses by torch.compile.

    Raises:
        UserError: the configuration is another method, of which there is no PyTorch here.
    """

    def __init__(self, config: Config, plan: StepPlan, params: Params, device: str, *, compiled: bool = False) -> None:
        check_whole_method(config)
        assert isinstance(plan.task, Pretraining)
        self.config, self.task, self.terms = config, plan.task, plan.task.terms
        self.device, self.learning_rate, self.steps = device, plan.optimizer.learning_rate, 0
        self.trained = Trained(config, params).to(device).train()
        self.teacher = nn.ModuleDict({name: copy.deepcopy(getattr(self.trained.model, name)) for name in self.averaged})
        self.teacher.eval().requires_grad_(False)
        size, length = config.model.embed_size, self.terms.queue_length
        self.queue = Queue(
            image_embed=torch.zeros(length, size, device=device),
            text_embed=torch.zeros(length, size, device=device),
            image_id=torch.zeros(length, 2, dtype=torch.int64, device=device),
            age=torch.zeros(length, dtype=torch.int64, device=device),
            valid=torch.zeros(length, dtype=torch.bool, device=device),
        )
        self.feature_mean = torch.zeros(size, device=device)
        self.pixels = (torch.tensor(CLIP_MEAN, device=device), torch.tensor(CLIP_DEVIATION, device=device))
        self.optimizer = self._adamw()
        # Not a method of this object, which would keep itself alive, and with it the memory of a large model.
        self.losses = torch.compile(TorchPretraining._losses) if compiled else TorchPretraining._losses

    @property
    def averaged(self) -> tuple[str, ...]:
        """The modules that the teacher averages; a frozen image tower is the student's."""
        return TEACHER[1:] if self.config.model.freeze_image_tower else TEACHER

    def step(self, batch: TorchBatch, draws: Draws) -> dict[str, Tensor]:
        """Learns from a batch; returns each term, weighted as in the loss."""
        masked = draws.masked(self, batch)
        with self.autocast():
            terms, keys = self.losses(self, batch, masked, draws)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self._update()
        with torch.no_grad():
            self._average_and_queue(batch, *keys)
        self.steps += 1
        return {name: term.detach() for name, term in terms.items()}

    def _losses(
        self, batch: TorchBatch, masked: Masked, draws: Draws
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        model, mask = self.trained.model, batch.attention_mask
        images = self.normalised(batch.images)
        image_tokens = model.visual_encoder(images)
        image = model.vision_proj(image_tokens[:, 0]).float()
        text_tokens = model.text_encoder(masked.input_ids, mask)
        text = model.text_proj(text_tokens[:, 0]).float()
        with torch.no_grad():
            teacher_image, teacher_text = self._teacher(batch, images, image_tokens)
        embeds = unit(image), unit(text)
        keys = unit(teacher_image), unit(teacher_text)
        positive = same(batch.image_id, batch.image_id)
        hidden, fgr = self._ranked(embeds, positive, image_tokens, text_tokens, mask, draws)
        terms = {
            "tgd": self._tgd(*embeds, *keys, batch.image_id),
            "fgr": fgr,
            "mlm": self._masked_lm(hidden, masked),
            "fgd": self._fgd(text, teacher_text),
        }
        return terms, keys

    def _teacher(self, batch: TorchBatch, images: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        teacher = self.teacher
        tokens = teacher["visual_encoder"](images) if "visual_encoder" in teacher else image_tokens
        text_tokens = teacher["text_encoder"](batch.input_ids, batch.attention_mask)
        return teacher["vision_proj"](tokens[:, 0]).float(), teacher["text_proj"](text_tokens[:, 0]).float()

    def _tgd(self, image: Tensor, text: Tensor, key_image: Tensor, key_text: Tensor, image_id: Tensor) -> Tensor:
        queue, temperature = self.queue, self.trained.model.temp
        valid = torch.cat([torch.ones_like(image_id[:, 0], dtype=torch.bool), queue.valid])
        weight = torch.cat([torch.ones_like(image[:, 0]), self.terms.queue_decay ** queue.age.float()])
        positive = same(image_id, torch.cat([image_id, queue.image_id])) & valid
        truth = positive / positive.sum(1, keepdim=True)
        share = self.terms.soft_target_share * self._ramp(self.terms.soft_target_ramp_epochs)

        def one_direction(row: Tensor, teacher_row: Tensor, keys: Tensor) -> Tensor:
            soft = (teacher_row @ keys.T / temperature.detach()).masked_fill(~valid, -torch.inf).softmax(1)
            logits = (row @ keys.T / temperature).masked_fill(~valid, -torch.inf)
            terms = weight * (share * soft + (1 - share) * truth) * logits.log_softmax(1)
            return -terms.masked_fill(~valid, 0).sum(1).mean()

        with torch.autocast(self.device, enabled=False):
            images, texts = torch.cat([key_image, queue.image_embed]), torch.cat([key_text, queue.text_embed])
            return (one_direction(image, key_image, texts) + one_direction(text, key_text, images)) / 2

    def _ranked(
        self,
        embeds: tuple[Tensor, Tensor],
        positive: Tensor,
        image_tokens: Tensor,
        text_tokens: Tensor,
        mask: Tensor,
        draws: Draws,
    ) -> tuple[Tensor, Tensor]:
        """Text-image hidden states of the pairs themselves, and the loss of ranking."""
        model, pairs = self.trained.model, len(mask)
        with torch.no_grad(), torch.autocast(self.device, enabled=False):
            logits = self.terms.negative_hardness * (embeds[0] @ embeds[1].T) / model.temp
            text, image = draws.negatives(self, logits, logits.T, positive)
        passes = (
            torch.cat([image_tokens, image_tokens[image], image_tokens]),
            torch.cat([text_tokens, text_tokens, text_tokens[text]]),
            torch.cat([mask, mask, mask[text]]),
        )
        text_image, image_text = model.cross(*passes)
        label = torch.zeros(3 * pairs, dtype=torch.int64, device=mask.device)
        label[:pairs] = 1
        weights = torch.tensor(self.terms.match_class_weights, device=mask.device)
        with torch.autocast(self.device, enabled=False):
            of_encoders = [
                functional.cross_entropy(head(hidden[:, 0].float()), label, weights)
                for head, hidden in ((model.itm_head, text_image), (model.itm_head_i, image_text))
            ]
            return text_image[:pairs], torch.stack(of_encoders).mean()

    def _masked_lm(self, hidden: Tensor, masked: Masked) -> Tensor:
        wanted = hidden.gather(1, masked.position[..., None].expand(-1, -1, hidden.shape[-1]))
        scores = self.trained.masked_lm(wanted[masked.masked]).float()
        return functional.cross_entropy(scores, masked.label[masked.masked])

    def _fgd(self, text: Tensor, teacher_text: Tensor) -> Tensor:
        teacher = layer_normed(teacher_text)
        share = min(self.terms.fgd_mean_momentum, self.steps / (self.steps + 1))
        self.feature_mean = share * self.feature_mean + (1 - share) * teacher.mean(0)
        target = ((teacher - self.feature_mean) / self.terms.fgd_teacher_temperature).softmax(1)
        log_probability = (layer_normed(text) / self.terms.fgd_student_temperature).log_softmax(1)
        return -self._ramp(self.terms.fgd_ramp_epochs) * (target * log_probability).sum(1).mean()

    def _ramp(self, epochs: float) -> float:
        steps = round(epochs * self.task.epoch_steps)
        return min(1.0, self.steps / steps) if steps else 1.0

    def _adamw(self) -> torch.optim.Optimizer:
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.trained.named_parameters():
            if parameter.requires_grad:
                groups[name.endswith(NOT_DECAYED)].append(parameter)
        settings, (decayed, rest) = self.config.optimizer, groups
        by_group: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        betas = settings.beta1, settings.beta2
        decay = settings.weight_decay
        return torch.optim.AdamW(by_group, betas=betas, eps=settings.epsilon, weight_decay=decay)

    def _update(self) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.learning_rate(self.steps))
        self.optimizer.step()
        with torch.no_grad():
            self.trained.model.temp.clamp_(*self.config.model.temperature_range)

    def _average_and_queue(self, batch: TorchBatch, image_embed: Tensor, text_embed: Tensor) -> None:
        student = [parameter for name in self.averaged for parameter in getattr(self.trained.model, name).parameters()]
        torch._foreach_lerp_(list(self.teacher.parameters()), student, 1 - self.terms.teacher_momentum)
        queue, rows = self.queue, len(image_embed)
        slots = (queue.head + torch.arange(rows, device=image_embed.device)) % len(queue.age)
        queue.age += 1
        queue.image_embed[slots], queue.text_embed[slots] = image_embed, text_embed
        queue.image_id[slots], queue.age[slots], queue.valid[slots] = batch.image_id, 0, True
        queue.head = (queue.head + rows) % len(queue.age)

    def autocast(self) -> torch.autocast:
        """Matrix products in the configured dtype."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.config.model.dtype == "bfloat16")

    def normalised(self, images: Tensor) -> Tensor:
        """[b 3 h w] of uint8 [b h w 3]."""
        mean, deviation = self.pixels
        return ((images.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def set_dropout(module: nn.Module, rate: float) -> None:
    """Everything below a module drops at this rate; the image tower never does, and neither does ours."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = rate


def torch_batch(rows: dict[str, np.ndarray], device: str) -> TorchBatch:
    """A batch of `train.trial.random_rows`."""
    as_int = lambda name: torch.from_numpy(rows[name].astype(np.int64)).to(device)  # noqa: E731
    images = torch.from_numpy(rows["images"]).to(device)
    return TorchBatch(images, as_int("input_ids"), as_int("attention_mask"), as_int("image_id"))


def unit(feature: Tensor) -> Tensor:
    """The last axis of length one."""
    return functional.normalize(feature, dim=-1)


def layer_normed(feature: Tensor) -> Tensor:
    """Over the features, without scale and bias."""
    return unit(feature - feature.mean(1, keepdim=True)) * feature.shape[1] ** 0.5


def same(row_id: Tensor, column_id: Tensor) -> Tensor:
    """Bool [b m], True where both show the same image."""
    return (row_id[:, None, :] == column_id[None, :, :]).all(-1)


def check_whole_method(config: Config) -> None:
    """Raises UserError for a configuration that the PyTorch step does not compute."""
    wanted = LossConfig()
    fixed = ("contrastive", "fgr", "mlm", "fgd", "enhanced_training", "whole_word_masking", "fgd_features", "text_ids")
    others = [f"loss.{name}" for name in fixed if getattr(config.loss, name) != getattr(wanted, name)]
    if config.task != "pretraining":
        others = [f"task {config.task!r}"]
    if others:
        raise UserError(
            f"the PyTorch step is that of pre-training with the whole method; expected no other {others[0]}"
        )
