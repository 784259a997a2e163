"""A model as ONNX: a graph per stage, tokenizer, image processor and model card. Needs PyTorch and ONNX.

The graphs are exported from the PyTorch model of `modeling_r2d2.py`. We chose ONNX over StableHLO because its runtimes
serve on any hardware and need neither JAX nor Python (our decision).
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from r2d2_jax.atomic import written_whole
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.convert.modeling_r2d2 import R2D2Model
from r2d2_jax.convert.torch_model import torch_model
from r2d2_jax.convert.torch_r2d2 import published_parameters
from r2d2_jax.convert.transformers_folder import config_json, write_description
from r2d2_jax.models.store import Model

EXAMPLE_ROWS = 2  # of the traced example; the exporter would take a size of 1 for a constant

USE = """Each graph is run alone, with onnxruntime for example. With `folder`, the path of this folder, `photo`, a PIL
image or a path, and `text`, a string:

```python
import onnxruntime
import transformers

encode_image = onnxruntime.InferenceSession(f"{folder}/encode_image.onnx")
encode_text = onnxruntime.InferenceSession(f"{folder}/encode_text.onnx")
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
pixel_values = processor(images=[photo], return_tensors="np")["pixel_values"]
texts = tokenizer([text], padding="max_length", truncation=True, return_tensors="np")
image_tokens, image_embed = encode_image.run(None, {"pixel_values": pixel_values})
text_tokens, text_embed = encode_text.run(None, dict(texts))
cosine = image_embed @ text_embed.T
```

`trust_remote_code=True` runs `image_processing_r2d2.py`, which lies beside this file. `b` and `l` may be any number:

| graph | inputs | outputs |
|---|---|---|
| `encode_image.onnx` | pixel_values float32 [b 3 h w], normalised | image_tokens [b n d], image_embed [b e] |
| `encode_text.onnx` | input_ids int64 [b l], attention_mask int64 [b l] | text_tokens [b l d], text_embed [b e] |
| `match.onnx` | image_tokens, text_tokens, attention_mask, pair by pair | match_probability [b] |

The weights lie beside each graph in a `.onnx.data` file. `tokenizer.json` is read by transformers and, alone, by
`tokenizers`: both give the same ids."""


@dataclass(frozen=True)
class Graph:
    """One stage.

    stage: the method of `R2D2Model`, which names the file. inputs, outputs: names, in order. text_inputs: those with
    the axis `l`.
    """

    stage: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    text_inputs: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.stage}.onnx"


ENCODE_IMAGE = Graph("encode_image", ("pixel_values",), ("image_tokens", "image_embed"))
ENCODE_TEXT = Graph(
    "encode_text", ("input_ids", "attention_mask"), ("text_tokens", "text_embed"), ("input_ids", "attention_mask")
)
MATCH = Graph(
    "match",
    ("image_tokens", "text_tokens", "attention_mask"),
    ("match_probability",),
    ("text_tokens", "attention_mask"),
)


class Stage(nn.Module):
    """One method of the model as a module, which is what the exporter takes."""

    def __init__(self, model: R2D2Model, stage: str) -> None:
        super().__init__()
        self.model, self.stage = model, stage

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Calls the method."""
        return getattr(self.model, self.stage)(*inputs)


def save_onnx(model: Model, folder: Path) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        UserError: the model has no vocabulary or lacks published parts, or the folder cannot be written.
    """
    source = torch_model(model.config, published_parameters(model))
    with written_whole(folder) as unfinished:
        unfinished.mkdir()
        write_description(model, unfinished, config_json(model), USE)
        for graph in graphs_of(model.config):
            _export(source, graph, unfinished / graph.file)


def graphs_of(config: ModelConfig) -> tuple[Graph, ...]:
    """The stages that a model has."""
    return (ENCODE_IMAGE, ENCODE_TEXT, MATCH) if config.cross.layers else (ENCODE_IMAGE, ENCODE_TEXT)


def session(folder: Path, graph: Graph) -> onnxruntime.InferenceSession:
    """A graph of a folder, ready to run on the CPU."""
    return onnxruntime.InferenceSession(folder / graph.file, providers=["CPUExecutionProvider"])


def _export(source: R2D2Model, graph: Graph, path: Path) -> None:
    rows, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    axes = tuple({0: rows, 1: length} if name in graph.text_inputs else {0: rows} for name in graph.inputs)
    examples = _examples(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch warns about its own code
        torch.onnx.export(
            Stage(source, graph.stage).eval(),
            tuple(examples[name] for name in graph.inputs),
            path,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=(axes,),  # the one argument is *inputs
            dynamo=True,
            external_data=True,
            verbose=False,
        )


def _examples(source: R2D2Model) -> dict[str, torch.Tensor]:
    image, text, rows = source.config.image, source.config.text, EXAMPLE_ROWS
    input_ids = torch.zeros((rows, text["text_length"]), dtype=torch.int64)
    tokens = (image["image_size"] // image["patch_size"]) ** 2 + 1
    return {
        "pixel_values": torch.zeros((rows, 3, image["image_size"], image["image_size"])),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "image_tokens": torch.zeros((rows, tokens, image["width"])),
        "text_tokens": torch.zeros((*input_ids.shape, text["width"])),
    }
