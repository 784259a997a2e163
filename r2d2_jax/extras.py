"""What only some tasks need, and what is said where it is not installed."""

import importlib

from r2d2_jax.errors import UserError

TORCH, BEAM, GCS = ("torch", "transformers"), ("apache_beam",), ("gcsfs", "google.cloud.storage")
CRC32C = ("google_crc32c",)
USEARCH, SERVER = ("usearch",), ("starlette", "uvicorn")
ONNX = (*TORCH, "onnx", "onnxscript", "onnxruntime")


def require(modules: tuple[str, ...], what: str, extra: str) -> None:
    """Checks that modules can be imported.

    Args:
        modules: TORCH, ONNX, BEAM, GCS, CRC32C, USEARCH or SERVER.
        what: what needs them, for the message.
        extra: the extra of this package that installs them.

    Raises:
        UserError: one of them is absent.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{what} needs {name}, which is not installed: pip install -e '.[{extra}]'") from error
