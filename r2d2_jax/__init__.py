"""R2D2, Chinese image-text pre-training, in JAX and Flax.

model = r2d2_jax.load("models/r2d2_vitl")
model.match("photo.jpg", ["乔丹投篮", "乔丹运球"])
"""

from typing import Any

__all__ = ["__version__", "load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Imports `load` when it is asked for: processes that only decode images never pay for it."""
    if name == "load":
        from r2d2_jax.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
