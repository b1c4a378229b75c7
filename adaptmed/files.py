"""Files written whole or not at all, and the hashes of files: the one writer of the package."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_UNFINISHED = ".part-"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; when the block ends well it is renamed to ``path``.

    The bytes are on the disk before the name is, so that no power cut leaves an empty file under it. The temporary name
    keeps the suffix, by which libraries choose a format. A process that is killed leaves the temporary file behind; the
    next one writes over it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_UNFINISHED + path.name)
    yield temporary
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def link_whole(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links; written whole, neither ever changes."""
    if target.exists() and target.samefile(source):
        return
    with written_whole(target) as temporary:
        temporary.unlink(missing_ok=True)  # a killed process may have left a link to the source itself
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


def is_unfinished(path: Path) -> bool:
    """Whether a path is what a killed process left of a file that it was writing."""
    return path.name.startswith(_UNFINISHED)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, facts: object, *, indent: int = 2) -> None:
    """Write a json file whole or not at all; NaN and infinity are refused with ``ValueError``."""
    write_text_whole(path, json.dumps(facts, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, metadata: dict[str, Any] | None = None) -> None:
    """Write a safetensors file whole or not at all, from any device."""
    from safetensors.torch import save_file

    with written_whole(path) as temporary:
        copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(copies, temporary, metadata=metadata)
