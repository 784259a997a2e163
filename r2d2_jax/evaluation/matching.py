"""Matching: how well a score tells pairs that belong together from pairs that do not."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from r2d2_jax.arrays import Params, checked
from r2d2_jax.data.labelled_pairs import LabelledPairs
from r2d2_jax.encoder import Keep
from r2d2_jax.evaluation.bootstrap import Interval, image_weights, interval
from r2d2_jax.evaluation.progress import Progress
from r2d2_jax.evaluation.scorer import Scorer

HALF = 0.5  # the threshold of a match probability, where none was chosen
CHANCE_AUC = 50.0

Scores = Float[np.ndarray, " p"]
Matches = Bool[np.ndarray, " p"]


@checked
def auc(scores: Scores, match: Matches) -> float:
    """The area under the ROC curve, in per cent: the share of (match, no match) couples in the right order.

    AUC = sum over couples of ([s_match > s_other] + [s_match = s_other] / 2) / number of couples (Mann and Whitney).
    A tie counts half; NaN is on the wrong side of everything (our decision). It is exact: counts of halves.

    Args:
        scores: higher for pairs that match.
        match: whether they do; there must be both kinds.
    """
    order = np.unique(_comparable(scores, match), return_inverse=True)[1]
    return _weighted_auc(order, match, np.ones(len(match), np.int64))


def _weighted_auc(order: np.ndarray, match: np.ndarray, weight: np.ndarray) -> float:
    """`auc` of pairs that count several times; `order` has equal numbers for ties, from 0 for the lowest score on."""
    true, false = np.bincount(order, weight * match), np.bincount(order, weight * ~match)
    in_order = true @ (np.cumsum(false) - false / 2)
    return 100 * float(in_order / (true.sum() * false.sum()))


@checked
def best_threshold(scores: Scores, match: Matches) -> float:
    """The threshold above which calling a pair a match makes the fewest mistakes; the lowest if there are several.

    It lies in the middle between two scores, or just below the lowest, or at the highest.
    """
    scores = _comparable(scores, match)
    values = np.unique(scores[np.isfinite(scores)])
    if not len(values):
        return HALF
    cuts = np.concatenate([[np.nextafter(values[0], -np.inf)], (values[1:] + values[:-1]) / 2, values[-1:]])
    true, false = np.sort(scores[match]), np.sort(scores[~match])
    right = len(true) - np.searchsorted(true, cuts, "right") + np.searchsorted(false, cuts, "right")
    return float(cuts[np.argmax(right)])


@dataclass(frozen=True)
class Cut:
    """Accuracy in per cent, of all pairs and of each class, where pairs with a score above `threshold` are matches."""

    threshold: float
    accuracy: float
    match_accuracy: float
    no_match_accuracy: float


@dataclass(frozen=True)
class MatchingFigures:
    """How well one score tells the classes apart.

    auc: in per cent. cut: at the chosen threshold. half: at 0.5; None for a score that is no probability.
    intervals: 95 % of "auc", "accuracy" (of `cut`) and "half_accuracy"; empty if not asked for.
    """

    auc: float
    cut: Cut
    half: Cut | None
    intervals: dict[str, Interval] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Flat names for the log: auc, accuracy and per-class accuracies, at the chosen threshold and at 0.5."""
        at = {"auc": self.auc, "threshold": self.cut.threshold, **_named(self.cut, "")}
        return at | (_named(self.half, "half_") if self.half else {})


@dataclass(frozen=True)
class MatchingReport:
    """Matching on one split.

    dual: by the cosine. match: by the cross encoders' match probability; None for a model without them.
    chosen_here: whether the thresholds are the best of this very split, and not given from another.
    probability: float32 [p], the match probability of each pair, in the order of the split; None likewise.
    role: what the split is, "validation" or "test".
    """

    dual: MatchingFigures
    match: MatchingFigures | None
    pairs: int
    images: int
    matches: int
    chosen_here: bool
    probability: np.ndarray | None = field(default=None, compare=False, repr=False)
    role: str = "validation"

    def scores(self) -> dict[str, float]:
        """AUC in per cent by each score."""
        return {"dual": self.dual.auc} | ({"match": self.match.auc} if self.match else {})

    @property
    def chance(self) -> dict[str, float]:
        """AUC of any order that knows nothing, and accuracy of always naming the larger class."""
        larger = max(self.matches, self.pairs - self.matches)
        return {"auc": CHANCE_AUC, "accuracy": 100 * larger / self.pairs}

    def metrics(self) -> dict[str, float]:
        """Flat names for the log, such as "validation/match/auc", in per cent."""
        stages = {"dual": self.dual.metrics(), "chance": self.chance} | (
            {"match": self.match.metrics()} if self.match else {}
        )
        flat = ((f"{stage}/{name}", value) for stage, values in stages.items() for name, value in values.items())
        return {f"{self.role}/{name}": value for name, value in flat}

    def table(self) -> str:
        """A table for people, in per cent."""
        chosen = "best" if self.chosen_here else "given"
        head = f"matching on {self.role}, {self.pairs} pairs of {self.images} images, {self.matches} match"
        lines = [head, f"{'per cent':<28}{'dual':>8}{'match':>11}{'chance':>8}"]
        lines.append(_line("  AUC", self.dual.auc, None if self.match is None else self.match.auc, CHANCE_AUC))
        rows = [
            (f"accuracy, {chosen} threshold", "accuracy", self.chance["accuracy"]),
            ("  of pairs that match", "match_accuracy", None),
            ("  of pairs that do not", "no_match_accuracy", None),
        ]
        for label, name, chance in rows:
            match = None if self.match is None else getattr(self.match.cut, name)
            lines.append(_line(f"  {label}", getattr(self.dual.cut, name), match, chance))
        if self.match is not None and self.match.half is not None:
            for label, name, chance in (("accuracy at 0.5", *rows[0][1:]), *rows[1:]):
                lines.append(_line(f"  {label}", None, getattr(self.match.half, name), chance))
        return "\n".join(lines)


def evaluate_matching(
    scorer: Scorer,
    params: Params,
    pairs: LabelledPairs,
    threshold: float | None = None,
    dual_threshold: float | None = None,
    *,
    intervals: bool = False,
    role: str = "validation",
) -> MatchingReport:
    """Scores every pair of a split once, by cosine and by match probability.

    Args:
        scorer: the compiled forwards.
        params: the model's parameters.
        pairs: the split.
        threshold: of the match probability, as another split's report says; None takes the best of this split.
        dual_threshold: the same of the cosine.
        intervals: also give 95 % bootstrap intervals over images.
        role: what the split is, for the names of its figures.
    """
    cosine, probability = pair_scores(scorer, params, pairs)

    def figures(scores: np.ndarray, threshold: float | None, half: bool) -> MatchingFigures:
        return matching_figures(scores, pairs.match, pairs.image, threshold, half=half, intervals=intervals)

    return MatchingReport(
        dual=figures(cosine, dual_threshold, half=False),
        match=None if probability is None else figures(probability, threshold, half=True),
        pairs=len(pairs),
        images=pairs.num_images,
        matches=int(pairs.match.sum()),
        chosen_here=threshold is None,
        probability=probability,
        role=role,
    )


class MatchingEvaluator:
    """Evaluates parameters on labelled pairs.

    Args:
        scorer: encodes images and texts and matches them.
        validation: the split by which checkpoints are compared, and which gives the thresholds.
        test: the test split, or None.
    """

    def __init__(self, scorer: Scorer, validation: LabelledPairs, test: LabelledPairs | None = None) -> None:
        self._scorer, self._validation, self._test = scorer, validation, test
        self.has_test = test is not None

    def evaluate(self, params: Params, *, final: bool) -> MatchingReport:
        """Measures the validation split."""
        return evaluate_matching(self._scorer, params, self._validation)

    def test(self, params: Params, validation: MatchingReport) -> MatchingReport:
        """Measures the test split at the thresholds that validation chose."""
        assert self._test is not None
        chosen = None if validation.match is None else validation.match.cut.threshold
        dual = validation.dual.cut.threshold
        return evaluate_matching(self._scorer, params, self._test, chosen, dual, role="test")


def pair_scores(scorer: Scorer, params: Params, pairs: LabelledPairs) -> tuple[np.ndarray, np.ndarray | None]:
    """Cosine and match probability, float32 [p] each, of all pairs; no probability without cross encoders.

    Images are encoded once, in batches; the texts of a batch of images follow it. So memory is that of a batch of each.
    """
    matching = "text_image_match_head" in params
    keep = Keep.ON_DEVICES if matching else Keep.NOTHING
    encoder = scorer.encoder
    scorer.announce()
    cosine, probability = [], []
    for images, rows in _blocks(scorer, pairs):
        image = encoder.encode_images(params, [images], encoder.batch_size, keep)
        for part in rows:
            mask = pairs.attention_mask[part]
            text = encoder.encode_texts(params, pairs.input_ids[part], mask, keep)
            place = pairs.image[part] % encoder.batch_size
            cosine.append(np.sum(image.embed[place] * text.embed, axis=1))
            if matching:
                both = np.stack([place, np.arange(len(place))], axis=1)
                probability.append(encoder.match(params, image.kept_tokens, text.kept_tokens, mask, both))
    return np.concatenate(cosine), np.concatenate(probability) if matching else None


def _blocks(scorer: Scorer, pairs: LabelledPairs) -> Iterator[tuple[np.ndarray, list[slice]]]:
    """Each batch of images, and where its pairs are, in slices of at most a batch."""
    size = scorer.encoder.batch_size
    scorer.announce()
    with Progress("images", pairs.num_images) as progress:
        batches = progress.over(pairs.image_batches(size, scorer.encoder.own_rows()))
        for number, images in enumerate(batches):
            start, stop = np.searchsorted(pairs.image, (number * size, (number + 1) * size)).tolist()
            yield images, [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


@checked
def matching_figures(
    scores: Scores,
    match: Matches,
    image: Int[np.ndarray, " p"],
    threshold: float | None = None,
    *,
    half: bool,
    intervals: bool = False,
) -> MatchingFigures:
    """What one score is worth.

    Args:
        scores: of each pair.
        match: whether it matches; there must be both kinds.
        image: number of each pair's image, which the bootstrap draws.
        threshold: None takes the best.
        half: also cut at 0.5.
        intervals: also give 95 % bootstrap intervals.
    """
    chosen = best_threshold(scores, match) if threshold is None else threshold
    cuts = {"accuracy": chosen} | ({"half_accuracy": HALF} if half else {})
    return MatchingFigures(
        auc=auc(scores, match),
        cut=_cut(scores, match, chosen),
        half=_cut(scores, match, HALF) if half else None,
        intervals=_intervals(scores, match, image, cuts) if intervals else {},
    )


def _cut(scores: np.ndarray, match: np.ndarray, threshold: float) -> Cut:
    right = (_comparable(scores, match) > threshold) == match
    share = lambda hits: 100 * float(np.mean(hits))  # noqa: E731
    return Cut(threshold, share(right), share(right[match]), share(right[~match]))


def _intervals(scores: np.ndarray, match: np.ndarray, image: np.ndarray, cuts: dict[str, float]) -> dict[str, Interval]:
    """95 % percentile intervals over resamples of the images; one without both classes says nothing of the AUC."""
    scores = _comparable(scores, match)
    order = np.unique(scores, return_inverse=True)[1]
    right = {name: (scores > threshold) == match for name, threshold in cuts.items()}
    drawn: dict[str, list[float]] = {name: [] for name in ("auc", *cuts)}
    for drawn_images in image_weights(int(image.max()) + 1):
        weight = drawn_images[image]
        if weight @ match and weight @ ~match:
            drawn["auc"].append(_weighted_auc(order, match, weight))
        if weight.sum():
            for name, hits in right.items():
                drawn[name].append(100 * float(weight @ hits / weight.sum()))
    return {name: interval(values) for name, values in drawn.items() if values}


def _comparable(scores: np.ndarray, match: np.ndarray) -> np.ndarray:
    """Scores in float64, in which a threshold lies between two of float32; NaN is as wrong as can be."""
    return np.where(np.isnan(scores), np.where(match, -np.inf, np.inf), scores.astype(np.float64))


def _named(cut: Cut, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": getattr(cut, name) for name in ("accuracy", "match_accuracy", "no_match_accuracy")}


def _line(label: str, dual: float | None, match: float | None, chance: float | None) -> str:
    shown = ["-" if value is None else f"{value:.1f}" for value in (dual, match, chance)]
    return f"{label:<28}{shown[0]:>8}{shown[1]:>11}{shown[2]:>8}"
