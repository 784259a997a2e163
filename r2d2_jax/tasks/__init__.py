"""What a run can train for, each in a file of its own, and the one place that chooses among them."""

from collections.abc import Callable

from r2d2_jax.config.reading import Config
from r2d2_jax.tasks.matching import matching
from r2d2_jax.tasks.pretraining import pretraining
from r2d2_jax.tasks.retrieval import retrieval
from r2d2_jax.tasks.task import BERT_TOKENS, SpecialTokens, Task


def build_task(
    config: Config, *, tokens: SpecialTokens = BERT_TOKENS, epoch_steps: int = 1, text_ids: bool | None = None
) -> Task:
    """The configured task, from the configuration alone: no device, no data set and no vocabulary file is touched.

    Args:
        config: the whole configuration; `task` names the task.
        tokens: special token ids of the run's vocabulary.
        epoch_steps: steps per epoch of the run's data. Both enter the compiled step as constants and change neither
            its shapes nor its cost, so a plan does without them.
        text_ids: whether the run's data has identities of texts; None where the data is not known.

    Raises:
        UserError: the task needs what the data lacks.
    """
    builders: dict[str, Callable[[], Task]] = {
        "pretraining": lambda: pretraining(config, tokens, epoch_steps, text_ids),
        "retrieval": lambda: retrieval(config, text_ids),
        "matching": lambda: matching(config),
    }
    return builders[config.task]()
