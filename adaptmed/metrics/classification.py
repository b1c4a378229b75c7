"""Classification metrics, each for many weightings of the test items at once, so that a bootstrap costs one call.

A weight is how often an item was drawn in a replicate. A point value is the same function with every weight 1.
Items that are not labelled (NaN, or a negative integer) are left out, never read as 0.
"""

import numpy as np
from jaxtyping import Bool, Float, Real

from adaptmed.errors import InputError, sentence

Weights = Real[np.ndarray, "replicate n"]
Samples = Float[np.ndarray, " replicate"]


def weighted_auroc(
    scores: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " replicate"]:
    """Area under the ROC curve, exact: the chance that a positive scores above a negative, ties count half.

    Args:
        scores: Any real scores, higher means more positive; only their order matters.
        labels: 0 or 1; NaN or -1 where not labelled.
        weights: How often each item counts in each replicate.

    Returns:
        One value in [0, 1] per replicate, NaN where a replicate holds no positive or no negative.

    Raises:
        InputError: A score of a labelled item is not finite, or the lengths differ.

    Example:
        >>> scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1])
        >>> weighted_auroc(scores, labels, np.array([[1, 1, 1, 1], [1, 0, 1, 1]])).tolist()
        [0.875, 1.0]
    """
    (positives, hits), (negatives, misses) = _sides(scores, labels, weights)
    below = _sums_below(misses)
    first, last = (np.searchsorted(negatives, positives, side=side) for side in ("left", "right"))
    won = np.einsum("ir,ir->r", hits, below[first]) + np.einsum("ir,ir->r", hits, below[last])
    return _ratio(0.5 * won, hits.sum(0) * below[-1])


def weighted_average_precision(
    scores: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " replicate"]:
    """Average precision: precision at each distinct score, weighted by the recall gained there, no interpolation.

    Args:
        scores: Any real scores, higher means more positive.
        labels: 0 or 1; NaN or -1 where not labelled.
        weights: How often each item counts in each replicate.

    Returns:
        One value in [0, 1] per replicate, NaN where a replicate holds no positive, or no negative (it could only
        be 1 there, which measures nothing).

    Raises:
        InputError: A score of a labelled item is not finite, or the lengths differ.
    """
    (positives, hits), (negatives, misses) = _sides(scores, labels, weights)
    below_hit, below_miss = _sums_below(hits), _sums_below(misses)
    true = below_hit[-1] - below_hit[np.searchsorted(positives, positives)]
    false = below_miss[-1] - below_miss[np.searchsorted(negatives, positives)]
    precision = true / np.maximum(true + false, 1e-12)
    return _ratio(np.einsum("ir,ir->r", hits, precision), np.where(below_miss[-1] > 0, below_hit[-1], 0.0))


def weighted_macro_auroc(
    scores: Real[np.ndarray, "n class"], labels: Real[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " replicate"]:
    """Mean over classes of the one-versus-rest AUROC, over the classes that a replicate holds.

    Args:
        scores: One score per class.
        labels: Class numbers; -1 or NaN where not labelled.
        weights: How often each item counts in each replicate.

    Returns:
        One value in [0, 1] per replicate, NaN where a replicate holds fewer than two classes.
    """
    known = _known(labels)
    parts = [
        weighted_auroc(column, np.where(known, labels == number, np.nan), weights)
        for number, column in enumerate(scores.T)
    ]
    return mean_of_defined(np.stack(parts))


def weighted_accuracy(
    scores: Real[np.ndarray, "n class"], labels: Real[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " replicate"]:
    """Share of items whose highest-scored class is the true one; NaN where a replicate holds no labelled item."""
    known, weights = _known(labels), np.asarray(weights, dtype=np.float64)
    correct = known & (scores.argmax(1) == labels)
    return _ratio(weights @ correct, weights @ known)


def weighted_balanced_accuracy(
    scores: Real[np.ndarray, "n class"], labels: Real[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " replicate"]:
    """Mean recall over the classes that a replicate holds; NaN where it holds no labelled item."""
    weights = np.asarray(weights, dtype=np.float64)
    members = labels[:, None] == np.arange(scores.shape[1])
    correct = members & (scores.argmax(1) == labels)[:, None]
    return mean_of_defined(_ratio(weights @ correct, weights @ members).T)


def weighted_macro_f1(
    scores: Real[np.ndarray, "n class"], labels: Real[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " replicate"]:
    """Mean F1 of the highest-scored class over the classes that a replicate holds; NaN where it holds no item."""
    known, weights = _known(labels), np.asarray(weights, dtype=np.float64)
    members = labels[:, None] == np.arange(scores.shape[1])
    said = known[:, None] & (scores.argmax(1)[:, None] == np.arange(scores.shape[1]))
    came = weights @ members
    return mean_of_defined(
        np.where(came > 0, _ratio(2 * (weights @ (members & said)), came + weights @ said), np.nan).T
    )


def weighted_expected_calibration_error(
    probabilities: Float[np.ndarray, "n ..."], labels: Real[np.ndarray, " n"], weights: Weights, *, bins: int = 15
) -> Float[np.ndarray, " replicate"]:
    """Expected calibration error over bins of equal width: mean gap between what was said and what came.

    Args:
        probabilities: ``(n,)`` probability of label 1, set against how often the label is 1 (reliability of the
            label); or ``(n, class)``, where the highest probability is set against how often that class is right.
        labels: 0 or 1, or class numbers; NaN or -1 where not labelled.
        weights: How often each item counts in each replicate.
        bins: Number of bins over [0, 1]; each holds its lower edge, the last one 1 as well.

    Returns:
        One value in [0, 1] per replicate, NaN where a replicate holds no labelled item.

    Raises:
        InputError: A probability of a labelled item lies outside [0, 1].
    """
    known = _known(labels)
    multiclass = probabilities.ndim > 1
    said = (probabilities.max(1) if multiclass else probabilities)[known].astype(np.float64)
    came = (probabilities.argmax(1) == labels if multiclass else labels)[known]
    if not np.all((said >= 0) & (said <= 1)):
        raise InputError(
            sentence(
                "probabilities",
                expected="numbers in [0, 1]",
                got=f"a range of {said.min()} to {said.max()}",
                fix="Apply a sigmoid or softmax to logits first.",
            )
        )
    weights = np.asarray(weights, dtype=np.float64)[:, known]
    member = np.minimum((said * bins).astype(int), bins - 1)[:, None] == np.arange(bins)
    return _ratio(np.abs(weights @ (member * (came - said)[:, None])).sum(1), weights.sum(1))


def auroc(scores: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]) -> float:
    """Area under the ROC curve, see `weighted_auroc`; NaN without a positive or a negative."""
    return float(weighted_auroc(scores, labels, _once(labels))[0])


def average_precision(scores: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]) -> float:
    """Average precision, see `weighted_average_precision`; NaN without a positive or a negative."""
    return float(weighted_average_precision(scores, labels, _once(labels))[0])


def macro_auroc(scores: Real[np.ndarray, "n class"], labels: Real[np.ndarray, " n"]) -> float:
    """Mean one-versus-rest AUROC over the classes present, see `weighted_macro_auroc`."""
    return float(weighted_macro_auroc(scores, labels, _once(labels))[0])


def accuracy(scores: Real[np.ndarray, "n class"], labels: Real[np.ndarray, " n"]) -> float:
    """Share of items whose highest-scored class is the true one.

    Example:
        >>> accuracy(np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]]), np.array([0, 1, -1]))
        0.5
    """
    return float(weighted_accuracy(scores, labels, _once(labels))[0])


def balanced_accuracy(scores: Real[np.ndarray, "n class"], labels: Real[np.ndarray, " n"]) -> float:
    """Mean recall over the classes present."""
    return float(weighted_balanced_accuracy(scores, labels, _once(labels))[0])


def expected_calibration_error(
    probabilities: Float[np.ndarray, "n ..."], labels: Real[np.ndarray, " n"], *, bins: int = 15
) -> float:
    """Expected calibration error, see `weighted_expected_calibration_error`.

    Example:
        >>> expected_calibration_error(np.array([0.5, 0.5, 0.9]), np.array([1.0, 0.0, np.nan]))
        0.0
    """
    return float(weighted_expected_calibration_error(probabilities, labels, _once(labels), bins=bins)[0])


def mean_of_defined(values: Float[np.ndarray, "part replicate"]) -> Float[np.ndarray, " replicate"]:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0))


def _known(labels: Real[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    return np.asarray(labels) >= 0  # NaN compares as False


def _once(labels: Real[np.ndarray, " n"]) -> Float[np.ndarray, "1 n"]:
    return np.ones((1, len(labels)))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _sides(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> list[tuple[Real[np.ndarray, " k"], Float[np.ndarray, "k replicate"]]]:
    """Positives, then negatives, each sorted by score: their scores, and weights with one row per item."""
    if not len(scores) == len(labels) == np.shape(weights)[1]:
        raise InputError(
            sentence(
                "scores, labels, weights",
                expected="one score, label and weight column per item",
                got=f"{len(scores)}, {len(labels)} and {np.shape(weights)[1]}",
                fix="Pass arrays of the same items.",
            )
        )
    known = _known(labels)
    if not np.all(np.isfinite(scores[known])):
        raise InputError(
            sentence(
                "scores",
                expected="finite scores",
                got=f"{int((~np.isfinite(scores[known])).sum())} that are not",
                fix="Find out which items the model fails on; a missing score must not be ranked.",
            )
        )
    order = np.argsort(scores, kind="stable")
    rows = [order[known[order] & ((labels[order] > 0) == positive)] for positive in (True, False)]
    return [(scores[row], np.asarray(weights).T[row].astype(np.float64)) for row in rows]


def _sums_below(columns: Float[np.ndarray, "k replicate"]) -> Float[np.ndarray, "k_plus_1 replicate"]:
    """Row i: the summed weight of the i lowest scores."""
    sums = np.zeros((len(columns) + 1, columns.shape[1]))
    np.cumsum(columns, axis=0, out=sums[1:])
    return sums
