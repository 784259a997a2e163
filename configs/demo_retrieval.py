"""Fine-tunes the demonstration's model for retrieval: hard targets, hard negatives, nothing masked, no teacher.

    python launch/main.py --config=configs/demo.py --workdir=runs/demo
    python launch/main.py --config=configs/demo_retrieval.py --workdir=runs/demo_retrieval

The published fine-tuning, at the demonstration's size. Rate, batch size and epochs are our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config() -> ConfigDict:
    """Starts from runs/demo and takes a minute on two cores."""
    config = ConfigDict()
    config.task = "retrieval"
    config.model = presets.demo_model()
    config.data = presets.demo_data()
    config.initial = ConfigDict(dict(model="runs/demo"))
    config.retrieval = ConfigDict(dict(fgr=True, match_class_weights=(1.0, 2.0)))  # [C]
    config.optimizer = ConfigDict(dict(learning_rate=2e-4, warmup_steps=50, weight_decay=0.05))
    config.train = ConfigDict(dict(batch_size=64, epochs=6.0, log_every=50, evaluate_every=0, checkpoint_every=200))
    config.evaluation = ConfigDict(dict(rerank_candidates=16, batch_size=64))
    return completed(config)
