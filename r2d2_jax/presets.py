"""Blocks that configs/*.py share. Every number says where it comes from.

[A] the article, [C] the published code, [O] our decision, [M] recalled from the article, not verified.
"""

from typing import Any

from ml_collections import ConfigDict

from r2d2_jax.errors import UserError

# BERT's rate, in the text tower and both cross encoders. Of fine-tuning [C]; in pre-training, whose code was never
# published, the same [O].
DROPOUT = 0.1


def vit_base() -> ConfigDict:
    """ViT-B/16 at 224 pixels [A]."""
    return ConfigDict(dict(image_size=224, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072))


def vit_large() -> ConfigDict:
    """ViT-L/14 at 224 pixels [A]."""
    return ConfigDict(dict(image_size=224, patch_size=14, width=1024, layers=24, heads=16, mlp_width=4096))


def roberta_base() -> ConfigDict:
    """RoBERTa-wwm-ext base with 64 text tokens [A]; 21,128 tokens in its vocabulary, and dropout [C]."""
    return ConfigDict(
        dict(
            vocabulary_size=21128,
            text_length=64,
            width=768,
            layers=12,
            heads=12,
            mlp_width=3072,
            max_positions=512,
            dropout=DROPOUT,
        )
    )


def cross_six_layers() -> ConfigDict:
    """Each of the two cross encoders: six BERT-base layers [A], with dropout while they are trained [C]."""
    return ConfigDict(dict(layers=6, width=768, heads=12, mlp_width=3072, dropout=DROPOUT))


def article_losses() -> ConfigDict:
    """Every term of the article, with enhanced training and both distillations."""
    return ConfigDict(
        dict(
            contrastive="tgd",  # GCPR with soft targets and queue [A]
            fgr=True,
            mlm=True,
            fgd=True,
            enhanced_training=True,
            soft_target_share=0.4,  # [M]
            soft_target_ramp_epochs=1.0,  # [O]
            queue_length=36864,  # [M]
            queue_decay=0.99,  # [A]
            mask_share=0.15,  # [A]
            whole_word_masking=False,  # [A]: tokens
            match_class_weights=(1.0, 2.0),  # (no match, match) [C]
            negative_hardness=1.0,  # drawn by similarity [A]
            teacher_momentum=0.995,  # [M]
            fgd_features="layer_norm",  # [O]
            fgd_teacher_temperature=4.0,  # [O]
            fgd_student_temperature=4.0,  # [O]
            fgd_mean_momentum=0.9,  # [O]
            fgd_ramp_epochs=1.0,  # [O]
        )
    )


def from_scratch(batch_size: int) -> dict[str, Any]:
    """What `article_losses` becomes for photographs where nothing is trained before; all values [O]."""
    return dict(
        # Embeddings move fast from scratch. Against a long queue of old ones the loss falls by moving on, not by
        # matching.
        queue_length=batch_size,
        teacher_momentum=0.98,  # a slow teacher holds the student back,
        soft_target_ramp_epochs=20.0,  # and has nothing to teach for a while
        fgd_ramp_epochs=20.0,
        negative_hardness=0.3,  # the hardest leave cross encoders guessing that know nothing yet
    )


def clip_and_roberta(image: str) -> ConfigDict:
    """Initial weights: CLIP's image tower, frozen [C, M], and RoBERTa-wwm-ext [A]; the rest starts random [O].

    Args:
        image: hub name of a CLIP checkpoint whose image tower has the configured sizes.
    """
    return ConfigDict(dict(image=image, text="hfl/chinese-roberta-wwm-ext"))


CLIP_BASE, CLIP_LARGE = "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14"  # [O]: which CLIP is not said


# The rows of the article's table beside R2D2 itself [A]: what each changes, by keys as --config.KEY=VALUE has them.
VARIANTS: dict[str, dict[str, Any]] = {
    # GCPR and both distillations alone; without match heads there is nothing to re-rank with.
    "prd2": {
        "model.cross.layers": 0,
        "model.cross.dropout": 0.0,
        "loss.fgr": False,
        "loss.mlm": False,
        "evaluation.rerank_candidates": 0,
    },
    "without_et": {"loss.enhanced_training": False},  # clean text, and an extra masked pass for MLM
    "without_twd": {"loss.contrastive": "gcpr", "loss.fgd": False},  # without both distillations
    "without_fgd": {"loss.fgd": False},
    "without_tgd": {"loss.contrastive": "gcpr"},  # hard targets, no queue
}


def with_variant(config: ConfigDict, name: str) -> ConfigDict:
    """Makes a configuration of the whole method one of the article's variants; "" leaves it whole.

    Raises:
        UserError: there is no such variant.
    """
    if name and name not in VARIANTS:
        raise UserError(f"there is no variant {name!r}; the article has {', '.join(VARIANTS)}")
    with config.unlocked():  # a key that the configuration leaves at its default may not be there yet
        config.update_from_flattened_dict(VARIANTS.get(name, {}))
    return config


def article_model(image: ConfigDict) -> ConfigDict:
    """The published model around an image tower."""
    return ConfigDict(
        dict(
            image=image,
            text=roberta_base(),
            cross=cross_six_layers(),
            embed_size=768,  # [A]
            temperature_init=0.07,  # [A]
            temperature_range=(0.001, 0.5),  # [C]
            freeze_image_tower=True,  # [C, M]
            dtype="bfloat16",  # [O]; parameters, norms, softmax and losses are float32
            remat="products",  # [O]: 249 G multiply-adds a pair at ViT-L; recomputing them too, 300
        )
    )


def zero_data(pairs: str) -> ConfigDict:
    """A part of the Zero corpus, as `launch/prepare_data.py` leaves it below data/."""
    return ConfigDict(
        dict(
            directory=f"data/zero_{pairs}",
            vocabulary="hfl/chinese-roberta-wwm-ext",  # [A]
            map_punctuation=True,  # [O]; the published code does not
            # [O]: with so many pairs a picture is seen a few times at most, and captions from the web name colours and
            # say how things stand; "random_augment" [C] is for the small sets of fine-tuning.
            augmentation="crop_and_flip",
            crop_scale=(0.5, 1.0),  # [C], of fine-tuning
            flip_exempt_directions=True,  # [O]
            workers=16,  # [O]
        )
    )


def demo_model() -> ConfigDict:
    """A model for the demonstration's scenes, small enough for two CPU cores; all numbers [O]."""
    width, heads, mlp_width = 64, 2, 128
    return ConfigDict(
        dict(
            # One layer leaves more to the cross encoders, which read patches where the embedding is a single vector.
            image=dict(image_size=48, patch_size=12, width=width, layers=1, heads=heads, mlp_width=mlp_width),
            text=dict(
                vocabulary_size=40,  # the built-in captions need fewer
                text_length=15,  # the longest caption has 13 characters, [CLS] and [SEP]
                max_positions=15,
                width=width,
                layers=2,
                heads=heads,
                mlp_width=mlp_width,
            ),
            cross=dict(layers=2, width=width, heads=heads, mlp_width=mlp_width),
            # What a scene shows is 12 bits; 64 numbers hold all of it, and re-ranking adds little.
            embed_size=8,
            freeze_image_tower=False,  # there are no initial weights to keep
            temperature_range=(0.05, 0.5),  # a learned temperature falls fast at this learning rate
            dtype="float32",
            unroll=True,  # faster on the CPU
        )
    )


def demo_data() -> ConfigDict:
    """The demonstration's scenes, as `launch/prepare_data.py --demo` leaves them in data/demo; all values [O]."""
    return ConfigDict(
        dict(
            directory="data/demo",
            foil_split="swapped",
            crop_scale=(1.0, 1.0),  # objects reach close to the border
            flip=False,  # left and right matter
        )
    )


AS_INITIAL = -1  # a size that is the one of `initial.model`; see `train.sizes`


def initial_model() -> ConfigDict:
    """The model that `initial.model` names, whatever its sizes; any that is given here or by a flag counts instead."""
    tower = dict(width=AS_INITIAL, layers=AS_INITIAL, heads=AS_INITIAL, mlp_width=AS_INITIAL)
    text = dict(vocabulary_size=AS_INITIAL, text_length=AS_INITIAL, max_positions=AS_INITIAL, token_types=AS_INITIAL)
    return ConfigDict(
        dict(
            image=dict(image_size=AS_INITIAL, patch_size=AS_INITIAL, **tower),
            text=text | tower | dict(dropout=DROPOUT),
            cross=tower | dict(dropout=DROPOUT),
            embed_size=AS_INITIAL,
            temperature_range=(0.001, 0.5),  # [C]
            freeze_image_tower=True,  # [C]
            dtype="bfloat16",  # [O]
            remat="products",  # [O]
        )
    )


def fine_tuning_data(dataset: str) -> ConfigDict:
    """A set for fine-tuning below data/; that of one's own is named by a flag."""
    own = dataset == "own"
    return ConfigDict(
        dict(
            directory="data/mine" if own else f"data/{dataset}",
            vocabulary="" if own else "hfl/chinese-roberta-wwm-ext",  # "": the copy beside the data
            map_punctuation=True,  # [O]; the published code does not
            augmentation="random_augment",  # [C]
            crop_scale=(0.5, 1.0),  # [C]
            augmentation_magnitude=5.0,  # [C]
            flip_exempt_directions=True,  # [O]
            workers=2 if own else 8,  # [O]: two decode more photographs than one device trains on
        )
    )


# Of a set of one's own, of which there may be few pictures and few devices: the published warm-up, but no more than a
# tenth of the run [O].
OWN_WARMUP_SHARE = 0.1


def fine_tuning_train(batch_size: int, epochs: float, log_every: int = 50) -> ConfigDict:
    """Validation after every epoch; of the checkpoints the last one and the best one stay [O]."""
    return ConfigDict(
        dict(
            batch_size=batch_size,
            epochs=epochs,
            log_every=log_every,
            evaluate_every=0,
            evaluate_every_epochs=1.0,
            checkpoint_every=500,
            keep_last=1,
            keep_best=1,
        )
    )
