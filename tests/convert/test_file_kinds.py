"""Files that are no checkpoint are named for what they are; shards are read together; what is not finite is refused."""

import contextlib
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import VOCABULARY, random_model
from safetensors.numpy import load_file, save_file

from r2d2_jax.convert.conversion import Form, open_model, write_model
from r2d2_jax.convert.modeling_r2d2 import R2D2Model
from r2d2_jax.convert.tensor_files import read_tensors, write_tensors
from r2d2_jax.convert.torch_r2d2 import to_published
from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model
from r2d2_jax.trees import flat


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
KINDS = {
    "pointer": (POINTER, "is a Git LFS pointer, not the file that it stands for; .*: run `git lfs pull`"),
    "page": (b"\n<!DOCTYPE html><html>Sign in</html>", r"is a web page \(HTML or XML\); .*to log in perhaps"),
    "denied": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "message": (
        b'{"error": "Repository not found"}',
        'is a text, which begins with \'{"error": "Repository not found"}\'',
    ),
    "gguf": (b"GGUF\3\0\0\0", "is a GGUF file of llama.cpp; .*: convert it to PyTorch or safetensors first"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file, as Keras and TensorFlow write"),
    "tensorflow": (bytes(40) + bytes.fromhex("57fb808b247547db"), "is the index of a TensorFlow checkpoint"),
    "zip": (zipped(**{"weights.bin": "x"}), "is a zip archive that PyTorch did not write, with weights.bin in it"),
    "tar": (tarred(), "is a tar archive; .*: unpack it"),
    "gzip": (gzip.compress(b"x" * 100), "is compressed with gzip; .*: unpack it"),
    "array": (b"\x93NUMPY\1\0", "is a NumPy array"),
    "png": (b"\x89PNG\r\n\x1a\n", "is an image"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    content, message = KINDS[kind]
    (tmp_path / f"in{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=f"in{suffix} {message}"):
        open_model(tmp_path / f"in{suffix}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.pth", b"", "is no whole PyTorch file: it is empty; fetch it again"),
        ("in.safetensors", b"", "is no whole safetensors file"),
        ("in.pth", bytes(range(256)), "is no PyTorch file; check that it is the right file, or fetch it again"),
        ("in.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        ("in.ckpt.data-00000-of-00001", bytes(range(256)), "ends in '.data-00000-of-00001'; expected .safetensors"),
    ],
)
def test_what_shows_only_when_it_is_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("damage", ["name", "version"])
def test_a_damaged_directory_of_a_zip_is_damage(tmp_path: Path, damage: str) -> None:
    write_tensors(tmp_path / "in.pth", {"a": np.ones(2, np.float32)})
    content = (tmp_path / "in.pth").read_bytes()
    entry = content.index(b"PK\x01\x02")
    at = entry + (46 if damage == "name" else 6)
    (tmp_path / "in.pth").write_bytes(content[:at] + b"\xff\xff" + content[at + 2 :])
    with pytest.raises(UserError, match="in.pth is no whole PyTorch file"):
        read_tensors(tmp_path / "in.pth")


def test_a_damaged_file_of_old_pytorch_is_damage(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "in.pth").read_bytes()
    key = content.index(b"FloatStorage") + 20  # within the name of the storage
    for at in range(key, len(content) - 8):
        (tmp_path / "in.pth").write_bytes(content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :])
        with contextlib.suppress(UserError):
            read_tensors(tmp_path / "in.pth")


def test_a_wrong_suffix_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": np.ones(2, np.float32)})
    write_tensors(tmp_path / "b.pth", {"a": np.ones(2, np.float32)})
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    (tmp_path / "b.pth").rename(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="a.pth is a safetensors file; rename it so that it ends in .safetensors"):
        read_tensors(tmp_path / "a.pth")
    with pytest.raises(UserError, match="b.safetensors is a PyTorch file; rename it so that it ends in .pth"):
        read_tensors(tmp_path / "b.safetensors")


def test_a_tensorflow_checkpoint_is_named_by_what_its_files_begin_with(tmp_path: Path) -> None:
    (tmp_path / "bert_model.ckpt.index").touch()
    with pytest.raises(UserError, match="bert_model.ckpt.index is of a TensorFlow checkpoint: convert that to PyTorch"):
        read_tensors(tmp_path / "bert_model.ckpt")


def test_numbers_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "in.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(UserError, match="a holds F8_E4M3 numbers; expected float32, float16 or bfloat16"):
        read_tensors(tmp_path / "in.safetensors")


def test_a_class_that_is_refused_is_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "in.pth")
    with pytest.raises(
        UserError, match="was not opened: it refers to torch.nn.modules.linear.Linear; save its state dict"
    ):
        read_tensors(tmp_path / "in.pth")


def sharded(folder: Path, tensors: dict[str, np.ndarray], suffix: str) -> Path:
    """Two shards and their index."""
    names = sorted(tensors)
    halves = {f"model-0000{n + 1}-of-00002{suffix}": names[n::2] for n in range(2)}
    for file, part in halves.items():
        write_tensors(folder / file, {name: tensors[name] for name in part})
    weight_map = {name: file for file, part in halves.items() for name in part}
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_shards_are_read_together_and_a_missing_one_is_named(tmp_path: Path, suffix: str) -> None:
    tensors = to_published(random_model())
    index = sharded(tmp_path, tensors, suffix)
    model = open_model(index)
    assert model.notes == ("2 shards",)
    again = to_published(model)
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    (tmp_path / f"model-00002-of-00002{suffix}").unlink()
    with pytest.raises(UserError, match=f"lacks 1 of 2 shards: model-00002-of-00002{suffix}; fetch them again"):
        open_model(index)


def test_wrapped_names_in_shards_are_noted_once(tmp_path: Path) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in to_published(random_model()).items()}
    model = open_model(sharded(tmp_path, tensors, ".safetensors"))
    assert model.notes == ("2 shards", "names without module. of DataParallel or DDP")


def test_a_folder_with_a_checkpoint_in_it_is_told_apart(tmp_path: Path) -> None:
    write_tensors(tmp_path / "r2d2.pth", to_published(random_model()))
    with pytest.raises(UserError, match=r"is no model; expected .*. It holds r2d2.pth: name the file itself"):
        open_model(tmp_path)


@pytest.mark.parametrize("inside", ["checkpoints", "checkpoints/20"])
def test_a_folder_in_a_run_is_told_apart(inside: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(UserError, match=f"is no model; .* It lies in a run: name {tmp_path}$"):
        open_model(tmp_path / inside)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="index.json is no index of shards: .*; fetch it again|holds no tensors"):
        read_tensors(tmp_path / "model.safetensors.index.json")


def test_a_transformers_folder_may_be_in_shards(tmp_path: Path) -> None:
    model = random_model(tokens=VOCABULARY)
    write_model(model, tmp_path / "one", Form.TRANSFORMERS)
    R2D2Model.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    before, after = dict(flat(model.params)), dict(flat(open_model(tmp_path / "many").params))
    assert all(np.array_equal(before[path], after[path]) for path in before)


def with_nan(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    broken = tensors[name].copy()
    broken.reshape(-1)[:2] = np.nan, -np.inf
    return tensors | {name: broken}


@pytest.mark.parametrize("name", ["vision_proj.weight", "text_encoder.pooler.dense.weight"])
@pytest.mark.parametrize("file", ["in.pth", "in.safetensors"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, name: str, file: str) -> None:
    write_tensors(tmp_path / file, with_nan(to_published(random_model()), name))
    match = rf"{file} holds weights that are not finite; .*\n  - {name} \[\d+, 64\]: 1 NaN, 1 infinite of \d+$"
    with pytest.raises(UserError, match=match):
        open_model(tmp_path / file)


def test_what_float32_cannot_hold_is_not_finite(tmp_path: Path) -> None:
    tensors = to_published(random_model()) | {"temp": np.float64(1e300).reshape(())}
    save_file({name: np.array(tensor) for name, tensor in tensors.items()}, tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=r"temp \[\]: 0 NaN, 1 infinite of 1"):
        open_model(tmp_path / "in.safetensors")


@pytest.mark.parametrize(
    ("form", "file", "name"),
    [
        (Form.OURS, "params.safetensors", "text_projection/bias"),
        (Form.TRANSFORMERS, "model.safetensors", "text_proj.bias"),
    ],
)
def test_folders_with_weights_that_are_not_finite_are_refused(tmp_path: Path, form: Form, file: str, name: str) -> None:
    model: Model = random_model(tokens=VOCABULARY)
    write_model(model, tmp_path / "in", form)
    save_file(with_nan(load_file(tmp_path / "in" / file), name), tmp_path / "in" / file)
    with pytest.raises(UserError, match=rf"in.* holds weights that are not finite; .*\n  - {name} \[16\]: 1 NaN"):
        open_model(tmp_path / "in")
