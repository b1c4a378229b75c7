"""Columns of a table, each taken for what its name or its cells say it is, or left out with the reason."""

import hashlib
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptmed.data.splits import SPLITS, assign_splits
from adaptmed.data.tables.labels import Uncertain, bad_cell, class_values, label_values, why_no_label
from adaptmed.data.tables.reading import Rejects, is_unnamed
from adaptmed.errors import InputError, sentence

ROLES = ("image", "text", "patient", "split", "mask", "question", "answer", "answer_type", "question_type")
_WHERE_THERE = (
    "answer_type",
    "question_type",
)  # no column of blanks: the rows of tables without it stay what they were
_TEXT_COLUMNS = ("text", "question")
_IN_USE = {
    "row": "row ids",
    "image_index": "the numbers of distinct images in a bank",
    "text_index": "the numbers of distinct texts in a bank",
    "slices": "the number of slices of a volume in a bank",
}
_SPLIT_WORDS = {**{name: name for name in SPLITS}, "val": "validate", "valid": "validate", "dev": "validate"}


@dataclass
class Columns:
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
        self.rejects.sort(key=lambda reject: (not reject["row"].isdigit(), reject["row"].zfill(12)))
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


def text_column_of(path: Path, cells: pd.DataFrame, asked: str | None) -> str:
    """Return which column is read as text; ``text`` where there is none."""
    there = [name for name in _TEXT_COLUMNS if name in cells]
    if asked is None:
        return there[0] if there else "text"
    if asked not in there:
        expected = f"{' or '.join(there)}, a text column of {path}" if there else f"a table with one, not {path}"
        fix = "Choose one that is there, or leave --text-column out."
        raise InputError(sentence("text_column", expected=expected, got=repr(asked), fix=fix))
    return asked
