"""Ablations: the same training with something left out, over several seeds, and the table of what each part brings."""
