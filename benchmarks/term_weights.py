"""What each term of pre-training weighs at the start of a configuration: value, and norm of its gradient in each part.

    python benchmarks/term_weights.py --config=vitb_2m --pairs=16 --layers=2
    python benchmarks/term_weights.py --config=vitb_2m --data=data/zero_2m --config.loss.fgd_features=unit

One batch of random pairs, or of a prepared dataset, in float32 and before any step: the queue is empty, the targets are
hard; but feature-guided distillation has the weight that it gets at the end of its ramp. The share of a term is its
norm over the sum of its own and that of all other terms together. Fails, with exit status 1, where feature-guided
distillation holds more than half of the text tower's gradient.

The configured initial weights are read if they are at hand. If not, that is said, and the towers imitate them by
random ones of the same spread: BERT's kernels and embeddings of deviation 0.02, and CLIP's of its widths and depth, as
transformers' `_init_weights` has them; biases are zero. What the configuration names no weights for starts as it does
in a run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from planned_steps import planned, with_pairs

from r2d2_jax.arrays import Batch, Params
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.data.train_batches import train_batches
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.launch.program import parse_known, run
from r2d2_jax.models.r2d2 import R2D2, abstract_params, init_params
from r2d2_jax.sharding import global_batch, path_name
from r2d2_jax.tasks.task import LOSS, Metrics
from r2d2_jax.train.initial import initial_params
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.setup import build_mixture, build_tokenizer
from r2d2_jax.train.state import TrainState
from r2d2_jax.train.term_gradients import PARTS, WITHOUT, term_gradients
from r2d2_jax.train.trial import random_rows
from r2d2_jax.trees import flat, nested, shape_differences

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string("config", None, "A configuration of pre-training.", flag_values=FLAGS)
PAIRS = flags.DEFINE_integer("pairs", 16, "Pairs in the batch.", lower_bound=2, flag_values=FLAGS)
LAYERS = flags.DEFINE_integer(
    "layers",
    0,
    "Layers of each tower and cross encoder, if it has more; 0 leaves them.",
    lower_bound=0,
    flag_values=FLAGS,
)
DATA = flags.DEFINE_string("data", None, "A prepared dataset; random pairs without one.", flag_values=FLAGS)
flags.mark_flags_as_required(["config"], flag_values=FLAGS)

DISTILLED, JUDGED = "fgd", "text_tower"  # the term that may not hold the greater part, and the part
BERT_DEVIATION = 0.02  # of kernels and embeddings: BERT's initializer_range


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    return run(_work, argv, stopped="stopped before the table")


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    named = read_configuration(str(CONFIG.value), overrides)
    if named.task != "pretraining":
        raise UserError(f"--config={CONFIG.value} is a {named.task}; expected pre-training. In any run, "
                        "--config.train.weigh_terms_every logs the same")  # fmt: skip
    whole = Config.from_config_dict(named)
    plan = planned(fewer_layers(named, LAYERS.value, PAIRS.value), jax.devices()[:1], MeshConfig(1, 1))
    batch = one_batch(plan, whole, DATA.value)  # before parameters are made, which takes minutes of large towers
    params, notes = starting_params(plan.task.model, whole)
    found = weighed(plan, params, batch)
    pairs = f"pairs of {DATA.value}" if DATA.value else "random pairs"
    print(f"{Path(str(CONFIG.value)).stem}: {PAIRS.value} {pairs}, layers {layers_of(plan)}, float32")
    print("".join(f"  {note}\n" for note in notes), end="")
    print("\n".join(table(found)))
    return judged(found)


def fewer_layers(named: ConfigDict, layers: int, pairs: int) -> ConfigDict:
    """In float32, on a small batch, without FgD's ramp, with no more layers than that; 0 leaves them."""
    named = named.copy_and_resolve_references()
    named.model.update(dtype="float32", remat="none", unroll=False)
    for part in ("image", "text", "cross"):
        size = named.model[part]
        size.layers = min(size.layers, layers or size.layers)
    named.loss.fgd_ramp_epochs = 0.0
    return with_pairs(named, pairs)


def layers_of(plan: StepPlan) -> str:
    """Layers of the image tower, the text tower and each cross encoder, for people."""
    sizes = plan.task.model.config
    return f"{sizes.image.layers} + {sizes.text.layers} + {sizes.cross.layers}"


def starting_params(model: R2D2, config: Config) -> tuple[Params, list[str]]:
    """Parameters before the first step, and where they come from.

    Args:
        model: possibly with fewer layers than the configuration.
        config: the whole configuration.
    """
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(config.train.seed))
    initial = config.initial
    if not (initial.image or initial.text or initial.model):
        return params, ["from scratch: no initial weights are configured"]
    try:
        vocabulary = build_tokenizer(config).vocabulary
        loaded, notes, _ = initial_params(config, vocabulary, masked_lm=model.masked_lm)
        return params | cut({part: loaded[part] for part in loaded if part in params}, model), notes
    except UserError as error:
        note = f"the initial weights are not at hand, so random towers imitate them: {first_line(error)}"
        return params | imitated(params, config.model), [note]


def cut(loaded: Params, model: R2D2) -> Params:
    """Weights of a model of more layers, of which the first stay.

    Raises:
        UserError: they are of another model in any other respect.
    """
    wanted = {part: abstract_params(model)[part] for part in loaded}
    sizes = {name: leaf.shape for name, leaf in flat(wanted)}
    kept = {
        name: leaf[: sizes[name][0]] if "/layers/" in name else leaf for name, leaf in flat(loaded) if name in sizes
    }
    if differences := shape_differences(nested(kept), wanted):
        raise UserError(f"they are of another model: {differences[0]}")
    return nested(kept)


def imitated(params: Params, sizes: ModelConfig) -> Params:
    """Both towers with the spread that CLIP's and BERT's have before they are trained.

    Args:
        params: of the model, possibly with fewer layers.
        sizes: of the whole model; CLIP's spread depends on its depth.
    """
    rng, image = np.random.default_rng(0), sizes.image
    width, depth = image.width**-0.5, (2 * image.layers) ** -0.5
    clip = {
        "attention/out/kernel": width,
        "attention/query/kernel": width * depth,
        "attention/key/kernel": width * depth,
        "attention/value/kernel": width * depth,
        "mlp/up/kernel": 2**-0.5 * width,
        "mlp/down/kernel": width * depth,
        "class_embedding": width,
    }

    def drawn(path: Any, leaf: jax.Array) -> np.ndarray | jax.Array:
        name = path_name(path)
        if not name.endswith(("kernel", "embedding")):
            return leaf  # biases are zero, and norms scale by one
        known = clip if name.startswith("image_encoder") else {}
        spread = next((value for end, value in known.items() if name.endswith(end)), BERT_DEVIATION)
        return np.float32(spread) * rng.standard_normal(leaf.shape, np.float32)

    towers = {part: params[part] for part in ("image_encoder", "text_encoder")}
    return jax.tree_util.tree_map_with_path(drawn, towers)


def one_batch(plan: StepPlan, config: Config, data: str | None) -> Batch:
    """The first batch of a run on a prepared dataset, or a random one."""
    if data is None:
        return global_batch(plan.mesh, random_rows(plan))
    named = ConfigDict(config.to_dict())
    named.data.update(directory=data, corpora=(), corpus_weights=(), workers=0)
    config = Config.from_config_dict(named)
    rows = train_batches(
        build_mixture(config),
        build_tokenizer(config, number_words=plan.task.reads_words),
        config.data,
        image_size=config.model.image.image_size,
        batch_size=plan.batch_size,
        seed=config.train.seed,
        first_step=0,
        text_ids=plan.task.reads_text_ids,
    )
    return global_batch(plan.mesh, next(rows))


def weighed(plan: StepPlan, params: Params, batch: Batch) -> Metrics:
    """Values of the terms, and the norms of `term_gradients`, before the first step."""
    task, mesh, key = plan.task, plan.mesh, jax.random.key(0)
    state = TrainState(jnp.int32(0), params, (), task.init(params))

    def both(state: TrainState, batch: Batch) -> Metrics:
        terms = task.loss(state.params, state.memory, batch, state.step, key, mesh).terms
        norms = term_gradients(state, batch, key, task, mesh, without=True)
        return terms | {LOSS: jnp.asarray(sum(terms.values()))} | norms

    return jax.device_get(jax.jit(both)(state, batch))


def terms_of(found: Metrics) -> list[str]:
    """Names of the terms, in the order of the log."""
    return [name for name in found if "/" not in name and name != LOSS]


def parts_of(found: Metrics) -> list[str]:
    """Names of the parts that the model trains, from the features inwards."""
    parts = ("image_features", "text_features", *PARTS, "all")
    return [part for part in parts if f"gradient/{LOSS}/{part}" in found]


def share(found: Metrics, term: str, part: str) -> float:
    """The norm of a term's gradient over the sum of it and of that of all others together; 0 where both are."""
    own, rest = (float(found[f"gradient/{name}/{part}"]) for name in (term, f"{WITHOUT}{term}"))
    return own / (own + rest) if own else 0.0


def table(found: Metrics) -> list[str]:
    """A line for each term: its value, and norm and share in each part."""
    parts = parts_of(found)
    lines = [f"{'term':<6} {'value':>8}" + "".join(f" {part:>17}" for part in parts)]
    for term in [*terms_of(found), LOSS]:
        line = f"{term:<6} {float(found[term]):>8.3f}"
        for part in parts:
            norm = f"{float(found[f'gradient/{term}/{part}']):.4g}"
            line += f" {norm:>10} " + ("      " if term == LOSS else f"{100 * share(found, term, part):>4.0f} %")
        lines.append(line)
    return lines


def judged(found: Metrics) -> int:
    """Prints which term holds most of the text tower's gradient; 1 if it is FgD with more than half, otherwise 0."""
    shares = {term: share(found, term, JUDGED) for term in terms_of(found)}
    most = max(shares, key=shares.__getitem__)
    print(f"most of the text tower's gradient: {most}, {100 * shares[most]:.0f} %")
    if shares.get(DISTILLED, 0.0) <= 0.5:
        return 0
    print("feature-guided distillation holds more than half: raise loss.fgd_student_temperature, and take "
          "loss.fgd_features='layer_norm' if it is another form", file=sys.stderr)  # fmt: skip
    return 1


if __name__ == "__main__":
    sys.exit(main())
