"""A table file as text cells: csv, tsv, jsonl and parquet, each fault in words."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from adaptmed.errors import InputError, sentence

Rejects = list[dict[str, str]]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_UNNAMED = "(column {})"
_PARQUET = (".parquet", ".pq")
_LONGEST_CELL = 2**31 - 1


def read_table(path: Path, content: bytes) -> tuple[pd.DataFrame, Rejects]:
    """Read a table whose cells are all text.

    Spaces around column names and cells are dropped; a missing value is a blank cell. Numbers become their shortest
    text (``1.0`` of a jsonl or parquet file becomes ``1``), truth values ``1`` and ``0``.

    Args:
        path: Decides the format by its suffix and stands in the messages.
        content: The file's bytes.

    Returns:
        The cells, indexed by the number of the row in the file from 1, and the rows that cannot be read
        (``row``, ``reason``). Blank lines are not counted.

    Raises:
        InputError: Unknown suffix, text that is not UTF-8, broken quotes, a damaged file, column names that repeat, or
            no row.
    """
    suffix = path.suffix.lower()
    rejects: Rejects = []
    if suffix in _DELIMITERS:
        columns, lines = _delimited(path, _text(path, content), _DELIMITERS[suffix], rejects)
    elif suffix in _JSON_LINES:
        columns, lines = _json_lines(_text(path, content), rejects)
    elif suffix in _PARQUET:
        columns, lines = _parquet(path, content)
    else:
        fix = "Save the table as one of these."
        expected = "a .csv, .tsv, .jsonl or .parquet file"
        raise InputError(sentence(str(path), expected=expected, got=f"suffix {suffix!r}", fix=fix))
    columns = [name.strip() or _UNNAMED.format(number) for number, name in enumerate(columns, start=1)]
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise InputError(
            sentence(str(path), expected="column names that differ", got=f"{repeated} twice", fix="Rename.")
        )
    if not lines and not rejects:
        raise InputError(sentence(str(path), expected="at least one row", got="none", fix="Add rows to the table."))
    return pd.DataFrame(list(lines.values()), index=list(lines), columns=columns, dtype=object), rejects


def is_unnamed(column: str) -> bool:
    """Whether ``read_table`` gave a column its name, because the file does not."""
    return re.fullmatch(r"\(column \d+\)", column) is not None


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise InputError(sentence(str(path), expected="UTF-8 text", got=got, fix="Save it as UTF-8.")) from error


def _delimited(path: Path, text: str, delimiter: str, rejects: Rejects) -> tuple[list[str], dict[int, list[str]]]:
    columns, records = _records(path, text, delimiter)
    lines = {}
    for number, record in enumerate(records, start=1):
        if len(record) == len(columns):
            lines[number] = [cell.strip() for cell in record]
        else:
            reason = f"expected {len(columns)} cells as in the header, but got {len(record)}"
            rejects.append({"row": str(number), "reason": reason})
    return columns, lines


def _records(path: Path, text: str, delimiter: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines that are not blank; cells may be of any length."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    longest = csv.field_size_limit(_LONGEST_CELL)  # of the whole process
    try:
        return next(reader, []), [record for record in reader if record]
    except csv.Error as error:
        got, fix = f"{error} near line {reader.line_num}", "Close every quote, and double the quotes inside cells."
        raise InputError(sentence(str(path), expected="cells with balanced quotes", got=got, fix=fix)) from error
    finally:
        csv.field_size_limit(longest)


def _json_lines(text: str, rejects: Rejects) -> tuple[list[str], dict[int, list[str]]]:
    records: dict[int, dict[str, object]] = {}
    for number, line in enumerate((line for line in text.split("\n") if line.strip()), start=1):
        try:
            records[number] = _json_object(line)
        except (ValueError, RecursionError) as error:
            rejects.append({"row": str(number), "reason": f"expected a JSON object, but got {error}"})
    columns = list(dict.fromkeys(name for record in records.values() for name in record))
    return columns, {number: [_cell(record.get(name)) for name in columns] for number, record in records.items()}


def _json_object(line: str) -> dict[str, object]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}")
    json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
    return record


def _parquet(path: Path, content: bytes) -> tuple[list[str], dict[int, list[str]]]:
    try:
        table = pa.parquet.read_table(pa.BufferReader(content))
        cells = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        got = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(
            sentence(str(path), expected="a parquet file", got=got, fix="Write the file again.")
        ) from error
    return table.column_names, {number: list(line) for number, line in enumerate(_rows(cells), start=1)}


def _rows(columns: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    return zip(*columns, strict=True)


def _cell(value: object) -> str:
    """Return a value as the text that a csv file would hold."""
    match value:
        case None:
            return ""
        case bool():
            return str(int(value))
        case float() if value != value:
            return ""
        case float() if value.is_integer():
            return str(int(value))
        case list() | dict():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value).strip()
