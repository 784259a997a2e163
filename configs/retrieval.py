"""Fine-tunes a model for retrieval on one of the article's data sets, or on one's own.

    python launch/main.py --config=retrieval:flickr30k_cn --config.initial.model=models/r2d2_vitl --workdir=runs/f30k
    python launch/main.py --config=retrieval:own --config.initial.model=models/mine --workdir=runs/mine \
        --config.data.directory=data/mine

    flickr30k_cn  flickr30k_cna  coco_cn  aic_icc  muge  icr  iqr     as they lie below data/ once they are prepared
    own                                                                 data.directory names it; docs/finetuning.md

The model has the sizes of `initial.model`, whatever they are. The best epoch is chosen on validation, and the test
split measured once, with its weights; where no test split with its truth is published, validation is all there is.
A PRD2 model, without cross encoders, needs --config.retrieval.fgr=False --config.evaluation.rerank_candidates=0.

[C] the published code, [A] the article, [O] our decision.
"""

from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import completed
from r2d2_jax.errors import UserError

# 20 or 10 epochs, and 128 or 64 candidates [C]; which set has which [O]: fewer where there are many pairs.
SMALL = dict(epochs=20.0, rerank=128)
LARGE = dict(epochs=10.0, rerank=64)
SETS: dict[str, dict] = {
    "flickr30k_cn": dict(SMALL, test_split="test"),
    # Tested on Flickr30k-CN's test split, as in the article [A].
    "flickr30k_cna": dict(SMALL, test_split="test", test_directory="data/flickr30k_cn"),
    "coco_cn": dict(SMALL, test_split="test"),
    "aic_icc": dict(LARGE),
    "muge": dict(LARGE, directions=("t2i",)),  # a query is looked for in pictures of goods, never the reverse [A]
    "icr": dict(LARGE),
    "iqr": dict(LARGE),
    # 32 in all, so that one device is enough; the article's warm-up would take all of a short run, and to re-rank 128
    # of each query after every epoch many times as long as the epoch. launch/evaluate.py re-ranks 128 at the end [O].
    "own": dict(epochs=20.0, rerank=16, batch_size=32, log_every=10, warmup_share=presets.OWN_WARMUP_SHARE),
}


def get_config(dataset: str = "own") -> ConfigDict:
    """For eight devices, with 32 pairs on each [C]; the batch is global, so fewer devices have more on each.

    One's own set is for one device.
    """
    if dataset not in SETS:
        raise UserError(f"retrieval has no data set {dataset!r}; it has {', '.join(SETS)}")
    chosen = SETS[dataset]
    config = ConfigDict()
    config.task = "retrieval"
    config.model = presets.initial_model()
    config.data = presets.fine_tuning_data(dataset)
    config.data.update(test_split=chosen.get("test_split", ""), test_directory=chosen.get("test_directory", ""))
    config.retrieval = ConfigDict(dict(fgr=True, match_class_weights=(1.0, 2.0)))  # [C]
    config.optimizer = ConfigDict(
        dict(
            learning_rate=1e-5,  # [C]
            initial_learning_rate=1e-6,  # [C]
            warmup_steps=500,  # [C]
            warmup_share=chosen.get("warmup_share", 1.0),
            weight_decay=0.05,  # [C]
        )
    )
    config.train = presets.fine_tuning_train(
        chosen.get("batch_size", 8 * 32), chosen["epochs"], log_every=chosen.get("log_every", 50)
    )
    config.evaluation = ConfigDict(
        dict(
            rerank_candidates=chosen["rerank"],
            batch_size=256,  # [O]
            directions=chosen.get("directions", ("i2t", "t2i")),
        )
    )
    return completed(config)
