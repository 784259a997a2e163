"""Fine-tunes a model to say whether image and text belong together, on ICM, IQM or one's own labelled pairs.

    python launch/main.py --config=matching:icm --config.initial.model=models/r2d2_vitl --workdir=runs/icm
    python launch/main.py --config=matching:own --config.initial.model=models/mine --workdir=runs/mine \
        --config.data.directory=data/my_pairs

Own pairs are prepared with `launch/prepare_data.py --corpus=pairs`. The model has the sizes of `initial.model`. The
best epoch is the one with the highest AUC on validation.

    --config.matching.loss=published     the published code's loss, which applies softmax twice

[C] the published code, [O] our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed
from r2d2_jax.errors import UserError

SETS = ("icm", "iqm", "own")
RATE = 3e-6  # [C]


def get_config(dataset: str = "own") -> ConfigDict:
    """For eight devices, with 64 pairs on each [C]; the batch is global, so fewer devices have more on each.

    One's own set is for one device.
    """
    if dataset not in SETS:
        raise UserError(f"matching has no data set {dataset!r}; it has {', '.join(SETS)}")
    config = ConfigDict()
    config.task = "matching"
    config.model = presets.initial_model()
    config.data = presets.fine_tuning_data(dataset)
    config.matching = ConfigDict(dict(loss="cross_entropy"))  # [O]: correct; "published" is [C]
    config.optimizer = ConfigDict(
        dict(
            learning_rate=RATE,
            initial_learning_rate=0.05 * RATE,  # [C]
            weight_decay=0.01,  # [C]
            rates=(("bias", 2.0),),  # [C]
            **_schedule(dataset),
        )
    )
    batch_size, log_every = (64, 10) if dataset == "own" else (8 * 64, 50)  # 8 * 64 [C], the others [O]
    config.train = presets.fine_tuning_train(batch_size, 20.0, log_every)  # 20 [C]
    config.evaluation = ConfigDict(dict(batch_size=256))  # [O]
    return completed(config)


def _schedule(dataset: str) -> dict:
    """3,125 steps up and as many down [C]; a set of one's own may end long before the top, so it has a cosine [O]."""
    return (
        dict(schedule="cosine", warmup_steps=100, warmup_share=presets.OWN_WARMUP_SHARE)
        if dataset == "own"
        else dict(schedule="triangular", warmup_steps=3125)
    )
