"""Files of a bank: hashes, writing whole or not at all, reading json or saying in words why not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptmed.errors import BankError, sentence

if TYPE_CHECKING:
    import pandas as pd

_FIX = "Delete it and run the same `adaptmed embed` again, or embed into another --out."


def read_json(path: Path, *, fix: str = _FIX) -> dict[str, Any]:
    """Read a json file that holds one object.

    Args:
        path: The file.
        fix: The way out, when that is not to write the file again.

    Raises:
        BankError: It is missing, cut, or holds something else.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise other_form(path, "a JSON object", error, fix=fix) from error
    if not isinstance(facts, dict):
        raise other_form(path, "a JSON object", type(facts).__name__, fix=fix)
    return facts


def other_form(path: Path, expected: str, got: object, *, fix: str = _FIX) -> BankError:
    """Build the error for a json file that is not what it should be; ``got`` may be the exception that says so."""
    if isinstance(got, Exception):
        got = f"{type(got).__name__}: {got}"
    return BankError(sentence(str(path), expected=expected, got=got, fix=fix))


def read_rows(path: Path, *, fix: str) -> "pd.DataFrame":
    """Read the rows of a bank.

    Args:
        path: The parquet file.
        fix: The way out.

    Raises:
        BankError: It is missing or cut.
    """
    import pandas as pd  # half of the time of `from adaptmed import Adaptor`, which opens no bank
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        got = f"{type(error).__name__}: {str(error)[:200]}"
        raise BankError(sentence(str(path), expected="the rows of the bank", got=got, fix=fix)) from error


def require_shards(sizes: Mapping[Path, int], *, fix: str) -> None:
    """Check that every shard is there in its whole length.

    Args:
        sizes: In bytes, by path.
        fix: The way out.

    Raises:
        BankError: One is not.
    """
    for path, wanted in sizes.items():
        size = path.stat().st_size if path.exists() else 0
        if size != wanted:
            expected, got = f"a shard of {wanted} bytes", f"{size} bytes"
            raise BankError(sentence(str(path), expected=expected, got=got, fix=fix))
