"""Readers of public datasets: each lists the files of one official layout as rows of a manifest."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from adaptmed.data.readers.listing import Listing
from adaptmed.errors import InputError, sentence

READERS = {
    "decathlon": "adaptmed.data.readers.decathlon:read",
    "medpix2": "adaptmed.data.readers.medpix2:read",
    "vqa-rad": "adaptmed.data.readers.vqa_rad:read",
}
"""Name of a dataset → its reader, imported when it is asked for."""


def list_dataset(name: str, folder: Path, options: Mapping[str, object]) -> Listing:
    """List a dataset with its reader.

    Args:
        name: Of the dataset.
        folder: Where it was unpacked.
        options: Of the reader.

    Raises:
        InputError: No such dataset, an option the reader does not have, or a folder that is not the dataset.
    """
    if name not in READERS:
        expected = f"one of {', '.join(READERS)}"
        raise InputError(sentence("dataset", expected=expected, got=repr(name), fix=_nearest(name, READERS)))
    module, _, found = READERS[name].partition(":")
    read: Callable[..., Listing] = getattr(import_module(module), found)
    known = [parameter for parameter in inspect.signature(read).parameters if parameter != "folder"]
    for option in options:
        if option not in known:
            expected = f"an option of the dataset {name} ({', '.join(known)})"
            raise InputError(sentence(option, expected=expected, got="no such option", fix=_nearest(option, known)))
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        fix = "Pass the folder that the dataset was unpacked to."
        raise InputError(sentence(str(folder), expected=f"a folder of the dataset {name}", got=got, fix=fix))
    return read(folder, **options)


def _nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else "Check the spelling."
