"""A labelled fraction made ready for probes: checked, put in an order of its own, folded, turned to principal axes."""

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from adaptmed.errors import InputError, sentence
from adaptmed.heads.logistic import Fold


@dataclass(frozen=True)
class Fraction:
    """Features, labels and patients of the labelled rows, in an order that does not depend on how they came.

    Attributes:
        features: Finite, float64.
        labels: ``(n, label)`` of 0, 1 and NaN, or ``(n,)`` integer classes with -1.
        groups: The patients' names.
    """

    features: Float[np.ndarray, "n d"]
    labels: Shaped[np.ndarray, "n *label"]
    groups: Shaped[np.ndarray, " n"]

    @classmethod
    def of(
        cls,
        features: Float[np.ndarray, "n d"],
        labels: Shaped[np.ndarray, "_ *label"],
        groups: Shaped[np.ndarray, "_"],
    ) -> "Fraction":
        """Check the arrays and sort their rows by patient and content.

        Raises:
            InputError: Lengths differ, there is no row, a feature is not finite, or a label is not one.
        """
        features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
        groups = np.asarray([str(group) for group in groups])
        if features.ndim != 2 or not len(features) == len(labels) == len(groups) > 0:
            got = f"shapes {features.shape}, {labels.shape}, {groups.shape}"
            fix = "Pass the same rows, at least one, in each."
            raise InputError(sentence("features, labels, groups", expected="(n, d), (n, ...), (n,)", got=got, fix=fix))
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            fix = "Leave that row out or embed it again."
            raise InputError(sentence("features", expected="finite numbers", got=f"another in row {row}", fix=fix))
        _check_labels(labels)
        contents = [hashlib.sha256(x.tobytes() + y.tobytes()).digest() for x, y in zip(features, labels, strict=True)]
        order = np.asarray(sorted(range(len(groups)), key=lambda row: (groups[row], contents[row])))
        return cls(features[order], labels[order], groups[order])


@dataclass(frozen=True)
class Axes:
    """Standardised features on their principal axes, and the way back.

    Attributes:
        design: The features; the last column is 1, for the bias.
        back: Turns coefficients on the axes into weights on the features as given.
        mean: Mean of the features as given.
    """

    design: Float[np.ndarray, "n axis"]
    back: Float[np.ndarray, "_ d"]
    mean: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Axes":
        """Standardise and rotate; no more axes than rows, so that a small fraction is a small problem."""
        scaler = StandardScaler().fit(features)
        left, size, right = np.linalg.svd(scaler.transform(features), full_matrices=False)
        kept = size > 1e-9 * size[0]
        design = np.hstack([(left * size)[:, kept], np.ones((len(features), 1))])
        return cls(design, right[kept] / scaler.scale_, scaler.mean_)

    def original(
        self, coefficients: Float[np.ndarray, "output axis"]
    ) -> tuple[Float[np.ndarray, "output d"], Float[np.ndarray, " output"]]:
        """Return weight and bias for the features as given."""
        weight = coefficients[:, :-1] @ self.back
        return weight, coefficients[:, -1] - weight @ self.mean


@dataclass(frozen=True)
class Block:
    """Outputs that are fitted together: one label, or all classes that are present.

    Attributes:
        outputs: Their indices.
        rows: The rows that are labelled.
        codes: The class of each of these rows; 0 and 1 for a label.
        targets: Of the same rows, one column per output: 0 and 1.
    """

    outputs: Int[np.ndarray, " output"]
    rows: Int[np.ndarray, " m"]
    codes: Shaped[np.ndarray, " m"]
    targets: Float[np.ndarray, "m output"]


def blocks(labels: Shaped[np.ndarray, "n *label"]) -> list[Block]:
    """Return one block per label, or one for all classes."""
    if labels.ndim == 1:
        rows = np.flatnonzero(labels >= 0)
        present, codes = np.unique(labels[rows], return_inverse=True)
        return [Block(present.astype(np.int64), rows, codes, np.eye(len(present))[codes])]
    found = []
    for index, column in enumerate(labels.T):
        rows = np.flatnonzero(~np.isnan(column))
        targets = column[rows, None].astype(np.float64)
        found.append(Block(np.array([index]), rows, column[rows], targets))
    return found


def grouped_folds(codes: Shaped[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"], *, seed: int) -> list[Fold]:
    """Cut rows into stratified folds that keep a patient together.

    At most 5 folds, 3 above 1,000 rows, and no more than the second most common class has patients (with two classes:
    than the rarer one has). A fold whose training rows would hold one class only is dropped.

    Args:
        codes: Class of each row, at least two classes.
        groups: Patient of each row.
        seed: Seed of the shuffle.

    Returns:
        Pairs of row numbers, to train on and to score; empty when fewer than two folds are usable.
    """
    patients = sorted(len(np.unique(groups[codes == code])) for code in np.unique(codes))
    count = min(5 if len(codes) <= 1000 else 3, patients[-2])
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = list(splitter.split(codes, codes, groups))
    usable = [fold for fold in folds if len(np.unique(codes[fold[0]])) > 1 and len(fold[1])]
    return usable if len(usable) > 1 else []


def _check_labels(labels: Shaped[np.ndarray, "n *label"]) -> None:
    if labels.ndim == 1:
        good = np.issubdtype(labels.dtype, np.integer) and labels.min() >= -1
    else:
        good = labels.ndim == 2 and bool((np.isnan(labels) | (labels == 0) | (labels == 1)).all())
    if not good:
        expected = "(n, label) of 0, 1 and NaN, or (n,) integer classes with -1 for not labelled"
        got = f"shape {labels.shape}, {labels.dtype}, for example {np.unique(labels)[:3].tolist()}"
        raise InputError(sentence("labels", expected=expected, got=got, fix="Mark unknown labels as not labelled."))
