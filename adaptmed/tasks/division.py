"""Whom a fine-tuning reads, by what it is stopped, and whom it is judged by."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from adaptmed.bank import Bank
from adaptmed.data.splits import fraction_rows, patient_digest
from adaptmed.errors import InputError, OverlapError, sentence
from adaptmed.tasks.labelled import labelled_rows, labels_of, patients_of, require_unseen, with_image


@dataclass(frozen=True)
class Division:
    """The labelled images of a bank, by what they are for.

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

    @classmethod
    def of(
        cls,
        bank: Bank,
        train: Int[np.ndarray, " n"],
        validate: Int[np.ndarray, " v"],
        test: Int[np.ndarray, " m"],
        *,
        before: Iterable[str] | None,
        overlap: int,
    ) -> "Division":
        """Add whom training and validation read to those that were seen before."""
        read = patient_digest([*patients_of(bank, train), *patients_of(bank, validate)])
        return cls(train, validate, test, sorted({*(before or ()), *read}), overlap, before is not None)


def divide(bank: Bank, *, fraction: float, seed: int, before: Iterable[str] | None, allow_overlap: bool) -> Division:
    """Take the fraction's patients from the train split as a study does, and everybody of the other two.

    Args:
        bank: With labels or classes, and images.
        fraction: Share of the labelled training patients, in (0, 1].
        seed: Another one chooses another fraction.
        before: Digests of the patients that were seen in pre-training; ``None`` when nobody knows.
        allow_overlap: Go on although test patients were seen.

    Raises:
        InputError: If no label of the fraction has a positive and a negative, or ``fraction`` is outside (0, 1].
        OverlapError: If a patient stands in train and validate, or a test patient was seen.
    """
    train, validate, test = (labelled_rows(bank, split) for split in ("train", "validate", "test"))
    judged = with_image(bank, "test")
    overlap = require_apart(bank, train, validate, judged, before=before, allow_overlap=allow_overlap)
    if len(train):
        train = train[fraction_rows(patients_of(bank, train), labels_of(bank, train), fraction, seed=seed)]
    if not _teaches(labels_of(bank, train)):
        expected, got = "a label with a positive and a negative, or two classes", f"none in {len(train)} images"
        fix = "Take a larger --fraction, or check labels and splits with `adaptmed check`."
        raise InputError(sentence(f"{bank.folder}: train", expected=expected, got=got, fix=fix))
    return Division.of(bank, train, validate, test, before=before, overlap=overlap)


def require_apart(
    bank: Bank,
    train: Int[np.ndarray, " n"],
    validate: Int[np.ndarray, " v"],
    judged: Int[np.ndarray, " m"],
    *,
    before: Iterable[str] | None,
    allow_overlap: bool,
) -> int:
    """Refuse patients on two sides, and count the test patients that were seen.

    Args:
        bank: The rows.
        train: Row numbers.
        validate: Row numbers.
        judged: Row numbers of all test images.
        before: Digests of the patients that were seen in pre-training; ``None`` when nobody knows.
        allow_overlap: Go on although test patients were seen.

    Raises:
        OverlapError: If a patient stands in train and validate, or a test patient was seen.
    """
    overlap = require_unseen(bank, judged, set(before or ()), allow_overlap=allow_overlap)
    both = set(patients_of(bank, train)) & set(patients_of(bank, validate))
    if both:
        expected, got = "no patient in both train and validate", f"{len(both)} such patients"
        fix = "Run `adaptmed check` on the manifest and mend its split column."
        raise OverlapError(sentence("split", expected=expected, got=got, fix=fix))
    return overlap


def _teaches(labels: Shaped[np.ndarray, "n *label"]) -> bool:
    if labels.ndim == 1:
        return len(np.unique(labels[labels >= 0])) > 1
    return bool(((labels == 0).any(axis=0) & (labels == 1).any(axis=0)).any())
