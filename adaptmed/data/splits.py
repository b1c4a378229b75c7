"""Which patients stand where: splits and label fractions decided by hashes of patient ids, never by row order."""

import hashlib
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike, NDArray

from adaptmed.errors import InputError, sentence

SPLITS = ("train", "validate", "test")
_NO_STRATUM = "none"


def assign_splits(
    patients: Iterable[str],
    strata: ArrayLike | None = None,
    *,
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> NDArray[np.object_]:
    """Assign every row to ``train``, ``validate`` or ``test``, whole patients at a time.

    Patients are brought into the stratified order of ``fraction_rows`` and cut after the given shares. With few
    patients a small share may come out empty.

    Args:
        patients: Patient id of each row.
        strata: As ``labels`` of ``fraction_rows``; ``None``: not stratified.
        shares: Shares of train, validate and test among the patients; they sum to 1.
        seed: Another seed, another assignment.

    Returns:
        The split of each row.

    Raises:
        InputError: The shares are negative or do not sum to 1, or ``strata`` has another number of rows.

    Example:
        >>> print(*assign_splits(["b", "a", "b", "c", "d"], shares=(0.5, 0.25, 0.25)))
        train train train validate test
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        fix = "Pass for example (0.7, 0.1, 0.2)."
        raise InputError(sentence("shares", expected="three shares that sum to 1", got=shares, fix=fix))
    codes, order = _stratified_order(patients, strata, f"split {seed}")
    cuts = [round(share * len(order)) for share in (0.0, shares[0], shares[0] + shares[1], 1.0)]
    side = np.empty(len(order), dtype=object)
    for split, (start, stop) in zip(SPLITS, pairwise(cuts), strict=True):
        side[order[start:stop]] = split
    return side[codes]


def fraction_rows(
    patients: Iterable[str], labels: ArrayLike | None, fraction: float, *, seed: int
) -> Bool[np.ndarray, " n"]:
    """Choose the rows of a share of the patients: stratified, nested, and the same in any row order.

    The stratum of a patient is the rarest label that is positive in any of its rows (rarest by patients among the rows
    given, ties by the order of the labels), or "none". Inside a stratum of n patients the patient of rank r, by the
    sha256 of seed and patient id, stands at (r + u) / n, where u in [0, 1) is a hash of seed and stratum. The patients
    with the lowest positions are taken, ``round(fraction * patients)`` of them and at least one. All strata are thus
    cut at one position t and give t · n patients each, rounded up or down; t differs from ``fraction`` by at most
    strata / patients, and over seeds no stratum is favoured. A smaller fraction is inside a larger one of one seed.

    Args:
        patients: Patient id of each row.
        labels: ``(n, labels)`` numbers, positive above 0, NaN where not labelled; or ``(n,)`` classes, whole numbers
            (-1: not labelled) or names; ``None``: not stratified.
        fraction: In (0, 1]; 1 takes all rows.
        seed: Another seed, another choice.

    Returns:
        True at the rows of the chosen patients.

    Raises:
        InputError: ``fraction`` is outside (0, 1], there are no rows, or ``labels`` has another number of rows.

    Example:
        >>> fraction_rows(["b", "a", "b", "c"], [0, 1, 0, 1], 0.5, seed=0).tolist()
        [True, False, True, True]
    """
    if not 0 < fraction <= 1:
        fix = "Pass for example 0.01."
        raise InputError(sentence("fraction", expected="a number in (0, 1]", got=fraction, fix=fix))
    codes, order = _stratified_order(patients, labels, f"fraction {seed}")
    return np.isin(codes, order[: max(1, round(fraction * len(order)))])


def overlapping_patients(patients: Iterable[str], splits: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the patients that stand in several splits, each with its splits.

    Example:
        >>> overlapping_patients(["a", "a", "b"], ["train", "test", "test"])
        {'a': ('test', 'train')}
    """
    sides: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=True):
        sides.setdefault(patient, set()).add(split)
    return {patient: tuple(sorted(names)) for patient, names in sides.items() if len(names) > 1}


def patient_digest(patients: Iterable[str]) -> list[str]:
    """Return the sorted sha256 of the distinct patient ids, by which a run folder remembers whom it has seen.

    The salt is the same everywhere, so that digests of different runs can be compared. It keeps ids out of sight, but
    short ids can be found by trying: a digest is no anonymisation.

    Example:
        >>> len(patient_digest(["a", "b", "a"])), patient_digest(["a"])[0][:8]
        (2, 'a041474a')
    """
    return sorted({_hash("adaptmed patient", patient) for patient in patients})


def _stratified_order(
    patients: Iterable[str], labels: ArrayLike | None, key: str
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " patient"]]:
    """Return the patient number of each row, and the patient numbers by their position in the stratified order."""
    patients = list(patients)
    names = sorted(set(patients))
    if not names:
        raise InputError(sentence("patients", expected="at least one row", got="none", fix="Pass the rows to divide."))
    number = {name: index for index, name in enumerate(names)}
    codes = np.array([number[patient] for patient in patients])
    hashes = [_hash(key, "patient", name) for name in names]
    members: dict[str, list[int]] = {}
    for patient, stratum in enumerate(_strata(codes, len(names), labels)):
        members.setdefault(stratum, []).append(patient)
    position = {}
    for stratum, group in members.items():
        shift = int(_hash(key, "stratum", stratum)[:13], 16) / 16**13
        for rank, patient in enumerate(sorted(group, key=hashes.__getitem__)):
            position[patient] = (rank + shift) / len(group)
    return codes, np.array(sorted(position, key=lambda patient: (position[patient], hashes[patient])))


def _strata(codes: Int[np.ndarray, " n"], n_patients: int, labels: ArrayLike | None) -> list[str]:
    """Name the stratum of every patient: its rarest positive label."""
    if labels is None:
        return [_NO_STRATUM] * n_patients
    values = np.asarray(labels)
    if values.ndim not in (1, 2) or len(values) != len(codes):
        expected, fix = f"one row of labels for each of {len(codes)} rows", "Pass patients and labels of the same rows."
        raise InputError(sentence("labels", expected=expected, got=f"shape {values.shape}", fix=fix))
    names, positive = _positives(values)
    if not names:
        return [_NO_STRATUM] * n_patients
    has = np.zeros((n_patients, len(names)), dtype=bool)
    for k, rows in enumerate(positive):
        has[codes[rows], k] = True
    rare_first = np.argsort(has.sum(axis=0), kind="stable")
    ordered = has[:, rare_first]
    first = rare_first[ordered.argmax(axis=1)]
    return [names[k] if has[patient].any() else _NO_STRATUM for patient, k in enumerate(first)]


def _positives(values: NDArray[np.generic]) -> tuple[list[str], list[NDArray[np.intp]]]:
    """Return the name of every label or class and the rows that are positive in it."""
    if values.ndim == 2:
        return [f"label {k}" for k in range(values.shape[1])], [np.flatnonzero(column > 0) for column in values.T]
    classes, columns, counts = np.unique(values, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(columns, kind="stable"), np.cumsum(counts)[:-1])
    kept = [k for k, name in enumerate(classes) if str(name) != "-1"]
    return [f"class {classes[k]}" for k in kept], [rows[k] for k in kept]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
