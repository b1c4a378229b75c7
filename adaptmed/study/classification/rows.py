"""Which rows of a bank a study trains on and judges by, and their labels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from adaptmed.bank import Bank
from adaptmed.cohort.division import require_unseen
from adaptmed.cohort.rows import labelled_rows, labels_of, names_of, patients_of, with_image
from adaptmed.data.splits import fraction_rows
from adaptmed.errors import InputError, sentence
from adaptmed.study.checks import place_of
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
    train, test = labelled_rows(bank, "train"), labelled_rows(bank, "test")
    for split, rows in (("train", train), ("test", test)):
        if not len(rows):
            expected = f"labelled images in the split {split}"
            fix = "Check the label columns and the split column with `adaptmed check`."
            raise InputError(sentence(str(bank.folder), expected=expected, got="none", fix=fix))
    judged = with_image(bank, "test")
    require_unseen(bank, judged, seen, allow_overlap=allow_overlap)
    dataset, encoder = place_of(bank)
    truth = Truth(
        kind="multilabel" if bank.info.class_column is None else "multiclass",
        names=names_of(bank),
        labels=labels_of(bank, test),
        patients=patients_of(bank, test),
        dataset=dataset,
        encoder=encoder,
    )
    return StudyRows(train, test, judged, labels_of(bank, train), patients_of(bank, train), truth)
