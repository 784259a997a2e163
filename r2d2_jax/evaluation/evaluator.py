"""What the engine knows of an evaluation: figures for the log, figures to choose by, a table for people."""

from typing import Protocol, TypeVar

from r2d2_jax.arrays import Params


class Report(Protocol):
    """What an evaluation found."""

    def metrics(self) -> dict[str, float]:
        """Flat names for the log, such as "validation/reranked/mean"; empty if there was nothing to measure."""

    def scores(self) -> dict[str, float]:
        """Figures by which checkpoints are compared, by stage; higher is better."""

    def table(self) -> str:
        """A table for people."""


R = TypeVar("R", bound=Report)


class Evaluator(Protocol[R]):
    """Evaluates parameters on the splits of one configuration.

    Attributes:
        has_test: whether there is a test split.
    """

    has_test: bool

    def evaluate(self, params: Params, *, final: bool) -> R:
        """Measures the validation split.

        Args:
            params: the model's parameters.
            final: the last evaluation of a run, which measures everything that is configured at all.
        """

    def test(self, params: Params, validation: R) -> R:
        """Measures the test split.

        Args:
            params: the model's parameters.
            validation: what `evaluate` found for the same parameters; thresholds come from there.
        """
