"""A table that describes a dataset: which columns are what, who the patients are, which split each row is in."""

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from adaptmed.data.labels import UNCERTAIN, Uncertain, bad_cell, class_values, label_values, why_no_label
from adaptmed.data.splits import SPLITS, assign_splits, overlapping_patients
from adaptmed.data.tables import Rejects, is_unnamed, read_table
from adaptmed.errors import InputError, sentence

ROLES = ("image", "text", "patient", "split", "mask", "question", "answer", "answer_type")
_WHERE_THERE = ("answer_type",)  # no column of blanks: the rows of tables without it stay what they were
_TEXT_COLUMNS = ("text", "question")
_IN_USE = {
    "row": "row ids",
    "image_index": "the numbers of distinct images in a bank",
    "text_index": "the numbers of distinct texts in a bank",
    "slices": "the number of slices of a volume in a bank",
}
_SPLIT_WORDS = {**{name: name for name in SPLITS}, "val": "validate", "valid": "validate", "dev": "validate"}


@dataclass(frozen=True, eq=False)
class Manifest:
    """A dataset, one row per image, text or pair.

    Attributes:
        path: The file it was read from.
        root: The folder that relative paths in ``image`` and ``mask`` start from.
        sha256: Of the file.
        frame: One line per usable row. ``row`` (row id), ``image``, ``text``, ``patient``, ``split``, ``mask``,
            ``question`` and ``answer`` are text, blank where there is nothing, and so is ``answer_type`` where the
            table has it; label columns are float64 (NaN: not labelled); the class column is int64, an index into
            ``classes`` (-1: not labelled).
        labels: Names of the label columns.
        class_column: Name of the class column.
        classes: Names of the classes, sorted; by value when all are whole numbers.
        taken: Column → what it is taken for.
        left_out: Column → why it is not.
        rejects: Rows that were left out: ``row`` and ``reason``.
        notes: What else should be known, in sentences.
        has_patients: Whether there is a ``patient`` column; without it every row is its own patient.
        text_column: The column that ``text`` was filled from: ``text`` or ``question``.
    """

    path: Path
    root: Path
    sha256: str
    frame: pd.DataFrame
    labels: tuple[str, ...]
    class_column: str | None
    classes: tuple[str, ...]
    taken: dict[str, str]
    left_out: dict[str, str]
    rejects: Rejects
    notes: tuple[str, ...]
    has_patients: bool
    text_column: str = "text"

    @classmethod
    def read(
        cls,
        path: Path | str,
        *,
        labels: Sequence[str] = (),
        class_column: str | None = None,
        uncertain: Uncertain | None = None,
        text_column: str | None = None,
    ) -> Self:
        """Read a csv, tsv, jsonl or parquet file.

        Columns are known by their names: ``image`` (path, relative to the file's folder), ``text``, ``patient``,
        ``split`` (train, validate, test), ``mask``, ``question``, ``answer``, ``answer_type`` (open, closed), ``id``.
        At least ``image``, ``text`` or ``question`` must be there. In a table with ``question`` and without ``text``
        the question is what a text encoder reads; rows without answer are kept. Without names in ``labels`` or
        ``class_column``, every other column that holds only 0, 1 and blank (true and false are 1 and 0; nan, na, null
        and none are blank) is a label column. Without ``split``, rows are assigned 70/10/20 % by patient; with it, rows
        whose split is blank cannot be used. Rows that cannot be used are listed in ``rejects``; whether the files exist
        is the business of ``check_manifest``.

        Args:
            path: The file.
            labels: Take exactly these as label columns; any finite numbers, blank: not labelled.
            class_column: Column of class names or numbers, blank: not labelled.
            uncertain: What -1 in a label column means: not labelled, 0 or 1. In a class column only ``ignore``.
            text_column: What a text encoder reads, ``text`` or ``question``; ``None`` is ``text`` where there is one.

        Raises:
            InputError: No such file, not such a table, an unknown column, an unknown split, a -1 without
                ``uncertain``, a label that is no number, or no usable row.
        """
        path = Path(path)
        if uncertain is not None and uncertain not in UNCERTAIN:
            expected = "ignore, zero or one"
            raise InputError(sentence("uncertain", expected=expected, got=repr(uncertain), fix="Choose one of them."))
        content = _content(path)
        cells, rejects = read_table(path, content)
        reading = _Reading(path, cells, rejects, _text_column(path, cells, text_column))
        reading.drop_unusable_rows()
        reading.take_roles()
        classes = reading.take_labels(tuple(labels), class_column, uncertain)
        names = tuple(name for name, role in reading.taken.items() if role == "label")
        reading.take_patients()
        reading.take_splits(names, class_column)
        return cls(
            path=path,
            root=path.parent,
            sha256=hashlib.sha256(content).hexdigest(),
            frame=pd.DataFrame(reading.columns),
            labels=names,
            class_column=class_column,
            classes=classes,
            taken=reading.taken,
            left_out=reading.left_out,
            rejects=reading.rejects,
            notes=tuple(reading.notes),
            has_patients="patient" in reading.taken,
            text_column=reading.text_column,
        )

    def overlap(self) -> dict[str, tuple[str, ...]]:
        """Return the patients that stand on several sides of the split, each with its splits."""
        return overlapping_patients(self.frame["patient"].tolist(), self.frame["split"].tolist())


@dataclass
class _Reading:
    """The table on its way to a manifest: cells of usable rows, the columns made of them, and what was decided."""

    path: Path
    cells: pd.DataFrame
    rejects: Rejects
    text_column: str
    columns: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def drop_unusable_rows(self) -> None:
        """Reject rows with neither image nor what is read as text, and those whose split is blank."""
        present = [name for name in ("image", self.text_column) if name in self.cells]
        if not present:
            got, fix = f"columns {list(self.cells)}", "Rename a column, or separate cells by commas."
            expected = "a column `image`, `text` or `question`"
            raise InputError(sentence(str(self.path), expected=expected, got=got, fix=fix))
        self._reject((self.cells[present] == "").all(axis=1), f"expected {' or '.join(present)}, but got blank")
        if "split" in self.cells:
            self._reject(self.cells["split"] == "", "expected train, validate or test in split, but got blank")
        self.rejects.sort(key=lambda reject: int(reject["row"]))
        if self.cells.empty:
            got = f"{len(self.rejects)} that cannot be used; row {self.rejects[0]['row']}: {self.rejects[0]['reason']}"
            raise InputError(
                sentence(str(self.path), expected="at least one usable row", got=got, fix="Mend the rows.")
            )

    def _reject(self, unusable: pd.Series, reason: str) -> None:
        self.rejects += [{"row": str(number), "reason": reason} for number in self.cells.index[unusable]]
        self.cells = self.cells[~unusable]

    def take_roles(self) -> None:
        """Take the row ids and the columns that are known by name."""
        self.columns["row"] = self._row_ids()
        for name in ROLES:
            if name in self.cells:
                self.taken[name] = name
            if name in self.cells or name not in _WHERE_THERE:
                self.columns[name] = list(self.cells[name]) if name in self.cells else [""] * len(self.cells)
        if self.text_column != "text":
            self.columns["text"] = self.columns[self.text_column]
            self.taken[self.text_column] += ", read as text"
            if self.taken.pop("text", None):
                self.left_out["text"] = f"the {self.text_column} is read as text"

    def _row_ids(self) -> list[str]:
        numbers = [str(number) for number in self.cells.index]
        if "id" not in self.cells:
            return numbers
        ids = self.cells["id"]
        if (ids == "").any():
            self.left_out["id"] = f"blank in row {ids.index[ids == ''][0]}; row numbers are used instead"
            return numbers
        repeated = ids.index[ids.duplicated(keep=False)]
        if len(repeated):
            self.left_out["id"] = (
                f"{len(repeated)} rows share ids, row {repeated[0]} first; row numbers are used instead"
            )
            return numbers
        self.taken["id"] = "row id"
        return list(ids)

    def take_labels(
        self, labels: tuple[str, ...], class_column: str | None, uncertain: Uncertain | None
    ) -> tuple[str, ...]:
        """Take the label columns and the class column; return the classes."""
        named = {*labels, *([class_column] if class_column else [])}
        free = [name for name in self.cells if name not in (*self.columns, *_IN_USE, "id")]
        for name in sorted(named - set(free)):
            got, fix = f"no such column among {free}", "Name one of those."
            if name in self.cells and name in _IN_USE:
                got, fix = f"a name used for {_IN_USE[name]}", "Rename the column."
            raise InputError(sentence(name, expected="a column that can hold labels", got=got, fix=fix))
        classes: tuple[str, ...] = ()
        for name in free:
            reason = self._why_left_out(name, named)
            if reason:
                self.left_out[name] = reason
            elif name == class_column:
                self.taken[name] = "class"
                self.columns[name], classes = class_values(self.cells[name], uncertain)
            else:
                self.taken[name] = "label"
                self.columns[name] = label_values(self.cells[name], uncertain)
        for name in _IN_USE:
            if name in self.cells:
                self.left_out[name] = f"the name is used for {_IN_USE[name]}; rename the column to use it"
        return classes

    def _why_left_out(self, name: str, named: Set[str]) -> str | None:
        if named:
            return None if name in named else "not among the labels that were named"
        return "it has no name" if is_unnamed(name) else why_no_label(self.cells[name])

    def take_patients(self) -> None:
        """Give every row without a patient one of its own, named by what the row holds and not by where it stands."""
        patients = list(self.cells["patient"]) if "patient" in self.cells else [""] * len(self.cells)
        alone = patients.count("")
        if "patient" not in self.cells:
            self.notes.append("No column `patient`: every row is its own patient.")
            images = [name for name in self.columns["image"] if name]
            if len(set(images)) < len(images):
                repeats = len(images) - len(set(images))
                self.notes.append(f"{repeats} rows repeat an image and may stand on another side of the split than it.")
        elif alone:
            self.notes.append(f"{alone} rows without patient: each is its own patient.")
        seen: dict[str, int] = {}
        for position, (image, text) in enumerate(zip(self.columns["image"], self.columns["text"], strict=True)):
            if patients[position] == "":
                content = hashlib.sha256(f"{image}\0{text}".encode()).hexdigest()[:16]
                seen[content] = seen.get(content, 0) + 1
                patients[position] = f"row-{content}-{seen[content]}"
        self.columns["patient"] = patients

    def take_splits(self, labels: tuple[str, ...], class_column: str | None) -> None:
        """Read the split of each row, or assign one."""
        if "split" not in self.cells:
            strata = self.columns[class_column] if class_column else None
            if labels:
                strata = np.column_stack([self.columns[name] for name in labels])
            self.columns["split"] = list(assign_splits(self.columns["patient"], strata))
            self.notes.append("No column `split`: assigned by patient, 70 % train, 10 % validate, 20 % test.")
            return
        cells = self.cells["split"]
        for cell in cells.unique():
            if cell.lower() not in _SPLIT_WORDS:
                raise bad_cell(cells, cell, "train, validate or test", "Mend the row.")
        renamed = sorted({cell for cell in cells if cell not in SPLITS})
        if renamed:
            self.taken["split"] = (
                f"split ({', '.join(f'{cell} read as {_SPLIT_WORDS[cell.lower()]}' for cell in renamed)})"
            )
        self.columns["split"] = [_SPLIT_WORDS[cell.lower()] for cell in cells]


def _text_column(path: Path, cells: pd.DataFrame, asked: str | None) -> str:
    """Return which column is read as text; ``text`` where there is none."""
    there = [name for name in _TEXT_COLUMNS if name in cells]
    if asked is None:
        return there[0] if there else "text"
    if asked not in there:
        expected = f"{' or '.join(there)}, a text column of {path}" if there else f"a table with one, not {path}"
        fix = "Choose one that is there, or leave --text-column out."
        raise InputError(sentence("text_column", expected=expected, got=repr(asked), fix=fix))
    return asked


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        got = "a folder" if isinstance(error, IsADirectoryError) else error.strerror or type(error).__name__
        fix = "Pass the path of the table itself."
        raise InputError(sentence(str(path), expected="a table file", got=got, fix=fix)) from error
