"""Compares a folder's tokenizer and image processor with ours, on texts and pictures that are often misread."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from PIL import Image

from r2d2_jax.data.image.transforms import evaluation_image
from r2d2_jax.data.text.tokenizer import Tokenizer, tokenizer_of
from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.models.store import Model

TOKEN_IDS, PIXELS = "token ids", "pixels"

TEXTS = (
    "两只狗在草地上跑。",
    "花[SEP]草",
    "[CLS]花[SEP]",
    "[MASK] 花[MASK]草",
    "[PAD]",
    "花[UNK]草",
    "[sep] [ SEP ] [S\u200bEP]",
    "全角ＡＢＣ１２３！？（）～",
    "繁體字：國際電影節",
    "“引号”‘单’……——",
    "👨‍👩‍👧 一家😍🏳️‍🌈",
    "零\u200b宽\ufeff连\u2060字\xad符",
    "Café Cafe\u0301 ÀÉÎ Ñ ß ﬁ",
    "花\t草\n树\r\n叶\x00\x01\x7f",
    "花\u2028草\u2029树\x85叶\u3000",
    "한국어 かな カナ ｶﾅ русский العربية",
    "𠮷野家 㐂 \U0002a6d6",
    "##s ##花 [unused1] <s> </s> ‰ № ½ ①",
    "iPhone15Pro-max 3.14% a@b.cn #标签# http://x.cn/?a=1&b=2",
    "",
    " ",
    "。",
    "字" * 600,
    "a" * 300,
)


@dataclass(frozen=True)
class PreprocessingDifferences:
    """The largest difference of token ids and of normalised pixels; a line for each text or picture that differs."""

    largest: dict[str, float]
    lines: tuple[str, ...]


def preprocessing_differences(model: Model, folder: Path, limit: float) -> PreprocessingDifferences:
    """Compares what a folder of transformers or ONNX does to TEXTS and `sample_pictures` with what the model does.

    Args:
        model: the model, with its vocabulary and sizes.
        folder: the folder.
        limit: largest difference that needs no line.
    """
    largest, lines = {}, []
    for stage, found in ((TOKEN_IDS, _text_differences(model, folder)), (PIXELS, _picture_differences(model, folder))):
        differences = list(found)
        largest[stage] = max((difference for difference, _ in differences), default=0.0)
        lines += [line for difference, line in differences if not difference <= limit]
    return PreprocessingDifferences(largest, tuple(lines))


def _text_differences(model: Model, folder: Path) -> Iterator[tuple[float, str]]:
    if model.vocabulary is None:
        return
    length = model.config.text.text_length
    ours = tokenizer_of(model.vocabulary, length, map_punctuation=model.maps_punctuation)
    for reader, ids_of in _readers(folder, ours).items():
        for text in TEXTS:
            here, there = ours([text])[0][0], ids_of(text)
            yield _id_difference(here, there, f"{reader}, text {text[:40]!r}")


def _readers(folder: Path, ours: Tokenizer) -> Mapping[str, Callable[[str], np.ndarray]]:
    """The two libraries that read a folder's tokenizer. Neither reads config.json, so neither asks to run code."""
    import transformers

    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.enable_truncation(ours.text_length)
    alone.enable_padding(length=ours.text_length, pad_id=ours.pad_id, pad_token="[PAD]")

    def of_transformers(text: str) -> np.ndarray:
        return np.array(theirs([text], padding="max_length", truncation=True)["input_ids"][0])

    return {"transformers": of_transformers, "tokenizers": lambda text: np.array(alone.encode(text).ids)}


def _id_difference(here: np.ndarray, there: np.ndarray, what: str) -> tuple[float, str]:
    if len(here) != len(there):
        return np.inf, f"{what}: {len(there)} ids in the folder, {len(here)} here"
    where = np.flatnonzero(here != there)
    if not len(where):
        return 0.0, ""
    first = where[0]
    line = f"{what}: the first id that differs is number {first}, {there[first]} in the folder and {here[first]} here"
    return float(np.abs(here - there).max()), line


def _picture_differences(model: Model, folder: Path) -> Iterator[tuple[float, str]]:
    from r2d2_jax.convert.image_processing_r2d2 import R2D2ImageProcessor

    processor, side = R2D2ImageProcessor.from_pretrained(folder), model.config.image.image_size
    for name, encoded in sample_pictures().items():
        with Image.open(io.BytesIO(encoded)) as image:
            there = processor(images=[image], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        here = np.asarray(normalise_images(jnp.asarray(evaluation_image(encoded, side))[None]))[0]
        if there.shape != here.shape:
            yield np.inf, f"picture {name}: {list(there.shape)} in the folder, {list(here.shape)} here"
        else:
            difference = float(np.abs(here - there).max())
            yield difference, f"picture {name}: pixels differ by up to {difference:.2g}"


def sample_pictures() -> dict[str, bytes]:
    """Name -> encoded file, of each kind that programs like to convert in their own way."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (6, 9, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    rgb, grey = Image.fromarray(smooth), Image.fromarray(smooth[..., 0])
    mask = Image.fromarray(255 - smooth[..., 1])
    rgba = rgb.copy()
    rgba.putalpha(mask)
    deep = Image.fromarray(smooth[..., 0].astype(np.uint16) * 257)
    exif = {turn: Image.Exif() for turn in range(2, 9)}
    for turn, tags in exif.items():
        tags[0x0112] = turn
    return {
        "RGB in PNG": _encoded(rgb, "PNG"),
        **{f"JPEG with EXIF orientation {turn}": _encoded(rgb, "JPEG", exif=tags) for turn, tags in exif.items()},
        "PNG with EXIF orientation 6": _encoded(rgb, "PNG", exif=exif[6]),
        "TIFF with EXIF orientation 6": _encoded(rgb, "TIFF", exif=exif[6]),
        "grey": _encoded(grey, "PNG"),
        "16-bit grey": _encoded(deep, "PNG"),
        "16-bit grey TIFF": _encoded(deep, "TIFF"),
        "16-bit TIFF with white at zero": _encoded(deep, "TIFF", tiffinfo={262: 0}),
        "float TIFF": _encoded(Image.fromarray(smooth[..., 0].astype(np.float32) / 255), "TIFF"),
        "grey with transparency": _encoded(Image.merge("LA", (grey, mask)), "PNG"),
        "palette": _encoded(rgb.quantize(16), "PNG"),
        "palette with transparency": _encoded(rgb.quantize(16), "PNG", transparency=3),
        "RGB with a transparent colour": _encoded(rgb, "PNG", transparency=tuple(smooth[0, 0].tolist())),
        "RGBA": _encoded(rgba, "PNG"),
        "RGBA in WebP": _encoded(rgba, "WEBP"),
        "GIF with transparency": _encoded(rgb.quantize(16), "GIF", transparency=3),
        "CMYK": _encoded(rgb.convert("CMYK"), "JPEG"),
        "1 bit": _encoded(grey.convert("1"), "PNG"),
        "1 x 1": _encoded(rgb.resize((1, 1)), "PNG"),
        "3 x 1": _encoded(rgb.resize((3, 1)), "PNG"),
        "1 x 400": _encoded(rgb.resize((1, 400)), "PNG"),
        "400 x 2": _encoded(rgb.resize((400, 2)), "PNG"),
    }


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
