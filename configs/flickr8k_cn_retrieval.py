"""Fine-tunes the small model of flickr8k_cn for retrieval, on the same 6,000 photographs, for two CPU cores.

    python launch/main.py --config=configs/flickr8k_cn.py --workdir=runs/flickr8k_cn
    python launch/main.py --config=configs/flickr8k_cn_retrieval.py --workdir=runs/flickr8k_cn_retrieval

The published fine-tuning at the size of a model from scratch. Rate, batch size, epochs and augmentation are our
decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed


def get_config() -> ConfigDict:
    """Starts from runs/flickr8k_cn and visits every photograph ten times."""
    config = ConfigDict()
    config.task = "retrieval"
    config.model = presets.initial_model()
    config.model.update(
        freeze_image_tower=False, temperature_range=(0.05, 0.5), dtype="float32", remat="none", unroll=True
    )
    config.model.text.dropout = config.model.cross.dropout = 0.0  # the model still learns what it sees
    config.data = ConfigDict(dict(directory="data/flickr8k_cn", crop_scale=(0.4, 1.0)))
    config.initial = ConfigDict(dict(model="runs/flickr8k_cn"))
    hardness = presets.from_scratch(batch_size=128)["negative_hardness"]  # as the model was pre-trained
    config.retrieval = ConfigDict(dict(fgr=True, match_class_weights=(1.0, 2.0), negative_hardness=hardness))
    config.optimizer = ConfigDict(dict(learning_rate=2e-4, warmup_steps=50, weight_decay=0.05))
    config.train = ConfigDict(
        dict(batch_size=128, epochs=10.0, evaluate_every=0, evaluate_every_epochs=5.0, checkpoint_every=200)
    )
    config.evaluation = ConfigDict(dict(rerank_candidates=16, batch_size=128))
    return completed(config)
