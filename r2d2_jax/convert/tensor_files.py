"""Files of named tensors: `.safetensors`, and PyTorch's `.pth`, `.pt` and `.bin`, whose code never runs."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 - gives NumPy the bfloat16 that safetensors may hold
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from r2d2_jax.atomic import written_whole
from r2d2_jax.convert.torchscript import is_torchscript, read_torchscript
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.extras import TORCH, require

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Exceptions that PyTorch's and our reader raise on damaged files.
DAMAGE = (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, floating-point ones as float32.

    A PyTorch file may hold the state dict itself or keep it under "model" or "state_dict"; the prefix "module." of a
    distributed wrapper is dropped. Anything else in it is ignored. Code in a TorchScript archive, as OpenAI publishes
    CLIP, is not run.

    Args:
        path: a `.safetensors`, `.pth`, `.pt` or `.bin` file.

    Raises:
        UserError: the file is absent, truncated, of another kind, or would run code; PyTorch is needed and absent.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; expected a checkpoint: {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        tensors = _read_torch(path)
    else:
        raise UserError(f"{path} ends in {path.suffix!r}; expected {', '.join(SUFFIXES)}")
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


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
            _torch_save(torch, {"model": model}, file)
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
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: _float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file: {first_line(error)}; fetch it again") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        if is_torchscript(path):
            return {name: _float32(tensor) for name, tensor in read_torchscript(path).items()}
        torch = _imported_torch(path)
        loaded = _safely_loaded(torch, path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, which could run code, so it was not opened: "
            f"{first_line(error)}; save its state dict alone, or as .safetensors"
        ) from error
    except DAMAGE as error:
        raise UserError(f"{path} is no whole PyTorch file: {first_line(error)}; fetch it again") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}; expected a state dict, or a dict with one as 'model'")
    floating = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in loaded.items()
        if isinstance(tensor, torch.Tensor)
    }
    return {name: tensor.detach().numpy() for name, tensor in floating.items()}


def _safely_loaded(torch: Any, path: Path) -> Any:
    """Loads tensors and plain values only, lazily from the disk unless the file is older than PyTorch 1.6."""
    arguments = {"map_location": "cpu", "weights_only": True}
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    return torch.load(path, mmap=zipped, **arguments)


def _float32(tensor: np.ndarray) -> np.ndarray:
    integer = np.issubdtype(tensor.dtype, np.integer) or tensor.dtype == bool
    return tensor if integer else tensor.astype(np.float32, copy=False)


def _imported_torch(path: Path) -> Any:
    require(TORCH, f"the PyTorch file {path}", "convert")
    import torch

    return torch
