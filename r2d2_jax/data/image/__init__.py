"""Images: decoding, resizing, transforms and augmentation."""
