"""Which images of a bank are labelled and by what, and which test patients have been seen before."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int, Shaped

from adaptmed.bank import Bank
from adaptmed.data.splits import overlapping_patients, patient_digest
from adaptmed.errors import InputError, OverlapError, sentence


def with_image(bank: Bank, split: str) -> Int[np.ndarray, " n"]:
    """Row numbers of a split that have an image."""
    rows = bank.subset(split)
    return rows[bank.rows["image_index"].to_numpy()[rows] >= 0]


def labelled_rows(bank: Bank, split: str) -> Int[np.ndarray, " n"]:
    """Row numbers of a split that have an image and at least one label, or a class.

    Raises:
        InputError: If the bank has neither label columns nor a class column.
    """
    if not bank.info.labels and bank.info.class_column is None:
        expected = "a bank with label columns or a class column"
        fix = "Run `adaptmed embed` with --labels or --class-column into another --out."
        raise InputError(sentence(str(bank.folder), expected=expected, got="neither", fix=fix))
    rows = with_image(bank, split)
    labels = labels_of(bank, rows)
    known: Bool[np.ndarray, " n"] = labels >= 0 if labels.ndim == 1 else ~np.isnan(labels).all(axis=1)
    return rows[known]


def labels_of(bank: Bank, rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *label"]:
    """Labels ``(n, label)`` with NaN, or class numbers ``(n,)`` with -1 where the bank has a class column."""
    if bank.info.class_column is not None:
        return bank.class_numbers(rows).numpy()
    return bank.labels(rows).double().numpy()


def names_of(bank: Bank) -> tuple[str, ...]:
    """Names of the labels, or of the classes where the bank has a class column."""
    return bank.info.labels if bank.info.class_column is None else bank.info.classes


def patients_of(bank: Bank, rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """The patient of each row, as a string."""
    return bank.rows["patient"].astype(str).to_numpy(object)[rows]


def overlap_of(bank: Bank, test: Int[np.ndarray, " m"], seen: Iterable[str]) -> int:
    """Count the test patients that stand in another split as well, or whose digest is among ``seen``."""
    frame = bank.rows
    several = set(overlapping_patients(frame["patient"].astype(str), frame["split"]))
    known = set(seen)
    patients = set(patients_of(bank, test))
    return len({patient for patient in patients if patient in several or patient_digest([patient])[0] in known})


def require_unseen(bank: Bank, test: Int[np.ndarray, " m"], seen: Iterable[str], *, allow_overlap: bool) -> int:
    """Count the test patients that were seen, as ``overlap_of`` does, and refuse them unless they are allowed.

    Raises:
        OverlapError: If there are any and ``allow_overlap`` is False.
    """
    overlap = overlap_of(bank, test, seen)
    if overlap and not allow_overlap:
        expected = "test patients that no training has seen"
        fix = "Split by patient, pre-train again, or pass --allow-overlap, which marks every result."
        raise OverlapError(sentence(str(bank.folder), expected=expected, got=f"{overlap} that were seen", fix=fix))
    return overlap
