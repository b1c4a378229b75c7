"""A cell of a study and its scores: every metric with its bootstrap replicates, computed once."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Real

from adaptmed.errors import InputError, sentence
from adaptmed.metrics.classification import (
    mean_of_defined,
    weighted_accuracy,
    weighted_auroc,
    weighted_average_precision,
    weighted_balanced_accuracy,
    weighted_expected_calibration_error,
)
from adaptmed.metrics.segmentation import METRICS as SEGMENTATION
from adaptmed.metrics.segmentation import weighted_mean


@dataclass(frozen=True)
class Cell:
    """One arm trained on one label fraction with one seed, judged on the test split.

    Attributes:
        arm: Name of the contender.
        fraction: Share of the labelled training patients; 0 for zero-shot.
        seed: Seed of training.
        values: What it is judged by. Multi-label: P(label = 1) of each label; multi-class: rows that sum to 1;
            segmentation: scores of every test image, label and metric of ``metrics.segmentation``, NaN where undefined;
            answering: whether each question is answered rightly, in every column the same.
        reasons: Label -> why it is undefined in this cell (no positive in the fraction, ...); its scores are ignored.
            Multi-class: a class name, which leaves the macro AUROC, or ``"all"``, which leaves every metric undefined.
        n_train: Labelled training items.
        n_positive: Label -> positives among them.
        trainable_parameters: Parameters that training moved.
        seconds: Wall time of training.
    """

    arm: str
    fraction: float
    seed: int
    values: Float[np.ndarray, "n_test n_label *metric"]
    reasons: dict[str, str]
    n_train: int
    n_positive: dict[str, int]
    trainable_parameters: int
    seconds: float


@dataclass(frozen=True)
class Truth:
    """What all cells are judged by.

    Attributes:
        kind: ``multilabel`` (a binary task is one label), ``multiclass``, ``segmentation`` or ``answering``.
        names: Label or class names; of masks without the background. Answering: kinds of questions, ``all`` first.
        labels: ``(n_test, n_label)`` of 0, 1 and NaN (not labelled); or ``(n_test,)`` class numbers, -1 not labelled.
            Segmentation: whether each test image holds the label. Answering: 1 where a question is of the kind, else
            NaN.
        patients: The patient of each test item, the unit of the bootstrap.
        dataset: Name printed in every record.
        encoder: ``"<image encoder> + <text encoder>"``.
    """

    kind: Literal["multilabel", "multiclass", "segmentation", "answering"]
    names: tuple[str, ...]
    labels: Real[np.ndarray, "n_test ..."]
    patients: np.ndarray
    dataset: str
    encoder: str

    @property
    def composite(self) -> str:
        """The label under which the whole task is judged: ``macro`` over labels, ``all`` over classes or questions."""
        return "all" if self.kind in ("multiclass", "answering") else "macro"


@dataclass(frozen=True)
class Score:
    """A metric of one cell.

    Attributes:
        samples: First the point value, then the bootstrap replicates; NaN where undefined.
        reason: Why the point value is undefined, or what was left out of it.
    """

    samples: Float[np.ndarray, " one_plus_replicate"]
    reason: str | None = None

    @property
    def defined(self) -> bool:
        """Whether there is a point value."""
        return not bool(np.isnan(self.samples[0]))


BLOCK = 200
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Scores = dict[tuple[str, str], Score]  # (metric, label or class or "all") -> Score


def score(cell: Cell, truth: Truth, weights: Float[np.ndarray, "one_plus_replicate n_test"]) -> Scores:
    """Score one cell.

    Args:
        cell: Predictions of one arm.
        truth: What they are judged by.
        weights: How often each test item counts; the first row is all ones.

    Returns:
        Multi-label and segmentation: every metric of every label. Multi-class: the metrics of the whole under
        ``"all"``, and the one-versus-rest AUROC of each class, of which `macro` makes the whole.
    """
    match truth.kind:
        case "multilabel":
            return _multilabel(cell, truth, weights)
        case "multiclass":
            return _multiclass(cell, truth, weights)
        case "segmentation":
            return _segmentation(cell, truth, weights)
        case "answering":
            return _answering(cell, truth, weights)


def macro(scores: Scores, metric: str, names: tuple[str, ...], *, within: Container[str] | None = None) -> Score:
    """Mean over the labels that are defined (and ``within``, if given); its reason names those left out.

    A replicate is averaged over what it defines, which depends on the drawn patients alone, equally for all arms.
    """
    kept = [name for name in names if is_defined(scores, metric, name) and (within is None or name in within)]
    left = [(name, scores[metric, name].reason or "undefined in the other arm") for name in names if name not in kept]
    if not kept:
        reason = "; ".join(dict.fromkeys(why for _, why in left))
        return Score(np.full_like(scores[metric, names[0]].samples, np.nan), reason)
    samples = mean_of_defined(np.stack([scores[metric, name].samples for name in kept]))
    return Score(samples, "; ".join(f"without {name}: {why}" for name, why in left) or None)


def is_defined(scores: Scores, metric: str, label: str) -> bool:
    """Whether a score exists and has a point value."""
    return (metric, label) in scores and scores[metric, label].defined


def check(cell: Cell, truth: Truth) -> None:
    """Refuse a cell whose predictions cannot be judged by the truth.

    Raises:
        InputError: The shape does not fit, or a probability that counts is not in [0, 1].
    """
    masks = truth.kind == "segmentation"
    where = f"{'scores' if masks else 'probabilities'} of {cell.arm}, fraction {cell.fraction}, seed {cell.seed}"
    shape = (len(truth.labels), len(truth.names)) + (len(SEGMENTATION),) * masks
    if cell.values.shape != shape:
        fix = "Predict the whole test split, one column per name."
        raise InputError(sentence(where, expected=f"shape {shape}", got=cell.values.shape, fix=fix))
    if masks:
        return
    counted = cell.values[:, [name not in cell.reasons and "all" not in cell.reasons for name in truth.names]]
    if not np.all((counted >= 0) & (counted <= 1)):
        got = f"{int((~((counted >= 0) & (counted <= 1))).sum())} others"
        fix = "Apply a sigmoid or softmax, or give the label a reason why it is undefined."
        raise InputError(sentence(where, expected="numbers in [0, 1]", got=got, fix=fix))


def _multilabel(cell: Cell, truth: Truth, weights: np.ndarray) -> Scores:
    scores: Scores = {}
    for column, name in enumerate(truth.names):
        said, came = cell.values[:, column], truth.labels[:, column]
        reason = cell.reasons.get("all") or cell.reasons.get(name)
        calibration = _score(weighted_expected_calibration_error, said, came, weights, reason or _unlabelled(came))
        scores["ece", name] = _recentred(calibration)
        reason = reason or _one_sided(came)
        scores["auroc", name] = _score(weighted_auroc, said, came, weights, reason)
        scores["average_precision", name] = _score(weighted_average_precision, said, came, weights, reason)
    return scores


def _multiclass(cell: Cell, truth: Truth, weights: np.ndarray) -> Scores:
    said, came, whole = cell.values, truth.labels, cell.reasons.get("all")
    functions: dict[str, Metric] = {
        "accuracy": weighted_accuracy,
        "balanced_accuracy": weighted_balanced_accuracy,
        "ece": weighted_expected_calibration_error,
    }
    missing = whole or _unlabelled(came)
    scores = {(metric, "all"): _score(each, said, came, weights, missing) for metric, each in functions.items()}
    scores["ece", "all"] = _recentred(scores["ece", "all"])
    for number, name in enumerate(truth.names):
        member = np.where(came >= 0, came == number, np.nan)
        reason = whole or cell.reasons.get(name) or _one_sided(member)
        scores["auroc", name] = _score(weighted_auroc, said[:, number], member, weights, reason)
    return scores


def _segmentation(cell: Cell, truth: Truth, weights: np.ndarray) -> Scores:
    scores: Scores = {}
    for number, metric in enumerate(SEGMENTATION):
        for column, name in enumerate(truth.names):
            of_images = cell.values[:, column, number]
            reason = cell.reasons.get("all") or cell.reasons.get(name)
            if reason is None and np.isnan(of_images).all():
                reason = f"undefined in every test image: {SEGMENTATION[metric]}"
            samples = np.full(len(weights), np.nan) if reason else weighted_mean(of_images, weights)
            scores[metric, name] = Score(samples, reason)
    return scores


def _answering(cell: Cell, truth: Truth, weights: np.ndarray) -> Scores:
    right = np.where(truth.labels == 1, cell.values, np.nan)
    reason = cell.reasons.get("all")
    undefined = Score(np.full(len(weights), np.nan), reason)
    return {
        ("accuracy", name): undefined if reason else Score(weighted_mean(right[:, column], weights))
        for column, name in enumerate(truth.names)
    }


def _score(function: Metric, said: np.ndarray, came: np.ndarray, weights: np.ndarray, reason: str | None) -> Score:
    """Score, or leave undefined for a reason; in blocks of replicates that stay in the processor's cache."""
    if reason:
        return Score(np.full(len(weights), np.nan), reason)
    blocks = [weights[start : start + BLOCK] for start in range(0, len(weights), BLOCK)]
    return Score(np.concatenate([function(said, came, block) for block in blocks]))


def _recentred(score: Score) -> Score:
    """Move the replicates of a calibration error so that their mean is the point value.

    Resampling adds noise to every bin, and the absolute gaps can only grow by it: left alone, the replicates lie too
    high, and the point value may stand outside its own interval.
    """
    drift = mean_of_defined(score.samples[1:, None])[0] - score.samples[0]
    return Score(np.concatenate([score.samples[:1], np.maximum(score.samples[1:] - drift, 0.0)]), score.reason)


def _unlabelled(came: np.ndarray) -> str | None:
    return None if (came >= 0).any() else "no labelled item in the test split"


def _one_sided(came: np.ndarray) -> str | None:
    missing = [name for name, number in [("positive", 1), ("negative", 0)] if not (came == number).any()]
    return _unlabelled(came) or (f"no {missing[0]} in the test split" if missing else None)
