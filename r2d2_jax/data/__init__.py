"""From photographs and captions on disk to batches of arrays in host memory."""
