"""Rows of a dataset as its reader found them, and the checks that every reader makes of a folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from adaptmed.errors import InputError, sentence

_NAMED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """A dataset as rows of a manifest.

    Attributes:
        folder: Where its relative paths start.
        rows: Text cells under the names that manifests know, indexed from 1.
        notes: What is known of the dataset and must be said of results on it, in sentences.
        rejects: Entries that cannot be rows: ``row`` and ``reason``.
    """

    folder: Path
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()
    rejects: tuple[dict[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        folder: Path,
        rows: Iterable[Mapping[str, str]],
        *,
        notes: Iterable[str] = (),
        rejects: Sequence[dict[str, str]] = (),
    ) -> "Listing":
        """Put rows together; a cell that a row lacks is blank."""
        frame = pd.DataFrame(list(rows), dtype=object).fillna("")
        frame.index = pd.RangeIndex(1, len(frame) + 1)
        return cls(folder=folder, rows=frame, notes=tuple(notes), rejects=tuple(rejects))


def require_files(folder: Path, names: Sequence[str], *, dataset: str, fix: str) -> None:
    """Refuse a folder that lacks a file or folder of the dataset.

    Args:
        folder: Where the dataset was unpacked.
        names: What must be there.
        dataset: Its name, for the message.
        fix: The download step that brings them.

    Raises:
        InputError: One of them is not there.
    """
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        expected = f"the dataset {dataset} with {', '.join(names)}"
        raise InputError(sentence(str(folder), expected=expected, got=f"no {', '.join(missing)}", fix=fix))


def require_pictures(folder: Path, names: Iterable[str], *, fix: str) -> None:
    """Refuse a folder that lacks pictures which its annotations name; a download was cut short.

    Raises:
        InputError: How many are missing, and the first of them.
    """
    listed = sorted(set(names))
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        got = f"{len(missing)} missing: {', '.join(missing[:_NAMED])}{', ...' if len(missing) > _NAMED else ''}"
        raise InputError(sentence(str(folder), expected=f"all {len(listed)} files it lists", got=got, fix=fix))


def read_json(path: Path) -> list[Any]:
    """Read a json file that holds a list.

    Raises:
        InputError: It is damaged, or holds something else.
    """
    fix = "Download it again."
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(sentence(str(path), expected="a json file", got=f"{error}", fix=fix)) from error
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        got = f"a {type(found).__name__}" if not isinstance(found, list) else "other entries"
        raise InputError(sentence(str(path), expected="a list of objects", got=got, fix=fix))
    return found


def require_choice(name: str, value: object, choices: object) -> None:
    """Refuse a value that is none of a ``Literal``'s.

    Raises:
        InputError: It is another one.
    """
    known = get_args(choices)
    if value not in known:
        expected = f"one of {', '.join(map(str, known))}"
        raise InputError(sentence(name, expected=expected, got=repr(value), fix="Choose one of them."))
