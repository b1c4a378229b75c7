"""Files of a bank: hashes, writing whole or not at all, reading json or saying in words why not."""

import json
from pathlib import Path
from typing import Any

from adaptmed.errors import BankError, sentence

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
