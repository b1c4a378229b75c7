"""A table that describes a dataset: which columns are what, who the patients are, which split each row is in."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd

from adaptmed.data.readers import list_dataset
from adaptmed.data.splits import overlapping_patients
from adaptmed.data.tables.columns import Columns, text_column_of
from adaptmed.data.tables.labels import UNCERTAIN, Uncertain
from adaptmed.data.tables.reading import Rejects, read_table
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole


@dataclass(frozen=True, eq=False)
class Manifest:
    """A dataset, one row per image, text or pair.

    Attributes:
        path: The file it was read from; of a dataset its folder.
        root: The folder that relative paths in ``image`` and ``mask`` start from.
        sha256: Of the file; of a dataset of its rows.
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
        content = _content(path)
        cells, rejects = read_table(path, content)
        source = _Source(path, path.parent, hashlib.sha256(content).hexdigest(), cells, rejects)
        return cls._of(source, _Asked(tuple(labels), class_column, uncertain, text_column))

    @classmethod
    def from_dataset(
        cls,
        name: str,
        folder: Path | str,
        *,
        labels: Sequence[str] = (),
        class_column: str | None = None,
        text_column: str | None = None,
        **options: object,
    ) -> Self:
        """List a public dataset as its authors lay it out, without copying an image.

        Args:
            name: Of the dataset; ``adaptmed.data.readers.READERS`` has them all.
            folder: Where it was unpacked.
            labels: As for ``read``.
            class_column: As for ``read``.
            text_column: As for ``read``.
            options: Of that dataset's reader, for example ``split="image"``.

        Raises:
            InputError: No such dataset, an option its reader does not have, or a folder that is not the dataset.

        Example:
            >>> Manifest.from_dataset("vqa-rad", "VQA_RAD", split="official")  # doctest: +SKIP
        """
        listing = list_dataset(name, Path(folder), options)
        digest = hashlib.sha256(listing.rows.to_csv(index=False).encode()).hexdigest()
        source = _Source(listing.folder, listing.folder, digest, listing.rows, list(listing.rejects), listing.notes)
        return cls._of(source, _Asked(tuple(labels), class_column, None, text_column))

    @classmethod
    def _of(cls, source: "_Source", asked: "_Asked") -> Self:
        if asked.uncertain is not None and asked.uncertain not in UNCERTAIN:
            expected = "ignore, zero or one"
            raise InputError(
                sentence("uncertain", expected=expected, got=repr(asked.uncertain), fix="Choose one of them.")
            )
        text_column = text_column_of(source.path, source.cells, asked.text_column)
        reading = Columns(source.path, source.cells, source.rejects, text_column)
        reading.drop_unusable_rows()
        reading.take_roles()
        classes = reading.take_labels(asked.labels, asked.class_column, asked.uncertain)
        names = tuple(name for name, role in reading.taken.items() if role == "label")
        reading.take_patients()
        reading.take_splits(names, asked.class_column)
        return cls(
            path=source.path,
            root=source.root,
            sha256=source.sha256,
            frame=pd.DataFrame(reading.columns),
            labels=names,
            class_column=asked.class_column,
            classes=classes,
            taken=reading.taken,
            left_out=reading.left_out,
            rejects=reading.rejects,
            notes=(*source.notes, *reading.notes),
            has_patients="patient" in reading.taken,
            text_column=reading.text_column,
        )

    def save(self, path: Path | str) -> Path:
        """Write the usable rows as a csv file that ``read`` and the command line read.

        Paths of images and masks are written relative to the file's folder. Row ids become the column ``id``, classes
        their names. Rejects are not written.

        Args:
            path: The file to write, whole or not at all; its suffix is ``.csv``.

        Returns:
            The path.

        Raises:
            InputError: Another suffix.
        """
        path = Path(path)
        if path.suffix.lower() != ".csv":
            fix = f"Name it {path.with_suffix('.csv').name}."
            raise InputError(sentence(str(path), expected="a .csv file", got=f"suffix {path.suffix!r}", fix=fix))
        frame = self.frame.rename(columns={"row": "id"})
        for name in ("image", "mask"):
            frame[name] = [_relative(self.root, file, path.parent) for file in frame[name]]
        if self.class_column is not None:
            names = (*self.classes, "")  # -1, not labelled, is the last one
            frame[self.class_column] = [names[number] for number in frame[self.class_column]]
        derived = [name for name in ("mask", "question", "answer") if (frame[name] == "").all()]
        derived += [] if self.has_patients else ["patient"]
        derived += ["text"] if self.text_column != "text" or (frame["text"] == "").all() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, frame.drop(columns=derived).to_csv(index=False, lineterminator="\n"))
        return path

    def overlap(self) -> dict[str, tuple[str, ...]]:
        """Return the patients that stand on several sides of the split, each with its splits."""
        return overlapping_patients(self.frame["patient"].tolist(), self.frame["split"].tolist())


@dataclass(frozen=True)
class _Source:
    """Text cells and where they came from."""

    path: Path
    root: Path
    sha256: str
    cells: pd.DataFrame
    rejects: Rejects
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """What the caller says about columns."""

    labels: tuple[str, ...]
    class_column: str | None
    uncertain: Uncertain | None
    text_column: str | None


def _relative(root: Path, file: str, folder: Path) -> str:
    return "" if file == "" else Path(os.path.relpath(root / file, folder)).as_posix()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        got = "a folder" if isinstance(error, IsADirectoryError) else error.strerror or type(error).__name__
        fix = "Pass the path of the table itself."
        raise InputError(sentence(str(path), expected="a table file", got=got, fix=fix)) from error
