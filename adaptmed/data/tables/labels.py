"""Columns of text cells as labels: numbers or classes, with a raw -1 only where its meaning is said."""

import math
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptmed.errors import InputError, sentence

Uncertain = Literal["ignore", "zero", "one"]
UNCERTAIN = {"ignore": math.nan, "zero": 0.0, "one": 1.0}
_TRUTH = {"true": 1.0, "false": 0.0}
_NOTHING = {"", "nan", "na", "null", "none"}


def why_no_label(cells: pd.Series) -> str | None:
    """Return why a column is not taken as a label column unasked; ``None`` when it holds only 0, 1, -1 and blank.

    As in ``label_values``, true and false are 1 and 0, and nan, na, null and none are blank.
    """
    values = {cell: _label(cell) for cell in cells.unique() if not _is_blank(cell)}
    other = next((cell for cell, number in values.items() if number not in (0, 1, -1)), None)
    if other is not None:
        return f"not only 0, 1 and blank, see row {_first_row(cells, other)}"
    return None if values else "blank in every row"


def label_values(cells: pd.Series, uncertain: Uncertain | None) -> NDArray[np.float64]:
    """Return a label column as numbers, NaN where the cell is blank.

    In upper or lower case, true and false are 1 and 0, and nan, na, null and none are blank.

    Args:
        cells: Text, indexed by row number; its name is the column's.
        uncertain: What -1 means.

    Raises:
        InputError: A cell is no finite number, or -1 without ``uncertain``.
    """
    value: dict[str, float] = {}
    for cell in cells.unique():
        number = math.nan if _is_blank(cell) else _label(cell)
        if number is None:
            fix = "For names of classes use --class-column."
            raise bad_cell(cells, cell, "finite numbers or blank", fix)
        if number == -1 and uncertain is None:
            fix = "Say what -1 means: --uncertain ignore|zero|one (in Python uncertain='ignore')."
            raise bad_cell(cells, cell, "0, 1 or blank", fix)
        value[cell] = UNCERTAIN[uncertain] if uncertain and number == -1 else number
    return np.array([value[cell] for cell in cells], dtype=np.float64)


def class_values(cells: pd.Series, uncertain: Uncertain | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return a class column as indices into its sorted classes, -1 where the cell is blank, and the classes.

    Args:
        cells: Text, indexed by row number; its name is the column's.
        uncertain: ``ignore`` reads a cell of -1 as not labelled.

    Raises:
        InputError: Fewer than two classes, or -1 without ``ignore``.
    """
    minus = next((cell for cell in cells.unique() if _number(cell) == -1), None)
    if minus is not None and uncertain != "ignore":
        fix = "Say that -1 means not labelled: --uncertain ignore (zero and one have no meaning for classes)."
        raise bad_cell(cells, minus, "classes or blank", fix)
    classes = _sorted_classes(cell for cell in cells.unique() if cell not in ("", minus))
    if len(classes) < 2:
        fix = "Choose another --class-column."
        raise InputError(sentence(f"column {cells.name}", expected="at least two classes", got=len(classes), fix=fix))
    index = {cell: k for k, cell in enumerate(classes)}
    return np.array([index.get(cell, -1) for cell in cells], dtype=np.int64), classes


def bad_cell(cells: pd.Series, cell: str, expected: str, fix: str) -> InputError:
    """Build the error for a cell, named by its column and first row."""
    got = f"{cell[:40]!r} in row {_first_row(cells, cell)}"
    return InputError(sentence(f"column {cells.name}", expected=expected, got=got, fix=fix))


def _first_row(cells: pd.Series, cell: str) -> int:
    return int(cells.index[cells == cell][0])


def _is_blank(cell: str) -> bool:
    return cell.lower() in _NOTHING


def _label(cell: str) -> float | None:
    return _TRUTH.get(cell.lower(), _number(cell))


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sort by value when all are whole numbers, else as text."""
    names = sorted(names)
    whole = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    return tuple(sorted(names, key=int) if whole else names)
