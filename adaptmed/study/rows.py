"""Which rows of a bank a study trains on and judges by, and their labels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped

from adaptmed.bank import Bank
from adaptmed.data.splits import fraction_rows, overlapping_patients, patient_digest
from adaptmed.errors import InputError, OverlapError, sentence
from adaptmed.study.statistics import Truth


@dataclass(frozen=True)
class StudyRows:
    """The labelled rows of one bank, the same for every arm.

    Attributes:
        train: Row numbers of labelled images of the train split.
        test: Row numbers of labelled images of the test split.
        judged: Row numbers of all test images, labelled or not, which retrieval is judged on.
        labels: Of ``train``: ``(n, label)`` with NaN, or ``(n,)`` class numbers with -1.
        patients: Of ``train``.
        truth: What ``test`` is judged by.
    """

    train: Int[np.ndarray, " n"]
    test: Int[np.ndarray, " m"]
    judged: Int[np.ndarray, " k"]
    labels: Shaped[np.ndarray, "n *label"]
    patients: Shaped[np.ndarray, " n"]
    truth: Truth

    @property
    def classes(self) -> int | None:
        """Number of classes; ``None`` for labels."""
        return len(self.truth.names) if self.truth.kind == "multiclass" else None

    def fraction(self, share: float, seed: int) -> Int[np.ndarray, " k"]:
        """Places in ``train`` of the patients in a fraction: nested, stratified, the same for every arm."""
        return np.flatnonzero(fraction_rows(self.patients, self.labels, share, seed=seed))

    def positives(self, places: Int[np.ndarray, " k"]) -> dict[str, int]:
        """Count the positives of every label, or the items of every class, at these places of ``train``."""
        chosen = self.labels[places]
        if self.truth.kind == "multiclass":
            return {name: int((chosen == number).sum()) for number, name in enumerate(self.truth.names)}
        return {name: int((chosen[:, number] == 1).sum()) for number, name in enumerate(self.truth.names)}


def study_rows(bank: Bank, *, seen: Iterable[str] = (), allow_overlap: bool = False) -> StudyRows:
    """Take the labelled images of a bank's train and test splits.

    Args:
        bank: With label columns or a class column, and images.
        seen: Digests of the patients that the runs to be judged have read.
        allow_overlap: Go on although test patients were seen; the report then says so.

    Raises:
        InputError: If nothing is labelled, or one of the two splits is empty.
        OverlapError: If a test patient is also in another split, or a run has seen it.
    """
    taken = sorted({"macro", "all"} & {*bank.info.labels, *bank.info.classes})
    if taken:
        expected, fix = "other label names than macro and all, which name the means", "Rename the column."
        raise InputError(sentence("labels", expected=expected, got=", ".join(taken), fix=fix))
    train, test = _labelled(bank, "train"), _labelled(bank, "test")
    for split, rows in (("train", train), ("test", test)):
        if not len(rows):
            expected = f"labelled images in the split {split}"
            fix = "Check the label columns and the split column with `adaptmed check`."
            raise InputError(sentence(str(bank.folder), expected=expected, got="none", fix=fix))
    judged = _with_image(bank, "test")
    overlap = overlap_of(bank, judged, seen)
    if overlap and not allow_overlap:
        expected = "test patients that no training has seen"
        fix = "Split by patient, pre-train again, or pass --allow-overlap, which marks every result."
        raise OverlapError(sentence(str(bank.folder), expected=expected, got=f"{overlap} that were seen", fix=fix))
    patients = bank.rows["patient"].astype(str).to_numpy(object)
    info = bank.info
    several = info.class_column is not None
    truth = Truth(
        kind="multiclass" if several else "multilabel",
        names=info.classes if several else info.labels,
        labels=_labels(bank, test),
        patients=patients[test],
        dataset=info.manifest.rsplit("/", 1)[-1],
        encoder=f"{info.images.name if info.images else '-'} + {info.texts.name if info.texts else '-'}",
    )
    return StudyRows(train, test, judged, _labels(bank, train), patients[train], truth)


def overlap_of(bank: Bank, test: Int[np.ndarray, " m"], seen: Iterable[str]) -> int:
    """Count the test patients that stand in another split as well, or whose digest is among ``seen``."""
    frame = bank.rows
    several = set(overlapping_patients(frame["patient"].astype(str), frame["split"]))
    patients = set(frame["patient"].astype(str).to_numpy(object)[test])
    known = set(seen)
    return len({patient for patient in patients if patient in several or patient_digest([patient])[0] in known})


def _labels(bank: Bank, rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *label"]:
    if bank.info.class_column is not None:
        return bank.class_numbers(rows).numpy()
    return bank.labels(rows).double().numpy()


def _labelled(bank: Bank, split: str) -> Int[np.ndarray, " n"]:
    if not bank.info.labels and bank.info.class_column is None:
        expected = "a bank with label columns or a class column"
        fix = "Run `adaptmed embed` with --labels or --class-column into another --out."
        raise InputError(sentence(str(bank.folder), expected=expected, got="neither", fix=fix))
    rows = _with_image(bank, split)
    labels = _labels(bank, rows)
    known: Bool[np.ndarray, " n"] = labels >= 0 if labels.ndim == 1 else ~np.isnan(labels).all(axis=1)
    return rows[known]


def _with_image(bank: Bank, split: str) -> Int[np.ndarray, " n"]:
    rows = bank.subset(split)
    return rows[bank.rows["image_index"].to_numpy()[rows] >= 0]
