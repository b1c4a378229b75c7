"""Which rows of a bank are whole pairs, and whom a fine-tuning on pairs reads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from adaptmed.bank import Bank
from adaptmed.data.splits import fraction_rows
from adaptmed.tasks.division import Division, require_apart
from adaptmed.tasks.labelled import patients_of, with_image
from adaptmed.tasks.pairs.settings import PairChoices

Reject = dict[str, Any]
Rows = Int[np.ndarray, " n"]


def pair_rows(
    bank: Bank, rows: Rows, reasons: Mapping[str, Bool[np.ndarray, " n"]]
) -> tuple[Int[np.ndarray, " kept"], list[Reject]]:
    """Keep the rows that have an image, a text and nothing against them, and list the others.

    Args:
        bank: The rows.
        rows: Row numbers.
        reasons: What is against a row, for each of ``rows``.

    Returns:
        The row numbers that are kept, and ``row``, ``split`` and ``reason`` of each other one.
    """
    frame = bank.rows.iloc[rows]
    lacks = {"no image": (frame["image_index"] < 0).to_numpy(), **reasons}
    lacks["no text"] = (frame["text_index"] < 0).to_numpy() & ~np.any([*reasons.values(), lacks["no image"]], axis=0)
    left_out = np.any(list(lacks.values()), axis=0)
    rejects = [
        {
            "row": str(frame["row"].iloc[place]),
            "split": str(frame["split"].iloc[place]),
            "reason": ", ".join(reason for reason, found in lacks.items() if found[place]),
        }
        for place in np.flatnonzero(left_out)
    ]
    return rows[~left_out], rejects


def divide_pairs(
    bank: Bank,
    splits: tuple[Rows, Int[np.ndarray, " v"], Int[np.ndarray, " m"]],
    strata: Shaped[np.ndarray, "n *label"],
    choices: PairChoices,
    *,
    before: frozenset[str] | None,
) -> Division:
    """Take the fraction's patients from the train split as a study does, and everybody of the other two.

    Args:
        bank: The rows.
        splits: Usable row numbers of train, validate and test.
        strata: Labels, classes or answers of the rows of train.
        choices: With the fraction and its seed.
        before: Digests of the patients that were seen before; ``None`` when nobody knows.

    Raises:
        OverlapError: A patient stands in train and validate, or a test patient was seen.
    """
    train, validate, test = splits
    judged = with_image(bank, "test")
    overlap = require_apart(bank, train, validate, judged, before=before, allow_overlap=choices.allow_overlap)
    if len(train):
        train = train[fraction_rows(patients_of(bank, train), strata, choices.fraction, seed=choices.seed)]
    return Division.of(bank, train, validate, test, before=before, overlap=overlap)
