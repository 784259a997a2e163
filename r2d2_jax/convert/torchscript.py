"""Reads the tensors of TorchScript archives, as OpenAI publishes CLIP, without running the code in them.

An archive is a zip file with pickled modules in `data.pkl`, the numbers in `data/`, and program code, which is never
read. PyTorch's safe loader refuses archives, and its other loader runs them as programs.
"""

import collections
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, np.ndarray]:
    """The tensors under the names that `state_dict` gives them, and tensors that are plain attributes.

    Raises:
        pickle.UnpicklingError: it refers to anything but modules and tensors.
        ValueError, KeyError, zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name.partition("/")[0] for name in archive.namelist())
        with archive.open(f"{root}/data.pkl") as file:
            module = _Unpickler(file, archive, root).load()
    return dict(_tensors(module, ""))


class _Module:
    """Stands in for every class of the archive and keeps its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    """Accepts modules, tensors and their storages, and refuses any other name."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, reference: Any) -> np.ndarray:
        _, dtype, key, *_ = reference
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype)


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    inside = offset >= 0 and min(shape, default=1) > 0 and min(stride, default=0) >= 0 and last < len(storage)
    if not inside:
        raise ValueError(f"a tensor of {list(shape)} does not fit into its {len(storage)} numbers")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides).copy()


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in module.attributes.items():
        if isinstance(value, np.ndarray):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
