"""A model as a folder that transformers loads: sizes, weights, tokenizer, image processor, model card, and its code.

Without r2d2_jax, `AutoModel.from_pretrained(folder, trust_remote_code=True)` loads it as the PyTorch model of
`modeling_r2d2.py`, which is copied into the folder. The weights have the published names; the tables that no output
reads are left out.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from r2d2_jax.atomic import written_whole
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.reading import model_config
from r2d2_jax.convert.model_card import model_card
from r2d2_jax.convert.naming import assembled
from r2d2_jax.convert.tensor_files import INDEX, read_tensors
from r2d2_jax.convert.torch_r2d2 import published_parameters, published_places
from r2d2_jax.data.image import upright
from r2d2_jax.data.text.tokenizer import tokenizer_of
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.lineage import checked_lineage
from r2d2_jax.models.r2d2 import CLIP_DEVIATION, CLIP_MEAN
from r2d2_jax.models.store import Model, checked_evaluation
from r2d2_jax.paths import refuse_pointer
from r2d2_jax.vocabulary import VOCABULARY, Vocabulary, vocabulary_in, write_plain_vocabulary

CONFIG, WEIGHTS, CODE, CARD = "config.json", "model.safetensors", "modeling_r2d2.py", "README.md"
IMAGE_CONFIG, IMAGE_CODE = "preprocessor_config.json", "image_processing_r2d2.py"
MODEL_TYPE = "r2d2"
SIZES = ("image", "text", "cross", "embed_size")  # the part of ModelConfig that `config.json` keeps
BICUBIC = 3  # Pillow's number, which transformers' image processors use


def is_transformers(folder: Path) -> bool:
    """Whether the folder holds what `save_transformers` writes."""
    return (folder / CONFIG).is_file() and _weights(folder).is_file()


def save_transformers(model: Model, folder: Path) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        UserError: the model has no vocabulary or lacks published parts, or the folder cannot be written.
    """
    with written_whole(folder) as unfinished:
        unfinished.mkdir()
        described = config_json(model) | {"lineage": model.lineage, "evaluation": model.evaluation} | AUTO_CLASSES
        write_description(model, unfinished, described, PYTORCH_USE)
        save_file(published_parameters(model), unfinished / WEIGHTS, metadata={"format": "pt"})
        shutil.copyfile(Path(__file__).with_name(CODE), unfinished / CODE)


def load_transformers(folder: Path) -> Model:
    """Reads what `save_transformers` wrote, or transformers' own `save_pretrained` of it.

    Raises:
        UserError: it is a folder of another model, or it is damaged.
    """
    try:
        refuse_pointer(folder / CONFIG)
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {first_line(error)}; fetch it again") from error
    if not isinstance(described, dict) or described.get("model_type") != MODEL_TYPE:
        kind = described.get("model_type") if isinstance(described, dict) else None
        raise UserError(f"{folder / CONFIG} describes a model of type {kind!r}; expected {MODEL_TYPE!r}")
    sizes = {name: described[name] for name in SIZES if name in described}
    config = model_config(sizes | {"dtype": "float32"}, f"the model in {folder}")
    weights, vocabulary = _weights(folder), vocabulary_in(folder)
    params, _ = assembled(read_tensors(weights), published_places(config), {}, config, str(weights))
    lineage = checked_lineage(described.get("lineage", []), str(folder / CONFIG))
    evaluation = checked_evaluation(described.get("evaluation", {}), str(folder / CONFIG))
    maps = bool(described.get("maps_punctuation", False))
    return Model(config, params, {}, vocabulary, maps, lineage=lineage, evaluation=evaluation)


def _weights(folder: Path) -> Path:
    """The file of weights, or the index of several, as transformers saves a large model."""
    index = folder / f"{WEIGHTS}{INDEX}"
    return index if index.is_file() else folder / WEIGHTS


def write_description(model: Model, folder: Path, config: dict[str, Any], use: str) -> None:
    """Writes everything but weights: sizes, image processor, tokenizer, model card with how to use the folder.

    Args:
        model: the model.
        folder: where to.
        config: the content of `config.json`.
        use: the part of the model card that differs.

    Raises:
        UserError: the model has no vocabulary.
    """
    if model.vocabulary is None:
        raise UserError("the model came without a vocabulary, which its tokenizer needs: name its vocab.txt")
    _write_json(folder / CONFIG, config)
    _write_json(folder / IMAGE_CONFIG, image_processor(model.config))
    (folder / IMAGE_CODE).write_text(image_code(), encoding="utf-8")
    _write_tokenizer(model, model.vocabulary, folder)
    (folder / CARD).write_text(model_card(model, use), encoding="utf-8")


def config_json(model: Model) -> dict[str, Any]:
    """The sizes, and what the tokenizer does: the part of `config.json` that depends on the model."""
    sizes = model.config.described()
    return {**{name: sizes[name] for name in SIZES}, "maps_punctuation": model.maps_punctuation}


# The part of `config.json` that tells transformers' Auto classes which code to run.
AUTO_CLASSES = {
    "model_type": MODEL_TYPE,
    "architectures": ["R2D2Model"],
    "auto_map": {"AutoConfig": "modeling_r2d2.R2D2Config", "AutoModel": "modeling_r2d2.R2D2Model"},
    "dtype": "float32",
}


def image_processor(config: ModelConfig) -> dict[str, Any]:
    """The published preprocessing in transformers' keys: a bicubic square, CLIP's mean and deviation, no crop.

    Whoever does not trust the folder's code gets CLIP's own processor, without being asked.
    """
    side = config.image.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_r2d2.R2D2ImageProcessor"},
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": BICUBIC,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_DEVIATION),
    }


PYTORCH_USE = """With `folder`, the path of this folder, `photo`, a PIL image or a path, and `text`, a string:

```python
import torch
import transformers

model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
pixel_values = processor(images=[photo], return_tensors="pt")["pixel_values"]
texts = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt")
with torch.no_grad():
    image_tokens, image_embed = model.encode_image(pixel_values)
    text_tokens, text_embed = model.encode_text(**texts)
    cosine = image_embed @ text_embed.T
```

`trust_remote_code=True` runs `modeling_r2d2.py` and `image_processing_r2d2.py`, which lie beside this file. The
tokenizer needs no code; without `False` transformers would ask whether the model's may run."""


def image_code() -> str:
    """The image processor as one file that needs nothing of ours: `upright.py` stands where it is imported."""
    code = Path(__file__).with_name(IMAGE_CODE).read_text(encoding="utf-8")
    _, _, upright_code = Path(upright.__file__).read_text(encoding="utf-8").split('"""', 2)  # after its docstring
    return code.replace(f"from {upright.__name__} import upright_rgb\n", upright_code.lstrip())


def _write_tokenizer(model: Model, vocabulary: Vocabulary, folder: Path) -> None:
    length = model.config.text.text_length
    tokenizer = tokenizer_of(vocabulary, length, map_punctuation=model.maps_punctuation)
    backend = tokenizer.backend()
    backend.save(str(folder / "tokenizer.json"))
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    reading = {
        "model_max_length": length,
        "model_input_names": ["input_ids", "attention_mask"],
        "split_special_tokens": True,  # as in training, their names in a text are text
    }
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **reading, **special})
    write_plain_vocabulary(vocabulary, folder / VOCABULARY)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
