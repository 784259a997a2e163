"""Checkpoints of other frameworks in and out: the published PyTorch models, CLIP and BERT."""
