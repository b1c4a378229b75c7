"""A task of the Medical Segmentation Decathlon: volumes and their labels, as its archive unpacks.

Antonelli et al.: The Medical Segmentation Decathlon, Nature Communications 2022. CC BY-SA 4.0, medicaldecathlon.com.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptmed.data.readers.listing import Listing, require_files, require_pictures
from adaptmed.data.splits import assign_splits
from adaptmed.errors import InputError, sentence

IMAGES, LABELS, FACTS = "imagesTr", "labelsTr", "dataset.json"
_FIX = "Unpack the archive of the task again, for example Task04_Hippocampus.tar."
_SHARES = (0.64, 0.16, 0.2)
_SUFFIX = ".nii.gz"


def read(folder: Path) -> Listing:
    """List the labelled volumes of one task.

    The labels of the published test volumes are not public, so that the labelled ones are split here: 64 % train, 16 %
    validate, 20 % test, by the names of the files. ``dataset.json`` is read where there is one: then every pair it
    names must be there, and its names of labels are said in ``notes``. Files that macOS leaves behind (``._*``) are
    passed over.

    Args:
        folder: Of the task, with ``imagesTr`` and ``labelsTr``.

    Raises:
        InputError: The folder lacks a part, a file is missing, no volume has labels, or volumes have several channels.
    """
    require_files(folder, (IMAGES, LABELS), dataset="decathlon", fix=_FIX)
    images, labels = (_volumes(folder / part) for part in (IMAGES, LABELS))
    facts = _facts(folder / FACTS)
    require_pictures(folder, _listed(facts), fix=_FIX)
    both = sorted(images & labels)
    if not both:
        got = f"{len(images)} images and {len(labels)} labels without a name in common"
        raise InputError(sentence(str(folder), expected="volumes with labels", got=got, fix=_FIX))
    rejects = [
        {"row": name, "reason": f"expected it in {IMAGES} and {LABELS}, but got one of the two"}
        for name in sorted(images ^ labels)
    ]
    sides = assign_splits(both, shares=_SHARES)
    rows = [_row(name, side) for name, side in zip(both, sides, strict=True)]
    return Listing.of(folder, rows, notes=_notes(facts), rejects=rejects)


def _volumes(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(f"*{_SUFFIX}") if not path.name.startswith(".")}


def _row(name: str, side: str) -> dict[str, str]:
    case = name.removesuffix(_SUFFIX)
    return {"id": case, "image": f"{IMAGES}/{name}", "mask": f"{LABELS}/{name}", "patient": case, "split": side}


def _facts(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8-sig"))
        channels, labels = found["modality"], found["labels"]
        named = [(pair["image"], pair["label"]) for pair in found["training"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        expected, got = "modality, labels and training pairs", f"{type(error).__name__}: {error}"
        raise InputError(sentence(str(path), expected=expected, got=got, fix=_FIX)) from error
    if len(channels) > 1:
        got, fix = f"{len(channels)}: {', '.join(map(str, channels.values()))}", "Write one of them as its own volumes."
        raise InputError(sentence(str(path), expected="volumes of one channel", got=got, fix=fix))
    return {"labels": labels, "named": named}


def _listed(facts: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("./") for pair in facts.get("named", ()) for name in pair]


def _notes(facts: Mapping[str, Any]) -> list[str]:
    said = [
        "Split by volume, 64 % train, 16 % validate, 20 % test: labels of the published test volumes are not public."
    ]
    if facts:
        names = ", ".join(f"{value}={name}" for value, name in facts["labels"].items())
        return [*said, f"Labels: {names}."]
    return [*said, f"No {FACTS}: the names of the labels are not known, and volumes may be missing."]
