"""Rows of a bank with an image, a text, a label or a mask; their labels, names and patients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy.typing import NDArray

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence

Reject = dict[str, Any]
"""``row``, ``split`` and ``reason`` of a row that is left out."""
Rows = Int[np.ndarray, " n"]


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


def training_rows(bank: Bank) -> NDArray[np.int64]:
    """Row numbers of the training pairs, or of the training images of a bank without texts.

    Raises:
        InputError: If there are fewer than two.
    """
    train = rows_with_sides(bank, "train", texts=bank.holds_texts)
    if len(train) < 2:
        expected = f"at least 2 {'image-text pairs' if bank.holds_texts else 'images'} in the split train"
        fix = "Check the manifest's split column and that both encoders were given to `adaptmed embed`."
        raise InputError(sentence(str(bank.folder), expected=expected, got=len(train), fix=fix))
    return train


def pairs_of(bank: Bank, split: str) -> NDArray[np.int64]:
    """Row numbers of a split that have both an image and a text."""
    rows = bank.subset(split)
    frame = bank.rows.iloc[rows]
    return rows[((frame["image_index"] >= 0) & (frame["text_index"] >= 0)).to_numpy()]


def rows_with_sides(bank: Bank, split: str, *, texts: bool) -> Int[np.ndarray, " n"]:
    """Row numbers of a split that have what a fusion reads.

    Args:
        bank: The rows.
        split: Which split.
        texts: Whether it reads texts beside images.
    """
    return pairs_of(bank, split) if texts else with_image(bank, split)


def with_mask(bank: Bank, split: str) -> Int[np.ndarray, " n"]:
    """Row numbers of a split that have an image and name a mask, usable or not."""
    rows = with_image(bank, split)
    return rows[bank.rows["mask"].iloc[rows].astype(str).to_numpy() != ""] if "mask" in bank.rows else rows[:0]


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
