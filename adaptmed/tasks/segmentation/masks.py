"""The masks of a bank's rows: every file opened once, checked against its image, laid out as the decoder sees it."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from adaptmed.bank import Bank, prefetched
from adaptmed.bank.source_files import ManifestFiles
from adaptmed.cohort.planes import depth_of
from adaptmed.cohort.rows import with_mask
from adaptmed.data.fitting import mask_to_input
from adaptmed.data.images import read_image
from adaptmed.data.mask_labels import BACKGROUND, labels_of, refuse_other_values, values_in
from adaptmed.data.masks import Mask, read_mask, refuse_other_geometry
from adaptmed.data.volumes.grids import planes_in
from adaptmed.data.volumes.reading import Volume, read_volume
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole
from adaptmed.types import Preprocessing

FACTS, LAID, REJECTS = "masks.json", "masks.npy", "rejects.jsonl"
NOT_LABELLED = -1
_NONE = 65535  # as stored: padding
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Masks:
    """The usable masks of a bank.

    Attributes:
        bank: The rows.
        files: Where images and masks stand.
        labels: Value in the files → name, 0 (background) first; the classes of a decoder in this order.
        values: Row number → the values in its mask, for every usable mask.
        rejects: Rows whose mask cannot be used: ``row``, ``mask``, ``reason``.
        shown: How images and masks are laid and at which size.
        laid: Masks laid so, one plane per picture or slice, memory-mapped; 65535 is padding.
        first: Row number → its first plane, for rows that are laid out.
    """

    bank: Bank
    files: ManifestFiles
    labels: Mapping[int, str]
    values: Mapping[int, tuple[int, ...]]
    rejects: Sequence[Mapping[str, str]]
    shown: Preprocessing
    laid: NDArray[np.uint16]
    first: Mapping[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the foreground classes, class 1 first."""
        return tuple(name for value, name in self.labels.items() if value)

    def rows(self, split: str) -> Int[np.ndarray, " n"]:
        """Row numbers of a split that have a usable mask."""
        rows = self.bank.subset(split)
        return rows[[row in self.values for row in rows.tolist()]]

    def present(self, rows: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "n label"]:
        """Which of the foreground classes stand in the masks of rows, as drawn."""
        values = [value for value in self.labels if value]
        found = [[value in self.values[row] for value in values] for row in rows.tolist()]
        return np.array(found, dtype=bool).reshape(len(rows), len(values))

    def planes(self, row: int, offsets: Int[np.ndarray, " n"]) -> Int[Tensor, "n height width_px"]:
        """Class numbers of a row's planes (slices, or the one picture), -1 at padding."""
        stored = self.laid[self.first[row] + offsets]
        return torch.from_numpy(self._classes[stored].astype(np.int64))

    def source(self, row: int) -> Mask:
        """Read a mask again, as it was drawn."""
        return _read(self.files, self.bank, row, dict(self.labels))

    @cached_property
    def _classes(self) -> NDArray[np.int16]:
        table = np.full(_NONE + 1, NOT_LABELLED, dtype=np.int16)
        table[list(self.labels)] = np.arange(len(self.labels))
        return table


@dataclass(frozen=True)
class _Asked:
    """What ``find_masks`` was asked for."""

    bank: Bank
    labels: Mapping[int, str] | None
    splits: Sequence[str]
    shown: Preprocessing

    def key(self) -> dict[str, Any]:
        """What another call must ask for to take up what this one finds."""
        named = None if self.labels is None else {str(value): name for value, name in self.labels.items()}
        facts: dict[str, Any] = {"rows": self.bank.info.rows_file_sha256, "inputs": asdict(self.shown)}
        facts |= {"plane": self.bank.images.plane, "labels": named, "splits": list(self.splits)}
        return json.loads(json.dumps(facts))


def find_masks(
    bank: Bank,
    folder: Path,
    *,
    labels: Mapping[int, str] | None = None,
    splits: Sequence[str] = ("train", "validate"),
    shown: Preprocessing | None = None,
    progress: Progress = lambda *_: None,
) -> Masks:
    """Open the mask of every row that has one, and lay out those that training reads.

    A mask that cannot be used costs its own row and no other: it is listed in ``rejects.jsonl``. What was found is kept
    in the folder and taken up by the next call with the same bank and labels.

    Args:
        bank: With image Tokens; its manifest and the files that this names must still be there.
        folder: Where ``masks.npy``, ``masks.json`` and ``rejects.jsonl`` are kept: about two bytes per pixel of input.
        labels: Value → name of what may stand in masks; ``None`` takes every value in the masks of ``train``.
        splits: Those whose masks are laid out; none at all to judge a decoder that was trained elsewhere.
        shown: How the decoder sees the images; ``None``: as the encoder does.
        progress: Called with what is being done, masks done and all masks.

    Raises:
        InputError: No row has a mask, or no mask of ``train`` is usable or holds anything but background.
    """
    files = ManifestFiles.of(bank)
    rows = _rows_with_masks(bank)
    asked = _Asked(bank, labels, splits, shown or bank.images.preprocessing)
    key = asked.key()
    facts = _kept(folder, key)
    if facts is None:
        (folder / FACTS).unlink(missing_ok=True)  # it speaks of planes that are written over now
        facts = {"key": key} | _lay_out(asked, files, rows, folder, progress)
        write_text_whole(folder / FACTS, json.dumps(facts) + "\n")
    values = {int(row): tuple(found) for row, found in facts["values"].items()}
    train = [values[row] for row in bank.subset("train").tolist() if row in values]
    if splits:
        _require_some(bank, train, facts["rejects"])
    known = labels_of(value for found in train for value in found) if labels is None else {0: BACKGROUND, **labels}
    if labels is not None and splits:
        labels_of(value for found in train for value in found)
    values, others = _within(bank, values, known)
    rejects = [*facts["rejects"], *others]
    write_text_whole(folder / REJECTS, "".join(json.dumps(reject) + "\n" for reject in rejects))
    laid = np.load(folder / LAID, mmap_mode="r")
    first = {int(row): number for row, number in facts["first"].items()}
    return Masks(bank, files, dict(sorted(known.items())), values, rejects, asked.shown, laid, first)


def _rows_with_masks(bank: Bank) -> list[int]:
    found = np.concatenate([with_mask(bank, split) for split in ("train", "validate", "test")])
    if not len(found):
        fix = "Add a column `mask` (PNG or NIfTI files) to the table, and run `adaptmed embed` again."
        raise InputError(sentence(str(bank.folder), expected="rows with an image and a mask", got="none", fix=fix))
    return np.sort(found).tolist()


def _lay_out(
    asked: _Asked, files: ManifestFiles, rows: Sequence[int], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Read every mask, write the planes of those that training reads, and say what was found."""
    bank = asked.bank
    wanted = {int(row) for split in asked.splits for row in bank.subset(split)}
    starts, total = {}, 0
    for row in rows:
        if row in wanted:
            starts[row] = total
            total += depth_of(bank, row)
    folder.mkdir(parents=True, exist_ok=True)
    size = asked.shown.image_size_px
    laid = np.lib.format.open_memmap(folder / LAID, mode="w+", dtype=np.uint16, shape=(max(1, total), *size))
    values: dict[int, tuple[int, ...]] = {}
    rejects: list[dict[str, str]] = []
    read = partial(_read_or_reason, files, bank, labels=asked.labels)
    with closing(prefetched(read, rows, workers=min(8, cpu_count() or 1), ahead=8)) as masks:
        for done, (row, mask) in enumerate(zip(rows, masks, strict=True), start=1):
            progress("masks", done, len(rows))
            if isinstance(mask, str):
                rejects.append(_reject(bank, row, mask))
                continue
            values[row] = values_in(mask.values)
            if row in starts:
                planes = mask_to_input(mask.values, asked.shown).numpy()
                planes = np.where(planes == NOT_LABELLED, _NONE, planes).astype(np.uint16).reshape(-1, *size)
                laid[starts[row] : starts[row] + len(planes)] = planes
    laid.flush()
    return {"values": values, "rejects": rejects, "first": {row: starts[row] for row in starts if row in values}}


def _read(files: ManifestFiles, bank: Bank, row: int, labels: Mapping[int, str] | None) -> Mask:
    """Read the mask of a row and check it against its image."""
    images = bank.images
    path, plane = files.image(row), planes_in(images.plane or "axial")[0]
    image: NDArray[Any] | Volume = read_volume(path, plane) if images.plane else read_image(path)
    mask = read_mask(files.mask(row), labels, plane=plane)
    refuse_other_geometry(mask, image, path.name)
    if _NONE in values_in(mask.values):
        expected, fix = f"values from 0 to {_NONE - 1}", "Write the label as a smaller value."
        raise InputError(sentence(str(mask.source), expected=expected, got=_NONE, fix=fix))
    return mask


def _read_or_reason(files: ManifestFiles, bank: Bank, row: int, *, labels: Mapping[int, str] | None) -> Mask | str:
    try:
        mask = _read(files, bank, row, labels)
    except InputError as error:
        return str(error)
    planes = mask.values.shape[0] if mask.values.ndim == 3 else 1
    if planes != depth_of(bank, row):
        return f"expected {depth_of(bank, row)} slices, as were embedded, but got {planes}. Embed the table again."
    return mask


def _reject(bank: Bank, row: int, reason: str) -> dict[str, str]:
    return {"row": str(bank.rows["row"].iloc[row]), "mask": str(bank.rows["mask"].iloc[row]), "reason": reason}


def _require_some(bank: Bank, train: Sequence[tuple[int, ...]], rejects: Sequence[Mapping[str, str]]) -> None:
    if not train:
        first = f"; the first of {len(rejects)} rejects: {rejects[0]['reason']}" if rejects else ""
        fix = "Check the table with `adaptmed check`."
        expected = "usable masks in the split train"
        raise InputError(sentence(str(bank.folder), expected=expected, got=f"none{first}", fix=fix))


def _within(
    bank: Bank, values: Mapping[int, tuple[int, ...]], labels: Mapping[int, str]
) -> tuple[dict[int, tuple[int, ...]], list[dict[str, str]]]:
    """Leave out masks of other splits with values that no training mask holds."""
    kept: dict[int, tuple[int, ...]] = {}
    rejects = []
    for row, found in values.items():
        try:
            refuse_other_values("mask", found, labels)
            kept[row] = found
        except InputError as error:
            rejects.append(_reject(bank, row, str(error)))
    return kept, rejects


def _kept(folder: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier call has found; ``None`` when it asked for something else, or there was none."""
    if not ((folder / FACTS).exists() and (folder / LAID).exists()):
        return None
    facts = json.loads((folder / FACTS).read_text())
    return facts if facts["key"] == key else None
