"""Miniatures of public datasets: tiny folders in the true layout, traps included, with drawn pictures."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

MINIATURES = {
    "decathlon": "adaptmed.data.miniatures.decathlon:write",
    "medpix2": "adaptmed.data.miniatures.medpix2:write",
    "vqa-rad": "adaptmed.data.miniatures.vqa_rad:write",
}
"""Name of a dataset → what writes its miniature, imported when it is asked for."""


def write_miniature(name: str, folder: Path | str) -> Path:
    """Write the miniature of a dataset, for a try of its reader and its recipe without a download.

    Args:
        name: Of the dataset, as ``Manifest.from_dataset`` knows it.
        folder: To write into.

    Returns:
        The folder.
    """
    module, _, found = MINIATURES[name].partition(":")
    write: Callable[[Path], None] = getattr(import_module(module), found)
    write(Path(folder))
    return Path(folder)
