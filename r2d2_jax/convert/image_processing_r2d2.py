"""The image processor of R2D2 and PRD2 for transformers: pictures of any kind, read as in training.

This file depends on transformers, Pillow and NumPy alone and travels inside every exported folder, so that there

    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)

turns photographs as their EXIF tag says, scales 16 bits to 8 and makes transparent pixels white. Part of r2d2_jax,
Apache-2.0.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from r2d2_jax.data.image.upright import upright_rgb


class R2D2ImageProcessor(BaseImageProcessor):
    """Resizes bicubically to a square, without a crop, and normalises with the configured mean and deviation."""

    model_input_names = ["pixel_values"]

    def preprocess(self, images: Any, return_tensors: str | None = "np") -> BatchFeature:
        """Prepares pictures for the model.

        Args:
            images: one or a list of: a PIL image, a path, or a uint8 array [h w] or [h w 3].
            return_tensors: "np" for NumPy, "pt" for PyTorch.

        Returns:
            pixel_values float32 [b 3 side side].
        """
        listed = images if isinstance(images, (list, tuple)) else [images]
        pixels = np.stack([self._square(image) for image in listed]).astype(np.float32) / 255
        normalised = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        values = np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def _square(self, image: Any) -> np.ndarray:
        """uint8 [side side 3]."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        elif not isinstance(image, Image.Image):
            image = Image.open(image)
        side = (self.size["width"], self.size["height"])
        return np.asarray(upright_rgb(image).resize(side, Image.Resampling.BICUBIC))
