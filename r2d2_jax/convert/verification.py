"""Compares, stage by stage, what a checkpoint computes in JAX with what it computes in PyTorch or ONNX Runtime."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.convert.conversion import Form, is_published
from r2d2_jax.convert.preprocessing import preprocessing_differences
from r2d2_jax.convert.tensor_files import read_tensors
from r2d2_jax.convert.torch_r2d2 import published_parameters, read_published
from r2d2_jax.convert.transformers_folder import is_transformers
from r2d2_jax.encoder import Encoder, Keep, PairBatch
from r2d2_jax.extras import ONNX, TORCH, require
from r2d2_jax.models.store import Model, load_model
from r2d2_jax.sharding import make_mesh

if TYPE_CHECKING:
    from r2d2_jax.convert.modeling_r2d2 import R2D2Model

# In the order of computation, so that the first stage that differs is the one at fault.
IMAGE_TOKENS, IMAGE_EMBED = "image tokens", "image embedding"
TEXT_TOKENS, TEXT_EMBED = "text tokens", "text embedding"
TEXT_IMAGE, IMAGE_TEXT = "text-image cross encoder", "image-text cross encoder"
MATCH = "match probability"
STAGES = (IMAGE_TOKENS, IMAGE_EMBED, TEXT_TOKENS, TEXT_EMBED, TEXT_IMAGE, IMAGE_TEXT, MATCH)

LIMIT = 1e-4  # largest absolute difference in float32: orders of summation differ in every layer (our decision)
ROWS = 3  # pairs in the sample

Stages = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """The input of both sides.

    images: float32 [b h w 3], like normalised images. input_ids: int32 [b l]. attention_mask: bool [b l]; one row is
    full, the others are padded.
    """

    images: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray


@dataclass(frozen=True)
class ParityReport:
    """The largest absolute difference of each stage that both sides have, in the order of computation.

    details: lines that name the texts and pictures whose preprocessing differs.
    """

    differences: Mapping[str, float]
    limit: float
    details: tuple[str, ...] = ()

    @property
    def first_broken(self) -> str | None:
        """The first stage above the limit; None if all agree. NaN is above any limit."""
        return next((stage for stage, value in self.differences.items() if not value <= self.limit), None)

    def table(self) -> str:
        """The report as text, with a last line that says which stage breaks first."""
        lines = [f"{'stage':<26}{'largest difference':>18}{'limit':>10}"]
        for stage, value in self.differences.items():
            lines.append(f"{stage:<26}{value:>18.2e}{self.limit:>10.0e}{'' if value <= self.limit else '  above'}")
        broken = self.first_broken
        lines += self.details
        return "\n".join([*lines, "all stages agree" if broken is None else f"the first stage that breaks: {broken}"])


def verify(model: Model, source: Path, target: Path | None, form: Form | None, limit: float = LIMIT) -> ParityReport:
    """Compares a conversion's result with PyTorch or ONNX Runtime.

    JAX computes with the model as read, or with the target read again if that has our form. The other runtime reads its
    own form from the disk: the target's, or else the source's. If neither has one, PyTorch computes with the parameters
    under their published names. Of a folder of transformers or ONNX, tokenizer and image processor are compared too.

    Args:
        model: the model that was read from the source.
        source: the path it was read from.
        target: the path it was written to; None if nothing was written.
        form: the target's form; None without a target.
        limit: largest absolute difference that passes.

    Raises:
        UserError: PyTorch or ONNX is not installed.
    """
    sample = sample_inputs(model.config)
    ours = jax_stages(load_model(target) if target and form == Form.OURS else model, sample)
    if target and form == Form.ONNX:
        require(ONNX, "--verify of an ONNX export", "onnx")
        return _with_preprocessing(compared(ours, onnx_stages(target, model.config, sample), limit), model, target)
    require(TORCH, "--verify", "convert")
    report = compared(ours, torch_stages(_foreign_model(model, source, target, form), sample), limit)
    if folder := target if form == Form.TRANSFORMERS else source if is_transformers(source) and not target else None:
        return _with_preprocessing(report, model, folder)
    return report


def _with_preprocessing(report: ParityReport, model: Model, folder: Path) -> ParityReport:
    """The report with what a folder's tokenizer and image processor do, before the stages that they feed."""
    found = preprocessing_differences(model, folder, report.limit)
    return ParityReport(found.largest | dict(report.differences), report.limit, found.lines)


def _foreign_model(model: Model, source: Path, target: Path | None, form: Form | None) -> "R2D2Model":
    from transformers.utils import logging as their_messages

    from r2d2_jax.convert.modeling_r2d2 import R2D2Model
    from r2d2_jax.convert.torch_model import torch_model

    their_messages.disable_progress_bar()  # between the lines of the report it says nothing
    if target and form == Form.TRANSFORMERS:
        return R2D2Model.from_pretrained(target)
    if target and form == Form.PUBLISHED:
        return torch_model(model.config, read_tensors(target))
    if is_transformers(source):
        return R2D2Model.from_pretrained(source)
    tensors = read_published(source).tensors if is_published(source) else published_parameters(model)
    return torch_model(model.config, tensors)


def sample_inputs(config: ModelConfig) -> Sample:
    """The same random images and texts for every model of these sizes."""
    rng, side, length = np.random.default_rng(0), config.image.image_size, config.text.text_length
    images = rng.normal(size=(ROWS, side, side, 3)).astype(np.float32)
    input_ids = rng.integers(0, config.text.vocabulary_size, (ROWS, length), dtype=np.int32)
    lengths = np.linspace(length, 2, ROWS).astype(int)
    return Sample(images, input_ids, np.arange(length) < lengths[:, None])


def compared(ours: Stages, theirs: Stages, limit: float = LIMIT) -> ParityReport:
    """The report on the stages that both sides have."""
    differences = {}
    for stage in STAGES:
        if stage in ours and stage in theirs:
            if ours[stage].shape != theirs[stage].shape:
                raise ValueError(f"{stage}: {ours[stage].shape} here, {theirs[stage].shape} there")
            differences[stage] = float(np.max(np.abs(ours[stage] - theirs[stage])))
    return ParityReport(differences, limit)


def jax_stages(model: Model, sample: Sample) -> Stages:
    """The stages as JAX computes them."""
    rows = len(sample.images)
    encoder = Encoder(model.module, make_mesh(MeshConfig(), jax.devices()[:1]), rows)
    params = encoder.placed(model.params)
    image = encoder.encode_images(params, [sample.images], rows, Keep.ON_HOST)
    text = encoder.encode_texts(params, sample.input_ids, sample.attention_mask, Keep.ON_HOST)
    tokens = image.host_tokens, text.host_tokens
    stages = {IMAGE_TOKENS: tokens[0], IMAGE_EMBED: image.embed, TEXT_TOKENS: tokens[1], TEXT_EMBED: text.embed}
    if model.module.matching:
        pairs = PairBatch(*tokens, sample.attention_mask, np.stack([np.arange(rows)] * 2, axis=1))
        stages[TEXT_IMAGE], stages[IMAGE_TEXT] = encoder.cross_stages(params, pairs)
        stages[MATCH] = encoder.match_batches(params, [pairs])
    return stages


def torch_stages(model: "R2D2Model", sample: Sample) -> Stages:
    """The stages as PyTorch computes them."""
    import torch

    with torch.inference_mode():
        mask = torch.tensor(sample.attention_mask, dtype=torch.int64)
        image_tokens, image_embed = model.encode_image(torch.tensor(_channels_first(sample.images)))
        text_tokens, text_embed = model.encode_text(torch.tensor(sample.input_ids, dtype=torch.int64), mask)
        stages = {
            IMAGE_TOKENS: image_tokens,
            IMAGE_EMBED: image_embed,
            TEXT_TOKENS: text_tokens,
            TEXT_EMBED: text_embed,
        }
        if model.matches:
            text_image, image_text = model.cross(image_tokens, text_tokens, mask)
            stages |= {TEXT_IMAGE: text_image, IMAGE_TEXT: image_text, MATCH: model.match_heads(text_image, image_text)}
        return {stage: value.numpy() for stage, value in stages.items()}


def onnx_stages(folder: Path, config: ModelConfig, sample: Sample) -> Stages:
    """The stages as ONNX Runtime computes them with a folder's graphs, each fed with the results of earlier ones."""
    from r2d2_jax.convert.onnx_folder import graphs_of, session

    values: dict[str, np.ndarray] = {
        "pixel_values": _channels_first(sample.images),
        "input_ids": sample.input_ids.astype(np.int64),
        "attention_mask": sample.attention_mask.astype(np.int64),
    }
    for graph in graphs_of(config):
        results = session(folder, graph).run(graph.outputs, {name: values[name] for name in graph.inputs})
        values |= dict(zip(graph.outputs, results, strict=True))
    named = {
        "image_tokens": IMAGE_TOKENS,
        "image_embed": IMAGE_EMBED,
        "text_tokens": TEXT_TOKENS,
        "text_embed": TEXT_EMBED,
        "match_probability": MATCH,
    }
    return {stage: values[name] for name, stage in named.items() if name in values}


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
