"""Segmentation: how well one mask agrees with another, image by image, and over patients.

Masks hold class numbers, 0 for background and -1 where the truth is not labelled. Scores are per image and label, so
that images of different sizes, volumes and a bootstrap over patients need no more than a table of numbers.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Integer, Real
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from adaptmed.errors import InputError, sentence
from adaptmed.metrics.classification import mean_of_defined
from adaptmed.metrics.uncertainty import interval, patient_weights

METRICS: Mapping[str, str] = {
    "dice": "the image is not labelled",
    "dice_positives": "the image does not hold the label",
    "hd95_mm": "truth or prediction is empty, or the spacing is not known",
    "surface_dice": "truth or prediction is empty, or the spacing is not known",
}
"""Every score of an image, and why it may be undefined there."""
Scores = dict[str, Float[np.ndarray, " label"]]


def image_scores(
    prediction: Integer[np.ndarray, "*size"],
    truth: Integer[np.ndarray, "*sides"],
    *,
    labels: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
    tolerance_mm: float = 2.0,
) -> Scores:
    """Judge the mask of one image or volume, label by label.

    Args:
        prediction: Class numbers.
        truth: Class numbers; -1 where not labelled. What is predicted there does not count; to the surface metrics
            such a place looks empty in both masks.
        labels: Class numbers to judge, 0 (background) usually not among them.
        spacing_mm: Distance between neighbours along each axis of the arrays, in that order; ``None`` when not known.
        tolerance_mm: How far a surface may be off and still count as right in ``surface_dice``.

    Returns:
        One value per label, NaN where undefined:
        ``dice`` in [0, 1], **1 where truth and prediction are both empty**, so that predicting nothing scores exactly
        the share of empty images; ``dice_positives``, the same where the truth holds the label; ``hd95_mm``, the 95th
        percentile of surface distances, the larger of both directions; ``surface_dice`` in [0, 1]. The last two are
        undefined where truth or prediction is empty, and so are blind to findings that were missed entirely.

    Raises:
        InputError: The masks are of different sizes, are neither images nor volumes, or the spacing does not fit.

    Example:
        >>> truth = np.array([[0, 1, 1, 0]])
        >>> scores = image_scores(np.array([[0, 0, 1, 0]]), truth, labels=[1, 2], spacing_mm=(1.0, 0.5))
        >>> scores["dice"].round(3).tolist(), scores["hd95_mm"].round(3).tolist()
        ([0.667, 1.0], [0.475, nan])
    """
    _check(prediction, truth, spacing_mm, tolerance_mm)
    rows = [
        _label_scores((prediction == label), (truth == label), truth >= 0, spacing_mm, tolerance_mm) for label in labels
    ]
    return {name: np.array([row[index] for row in rows]) for index, name in enumerate(METRICS)}


@contextmanager
def quiet_surfaces() -> Iterator[None]:
    """Silence what MONAI 1.6 says of itself: it passes an argument that it has deprecated.

    `image_scores` does so itself. Warnings are filtered for the whole process, so that threads which score at the same
    time undo each other's filter: who starts such threads holds this around all of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        yield


def weighted_mean(
    values: Float[np.ndarray, " n"], weights: Real[np.ndarray, "replicate n"]
) -> Float[np.ndarray, " replicate"]:
    """Mean of the defined values for many weightings of the images at once.

    Args:
        values: Of each image; NaN where undefined, which is left out.
        weights: How often each image counts in each replicate.

    Returns:
        One value per replicate, NaN where a replicate holds no defined value.

    Example:
        >>> weighted_mean(np.array([1.0, 0.0, np.nan]), np.array([[1, 1, 1], [2, 0, 1], [0, 0, 3]])).tolist()
        [0.5, 1.0, nan]
    """
    defined = ~np.isnan(values)
    weights = np.asarray(weights, dtype=np.float64)[:, defined]
    total = weights.sum(1)
    return np.divide(weights @ values[defined], total, out=np.full(len(total), np.nan), where=total > 0)


def over_patients(
    scores: Sequence[Scores],
    patients: Sequence[object] | np.ndarray,
    *,
    names: Sequence[str],
    replicates: int = 1000,
    seed: int = 0,
) -> list[dict[str, str | float | int | None]]:
    """Average the scores of images, with intervals over patients.

    Args:
        scores: What `image_scores` gives for each image.
        patients: The patient of each image.
        names: Name of each label.
        replicates: Bootstrap replicates.
        seed: Seed of the draws.

    Returns:
        One dictionary per metric and label, and one under ``macro`` (mean over the labels that are defined) where
        there are several labels: metric, label, value, ci_low, ci_high, reason, n_images (how many define the value).
        ``value`` is ``None`` where undefined, and ``reason`` says why; beside a value, ``reason`` says what was left
        out of it.

    Raises:
        InputError: There is no image, an image has no patient, or their numbers differ.
    """
    if len(scores) != len(patients):
        expected, fix = f"a patient for each of {len(scores)} images", "Pass one per image."
        raise InputError(sentence("patients", expected=expected, got=len(patients), fix=fix))
    drawn = patient_weights(patients, replicates=replicates, seed=seed)
    weights = np.vstack([np.ones((1, len(scores))), drawn])
    records = []
    for metric in METRICS:
        table = np.stack([score[metric] for score in scores])
        samples = [weighted_mean(column, weights) for column in table.T]
        counts = [int((~np.isnan(column)).sum()) for column in table.T]
        for name, sample, count in zip(names, samples, counts, strict=True):
            records.append(_record(metric, name, sample, _left_out(metric, count, len(table)), count))
        if len(names) > 1:
            count, lacking = int((~np.isnan(table)).any(1).sum()), counts.count(0)
            said = f"undefined for {lacking} of {len(names)} labels" if lacking else None
            records.append(_record(metric, "macro", mean_of_defined(np.stack(samples)), said, count))
    return records


def _label_scores(
    prediction: np.ndarray,
    truth: np.ndarray,
    labelled: np.ndarray,
    spacing_mm: Sequence[float] | None,
    tolerance_mm: float,
) -> tuple[float, float, float, float]:
    """Scores of one label in the order of `METRICS`."""
    nan = float("nan")
    prediction = prediction & labelled
    size = int(prediction.sum()) + int(truth.sum())
    if not labelled.any():
        return nan, nan, nan, nan
    dice = 2 * int((prediction & truth).sum()) / size if size else 1.0
    positive = dice if truth.any() else nan
    if spacing_mm is None or not prediction.any() or not truth.any():
        return dice, positive, nan, nan
    return dice, positive, *_surface_scores(prediction, truth, spacing_mm, tolerance_mm)


def _surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    said, true = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
    spacing = [float(side) for side in spacing_mm]
    with quiet_surfaces():
        hd95 = compute_hausdorff_distance(said, true, include_background=True, percentile=95, spacing=spacing)
        surface = compute_surface_dice(said, true, [tolerance_mm], include_background=True, spacing=spacing)
    return hd95.item(), surface.item()


def _left_out(metric: str, count: int, images: int) -> str | None:
    return None if count == images else f"undefined in {images - count} of {images} images: {METRICS[metric]}"


def _record(
    metric: str, label: str, samples: Float[np.ndarray, " replicate"], said: str | None, count: int
) -> dict[str, str | float | int | None]:
    value, bounds = float(samples[0]), interval(samples[1:])
    facts: dict[str, str | float | int | None] = {"metric": metric, "label": label}
    if np.isnan(value):
        return {**facts, "value": None, "ci_low": None, "ci_high": None, "reason": said, "n_images": 0}
    unsure = None if bounds else "no interval: fewer than half of the bootstrap replicates are defined"
    low, high = bounds or (None, None)
    reason = "; ".join(part for part in (said, unsure) if part) or None
    return {**facts, "value": value, "ci_low": low, "ci_high": high, "reason": reason, "n_images": count}


def _check(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float] | None, tolerance_mm: float) -> None:
    if prediction.shape != truth.shape or truth.ndim not in (2, 3):
        expected, fix = "two images or two volumes of one size", "Bring the prediction back to the size of the mask."
        got = f"{prediction.shape} and {truth.shape}"
        raise InputError(sentence("prediction, truth", expected=expected, got=got, fix=fix))
    if spacing_mm is not None and (len(spacing_mm) != truth.ndim or not all(0 < side < np.inf for side in spacing_mm)):
        expected, fix = f"{truth.ndim} lengths above 0, one per axis", "Read it from the image's header."
        raise InputError(sentence("spacing_mm", expected=expected, got=tuple(spacing_mm), fix=fix))
    if not 0 <= tolerance_mm < np.inf:
        raise InputError(sentence("tolerance_mm", expected="a length of at least 0", got=tolerance_mm, fix="Try 2."))
