"""Files of a bank: hashes, writing whole or not at all, reading json or saying in words why not."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptmed.errors import BankError, sentence

_FIX = "Delete it and run the same `adaptmed embed` again, or embed into another --out."


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well it is synced to disk and renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    yield temporary
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a json file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


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
