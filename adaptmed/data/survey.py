"""Opens every image and mask that a manifest names, and sorts the bad ones out with their reasons."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from adaptmed.data.images import read_image
from adaptmed.data.manifest import Manifest
from adaptmed.data.mask_labels import values_in
from adaptmed.data.masks import read_mask, refuse_other_geometry
from adaptmed.data.tables.reading import Rejects
from adaptmed.data.volumes.reading import Volume, is_volume, read_volume
from adaptmed.errors import InputError

Progress = Callable[[int, int], None]
_NO_IMAGE = "expected an image that the mask lies on, but got blank"


@dataclass
class Survey:
    """What was found in the files of a manifest.

    Attributes:
        missing: Rows whose image file does not exist: ``row``, ``image``, ``reason``.
        unreadable: Rows whose image file cannot be read, in the same form.
        bad_masks: Rows whose mask is missing, cannot be read, lies elsewhere than the image or holds other values than
            it may, or has no image: ``row``, ``mask``, ``reason``. Masks of bad images are not looked at.
        mask_values: Row id → the values in its mask, for every good mask that was opened.
        images_read: Distinct image files that were opened.
        volumes: How many of them are volumes that could be read.
        pictures: How many of them are pictures that could be read.
    """

    missing: Rejects = field(default_factory=list)
    unreadable: Rejects = field(default_factory=list)
    bad_masks: Rejects = field(default_factory=list)
    mask_values: dict[str, tuple[int, ...]] = field(default_factory=dict)
    images_read: int = 0
    volumes: int = 0
    pictures: int = 0


@dataclass(frozen=True)
class _Seen:
    """One image and its masks: what is wrong with it, whether it exists, per mask its values or what is wrong."""

    fault: str | None
    exists: bool
    masks: dict[str, tuple[int, ...] | str | None]
    volume: bool = False


def survey_files(
    manifest: Manifest,
    *,
    read: bool = True,
    mask_labels: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Open every distinct image, and beside it its masks. A bad file costs its own rows and no others.

    Args:
        manifest: Its ``image`` may name pictures, NIfTI files and folders of DICOM series.
        read: Open files; without it only missing ones are found.
        mask_labels: Value → name of what may stand in masks; ``None``: anything.
        progress: Called with the images that are done and all images.
    """
    frame = manifest.frame
    rows: dict[str, list[tuple[str, str]]] = {}
    survey = Survey()
    for row, image, mask in zip(frame["row"], frame["image"], frame["mask"], strict=True):
        if image:
            rows.setdefault(image, []).append((row, mask))
        elif mask:
            survey.bad_masks.append({"row": row, "mask": mask, "reason": _NO_IMAGE})
    look = partial(_look, manifest.root, read=read, labels=mask_labels)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for done, (image, seen) in enumerate(zip(rows, pool.map(look, rows.items()), strict=True), start=1):
            _add(survey, image, rows[image], seen)
            survey.images_read += read and seen.exists
            survey.volumes += seen.volume
            survey.pictures += read and seen.fault is None and not seen.volume
            if progress:
                progress(done, len(rows))
    return survey


def _add(survey: Survey, image: str, rows: list[tuple[str, str]], seen: _Seen) -> None:
    """Sort the rows of one image by what was seen."""
    if seen.fault is not None:
        rejects = survey.unreadable if seen.exists else survey.missing
        rejects += [{"row": row, "image": image, "reason": seen.fault} for row, _ in rows]
        return
    for row, mask in rows:
        found = seen.masks.get(mask)
        if isinstance(found, str):
            survey.bad_masks.append({"row": row, "mask": mask, "reason": found})
        elif found is not None:
            survey.mask_values[row] = found


def _look(
    root: Path, item: tuple[str, list[tuple[str, str]]], *, read: bool, labels: Mapping[int, str] | None
) -> _Seen:
    """Open one image and its masks."""
    name, rows = item
    path, masks = root / name, dict.fromkeys(mask for _, mask in rows if mask)
    if absent := _absent(path):
        return _Seen(absent, False, {})
    if not read:
        return _Seen(None, True, {mask: _absent(root / mask) for mask in masks})
    try:
        image = read_volume(path) if is_volume(path) else read_image(path)
    except InputError as error:
        return _Seen(_reason(error, path), True, {})
    found: dict[str, tuple[int, ...] | str | None] = {
        mask: _look_at_mask(root / mask, image, path.name, labels) for mask in masks
    }
    return _Seen(None, True, found, volume=isinstance(image, Volume))


def _look_at_mask(
    path: Path, image: NDArray[Any] | Volume, name: str, labels: Mapping[int, str] | None
) -> tuple[int, ...] | str:
    """Return the values in a mask, or what is wrong with it."""
    if absent := _absent(path):
        return absent
    try:
        mask = read_mask(path, labels)
        refuse_other_geometry(mask, image, name)
    except InputError as error:
        return _reason(error, path)
    return values_in(mask.values)


def _absent(path: Path) -> str | None:
    """Return why there is nothing at ``path``; ``None`` when there is."""
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return None


def _reason(error: InputError, path: Path) -> str:
    return str(error).removeprefix(f"`{path}`: ")
