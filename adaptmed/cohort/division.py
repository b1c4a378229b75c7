"""Train, validation and test rows of one fine-tuning or study, and the patients that were seen before."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from adaptmed.bank import Bank
from adaptmed.cohort.rows import labelled_rows, labels_of, patients_of, with_image
from adaptmed.data.splits import fraction_rows, overlapping_patients, patient_digest
from adaptmed.errors import InputError, OverlapError, sentence

SPLITS = ("train", "validate", "test")
Rows = Int[np.ndarray, " n"]
Sides = tuple[Rows, Int[np.ndarray, " v"], Int[np.ndarray, " m"]]
"""Usable row numbers of train, validate and test."""
_SPLIT_FIX = "Run `adaptmed check` on the manifest and correct its split column."


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the training patients is read, and whether overlap is allowed.

    Attributes:
        fraction: Share of the training patients, in (0, 1].
        seed: Another one chooses another fraction.
        allow_overlap: Go on although test patients were seen.
    """

    fraction: float = 1.0
    seed: int = 0
    allow_overlap: bool = False


@dataclass(frozen=True)
class Division:
    """The rows of one fine-tuning, by what they are used for.

    Attributes:
        train: Row numbers of the fraction of the train split.
        validate: Row numbers of the validate split; may be empty.
        test: Row numbers of the test split; may be empty.
        seen: Digests of the patients that training and validation read, and of those that were seen before.
        overlap: Number of test patients that were seen.
        known: Whether the patients of pre-training are known, so that they are among those seen.
    """

    train: Int[np.ndarray, " n"]
    validate: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " m"]
    seen: list[str]
    overlap: int
    known: bool


def divide(
    bank: Bank,
    sides: Sides,
    strata: Shaped[np.ndarray, "n *label"],
    share: Share,
    *,
    before: Iterable[str] | None,
    judged: Int[np.ndarray, " k"] | None = None,
) -> Division:
    """Take the fraction's patients from the train split as a study does, and every patient of the other two.

    Args:
        bank: The rows.
        sides: Usable row numbers of the three splits.
        strata: Labels, classes or answers of the rows of train.
        share: The fraction, its seed, and whether overlap is allowed.
        before: Digests of the patients that were seen before; ``None`` when that is not known.
        judged: Test rows whose patients must not have been seen; ``None`` takes all test images.

    Raises:
        InputError: The fraction is outside (0, 1].
        OverlapError: A patient is in train and validate, or a test patient was seen.
    """
    train, validate, test = sides
    judged = with_image(bank, "test") if judged is None else judged
    overlap = require_apart(bank, (train, validate, judged), before=before, allow_overlap=share.allow_overlap)
    if len(train):
        train = train[fraction_rows(patients_of(bank, train), strata, share.fraction, seed=share.seed)]
    read = patient_digest([*patients_of(bank, train), *patients_of(bank, validate)])
    return Division(train, validate, test, sorted({*(before or ()), *read}), overlap, before is not None)


def divide_labelled(bank: Bank, share: Share, *, before: Iterable[str] | None) -> Division:
    """Divide the labelled images of a bank.

    Args:
        bank: With labels or classes, and images.
        share: The fraction, its seed, and whether overlap is allowed.
        before: Digests of the patients that were seen in pre-training; ``None`` when that is not known.

    Raises:
        InputError: No label of the fraction has a positive and a negative, or the fraction is outside (0, 1].
        OverlapError: A patient is in train and validate, or a test patient was seen.
    """
    train, validate, test = (labelled_rows(bank, split) for split in SPLITS)
    rows = divide(bank, (train, validate, test), labels_of(bank, train), share, before=before)
    if not _can_teach(labels_of(bank, rows.train)):
        expected = "a label with a positive and a negative, or two classes"
        got, fix = (
            f"none in {len(rows.train)} images",
            "Take a larger --fraction, or check labels and splits with `adaptmed check`.",
        )
        raise InputError(sentence(f"{bank.folder}: train", expected=expected, got=got, fix=fix))
    return rows


def require_apart(bank: Bank, sides: Sides, *, before: Iterable[str] | None, allow_overlap: bool) -> int:
    """Refuse patients that are on two sides, and count the test patients that were seen.

    Args:
        bank: The rows.
        sides: Row numbers of train, of validate and of all test images.
        before: Digests of the patients that were seen in pre-training; ``None`` when that is not known.
        allow_overlap: Go on although test patients were seen.

    Raises:
        OverlapError: A patient is in train and validate, or a test patient was seen.
    """
    train, validate, judged = sides
    overlap = require_unseen(bank, judged, set(before or ()), allow_overlap=allow_overlap)
    both = set(patients_of(bank, train)) & set(patients_of(bank, validate))
    if both:
        expected, got = "no patient in both train and validate", f"{len(both)} such patients"
        raise OverlapError(sentence("split", expected=expected, got=got, fix=_SPLIT_FIX))
    return overlap


def overlap_of(bank: Bank, test: Int[np.ndarray, " m"], seen: Iterable[str]) -> int:
    """Count the test patients that are in another split as well, or whose digest is among ``seen``."""
    frame = bank.rows
    several = set(overlapping_patients(frame["patient"].astype(str), frame["split"]))
    known = set(seen)
    patients = set(patients_of(bank, test))
    return len({patient for patient in patients if patient in several or patient_digest([patient])[0] in known})


def require_unseen(bank: Bank, test: Int[np.ndarray, " m"], seen: Iterable[str], *, allow_overlap: bool) -> int:
    """Count the test patients that were seen, as ``overlap_of`` does, and refuse them unless they are allowed.

    Raises:
        OverlapError: There are any and ``allow_overlap`` is False.
    """
    overlap = overlap_of(bank, test, seen)
    if overlap and not allow_overlap:
        expected = "test patients that no training has seen"
        fix = "Split by patient, pre-train again, or pass --allow-overlap, which marks every result."
        raise OverlapError(sentence(str(bank.folder), expected=expected, got=f"{overlap} that were seen", fix=fix))
    return overlap


def seen_patients(bank: Bank, train: Rows, validate: Int[np.ndarray, " v"]) -> list[str]:
    """Digests of the patients that pre-training and early stopping read.

    Raises:
        OverlapError: A patient is in two of the splits.
    """
    patients = bank.rows["patient"].astype(str).to_numpy()
    trained, judged, held_out = (set(patients[rows]) for rows in (train, validate, bank.subset("test")))
    seen = trained | judged
    both = (trained & judged) | (seen & held_out)
    if both:
        expected, got = "no patient in two of train, validate and test", f"{len(both)} such patients"
        raise OverlapError(sentence("split", expected=expected, got=got, fix=_SPLIT_FIX))
    return patient_digest(sorted(seen))


def _can_teach(labels: Shaped[np.ndarray, "n *label"]) -> bool:
    if labels.ndim == 1:
        return len(np.unique(labels[labels >= 0])) > 1
    return bool(((labels == 0).any(axis=0) & (labels == 1).any(axis=0)).any())
