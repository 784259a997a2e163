"""Files of named tensors: `.safetensors`, and PyTorch's `.pth`, `.pt`, `.bin` and `.ckpt`, whose code never runs."""

import argparse
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 - gives NumPy the bfloat16 that safetensors may hold
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from r2d2_jax.atomic import written_whole
from r2d2_jax.convert.file_kinds import is_safetensors, refuse_other_kinds
from r2d2_jax.convert.torchscript import is_torchscript, read_torchscript
from r2d2_jax.convert.wrappings import PUBLISHED_KEY, listed, state_dict, without_wrappers
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.extras import TORCH, require

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # the last as in checkpoint.pth.tar
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
INDEX = ".index.json"  # ends the name of a file that says which shard holds which tensor
# The types of numbers that NumPy has, or gets from ml_dtypes.
SAFETENSORS_NUMBERS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
# Exceptions that PyTorch's and our reader raise on damaged files.
DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class TensorFile:
    """What a file held.

    tensors: name -> tensor, floating-point ones as float32. notes: what was unwrapped and left out, a line each.
    """

    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of `read_tensor_file`."""
    return read_tensor_file(path).tensors


def read_tensor_file(path: Path) -> TensorFile:
    """Reads the tensors of one file, or of the shards that an index names.

    A PyTorch file may hold the state dict itself or keep it under a key, see `wrappings`; what wrappers put into the
    names is dropped. Code in a TorchScript archive, as OpenAI publishes CLIP, is not run.

    Args:
        path: a file whose name ends in one of SUFFIXES or in INDEX.

    Raises:
        UserError: the file is absent, truncated, of another kind, would run code, or holds no tensors; PyTorch is
            needed and absent.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; expected a checkpoint: {', '.join(SUFFIXES)}{_tensorflow_hint(path)}")
    if path.name.endswith(INDEX):
        tensors, notes = _read_shards(path)
    else:
        refuse_other_kinds(path)
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path} ends in {path.suffix!r}; expected {', '.join(SUFFIXES)}")
        tensors, notes = (_read_safetensors(path), []) if path.suffix == ".safetensors" else _read_torch(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors; expected the weights of a model")
    if not any(tensor.size for tensor in tensors.values()):
        raise UserError(
            f"{path} holds {len(tensors)} tensors without a number in them, as DeepSpeed's ZeRO stage 3 leaves them; "
            "merge its shards first, with zero_to_fp32.py"
        )
    tensors, unwrapped = without_wrappers(tensors, str(path))
    return TensorFile(tensors, (*notes, *unwrapped))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file of tensors, whole or not at all.

    Args:
        path: `.safetensors`, or `.pth` for PyTorch's {"model": state dict}, the published layout.
        tensors: name -> tensor.

    Raises:
        UserError: another suffix, no room on the disk, or PyTorch is needed and absent.
    """
    if path.suffix == ".safetensors":
        with written_whole(path) as unfinished:
            save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, unfinished)
    elif path.suffix == ".pth":
        torch = _imported_torch(path)
        writeable = {name: np.require(tensor, requirements=("C", "W")) for name, tensor in tensors.items()}
        model = {name: torch.from_numpy(tensor) for name, tensor in writeable.items()}
        with written_whole(path) as unfinished, unfinished.open("wb") as file:
            _torch_save(torch, {PUBLISHED_KEY: model}, file)
    else:
        raise UserError(f"cannot write {path}: expected a name that ends in .pth or .safetensors")


def _torch_save(torch: Any, content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch's zip writer hides a full disk behind its own exception
            raise error.__context__ from None
        raise


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if path.open("rb").read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a"):
        raise UserError(f"{path} is a PyTorch file; rename it so that it ends in .pth")
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if (number := file.get_slice(name).get_dtype()) not in SAFETENSORS_NUMBERS:
                    raise UserError(f"{path}: {name} holds {number} numbers; expected float32, float16 or bfloat16")
            return {name: _float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file: {first_line(error)}; fetch it again") from error


def _read_shards(index: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of shards: {first_line(error)}; fetch it again") from error
    if absent := [name for name in shards if not (index.parent / name).is_file()]:
        raise UserError(
            f"{index.parent} lacks {len(absent)} of {len(shards)} shards: {listed(absent)}; fetch them again"
        )
    tensors: dict[str, np.ndarray] = {}
    notes = {f"{len(shards)} shards": None}
    for name in shards:
        shard = read_tensor_file(index.parent / name)
        tensors |= shard.tensors
        notes |= dict.fromkeys(shard.notes)
    return tensors, list(notes)


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        if is_torchscript(path):
            return {name: _float32(tensor) for name, tensor in read_torchscript(path).items()}, []
        torch = _imported_torch(path)
        if not path.stat().st_size:
            raise EOFError("it is empty")
        if is_safetensors(path):
            raise UserError(f"{path} is a safetensors file; rename it so that it ends in .safetensors")
        loaded = _safely_loaded(torch, path)
    except pickle.UnpicklingError as error:
        raise _not_opened(path, error) from error
    except DAMAGE as error:
        # Its first sentence: the next ones advise to load the file without regard to code in it.
        reason = first_line(error).split(". ")[0]
        raise UserError(f"{path} is no whole PyTorch file: {reason}; fetch it again") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}; expected a state dict, or a dict with one as 'model'")
    tensors, notes = state_dict(loaded, lambda value: isinstance(value, torch.Tensor), str(path))
    return {name: _array(tensor, name, path) for name, tensor in tensors.items()}, notes


def _not_opened(path: Path, error: pickle.UnpicklingError) -> UserError:
    """Tells a file with foreign objects from one that is no pickle."""
    if re.search("invalid load key|Unsupported operand|unpickling stack underflow", str(error)):
        return UserError(f"{path} is no PyTorch file; check that it is the right file, or fetch it again")
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return UserError(
        f"{path} holds more than tensors and plain values, which could run code, so it was not opened: "
        f"{f'it refers to {named[1]}' if named else first_line(error)}; save its state dict alone, or as .safetensors"
    )


def _array(tensor: Any, name: str, path: Path) -> np.ndarray:
    """A PyTorch tensor as an array, without a copy where it is float32 or integer."""
    try:
        return (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    except (TypeError, RuntimeError) as error:  # quantised, sparse, or without numbers (device "meta")
        raise UserError(f"{path}: {name} is no plain tensor ({first_line(error)}); save it as float32") from error


def _safely_loaded(torch: Any, path: Path) -> Any:
    """Loads tensors and plain values only, lazily from the disk unless the file is older than PyTorch 1.6."""
    arguments = {"map_location": "cpu", "weights_only": True}
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    with torch.serialization.safe_globals(_plain_values()):
        return torch.load(path, mmap=zipped, **arguments)


def _plain_values() -> list[Any]:
    """What many keep beside a model and cannot run code: arguments, paths, NumPy's numbers and arrays of them."""
    functions: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    older = [(each, f"numpy.core.multiarray.{each.__name__}") for each in functions]  # as NumPy 1 names them
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdU"}
    return [argparse.Namespace, PosixPath, np.ndarray, np.dtype, *functions, *older, *kinds]


def _float32(tensor: np.ndarray) -> np.ndarray:
    integer = np.issubdtype(tensor.dtype, np.integer) or tensor.dtype == bool
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused by name
        return tensor if integer else tensor.astype(np.float32, copy=False)


def _imported_torch(path: Path) -> Any:
    require(TORCH, f"the PyTorch file {path}", "convert")
    import torch

    return torch


def _tensorflow_hint(path: Path) -> str:
    """bert_model.ckpt is no file but what the names of several begin with."""
    index = path.with_name(f"{path.name}.index")
    return f". {index.name} is of a TensorFlow checkpoint: convert that to PyTorch first" if index.is_file() else ""
