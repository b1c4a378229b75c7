"""MedPix 2.0: CT and MR pictures of teaching cases with captions, as its authors' repository lays it out.

Siragusa et al.: MedPix 2.0, Data Science and Engineering 2025, github.com/CHILab1/MedPix-2.0. The pictures of the
archive are free for research and teaching.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptmed.data.readers import vqa_rad
from adaptmed.data.readers.listing import Listing, read_json, require_files, require_pictures
from adaptmed.data.tables.reading import Rejects
from adaptmed.errors import InputError, sentence

PICTURES, CASES, PARTS = "images", "Case_topic.json", "splitted_dataset"
SPLITS = {"train": "train", "dev": "validate", "test": "test"}
_FIX = "Clone the repository again; its pictures are in MedPix-2-0/images."
_PLANES = {"axial": "Axial", "transverse": "Axial", "coronal": "Coronal", "frontal": "Coronal", "sagittal": "Sagittal"}
_PLACEHOLDER = re.compile(r"replace this", re.IGNORECASE)


def read(folder: Path, *, without: str | Path | None = None) -> Listing:
    """List the pictures with their captions, in the authors' split, which is by case.

    Captions that are placeholders are blank. ``plane`` is Axial, Coronal, Sagittal or blank, whatever the spelling;
    ``modality`` is CT or MR, ``body_part`` the authors' location category. ``title`` and ``findings`` come from
    ``Case_topic.json`` where there is one.

    Args:
        folder: ``MedPix-2-0`` of the repository.
        without: Folder of VQA-RAD, which was made from the same archive: cases with a picture in it are left out, so
            that it can judge what is trained here.

    Raises:
        InputError: The folder lacks a part or pictures, or a line is no description.
    """
    parts = [f"{PARTS}/descriptions_{name}.jsonl" for name in SPLITS]
    require_files(folder, (PICTURES, *parts), dataset="medpix2", fix=_FIX)
    cases = _cases(folder / CASES)
    rows = [row for part, side in zip(parts, SPLITS.values(), strict=True) for row in _rows(folder / part, side, cases)]
    require_pictures(folder, (row["image"] for row in rows), fix=_FIX)
    hidden = set() if without is None else _shared_cases(rows, Path(without))
    reason = "its case has a picture in VQA-RAD"
    rejects: Rejects = [{"row": row["id"], "reason": reason} for row in rows if row["patient"] in hidden]
    kept = [row for row in rows if row["patient"] not in hidden]
    return Listing.of(folder, kept, notes=_notes(kept, hidden), rejects=rejects)


def plane_of(name: str) -> str:
    """The plane of a slice in one spelling; blank where it is none of the three.

    Example:
        >>> plane_of("Transverse"), plane_of("Multiple or Montage")
        ('Axial', '')
    """
    return _PLANES.get(name.strip().lower(), "")


def caption_of(text: str) -> str:
    """A caption; blank where it is a placeholder.

    Example:
        >>> caption_of("Replace this - DESCRIPTION OF THE IMAGE OR FINDINGS."), caption_of(" Mass. ")
        ('', 'Mass.')
    """
    return "" if _PLACEHOLDER.match(text.strip()) else text.strip()


def picture_number(name: str) -> str:
    """The number of a picture in the archive, which other datasets made from it keep; blank where there is none.

    Example:
        >>> picture_number("MPX1024_synpic40275.png")
        'synpic40275'
    """
    found = re.search(r"synpic\d+", name)
    return found.group() if found else ""


def _rows(path: Path, side: str, cases: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), start=1):
        if line.strip():
            try:
                yield _row(json.loads(line), side, cases)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                got = f"{type(error).__name__}: {error}"
                raise InputError(
                    sentence(f"{path}, line {number}", expected="a description of a picture", got=got, fix=_FIX)
                ) from error


def _row(found: Mapping[str, Any], side: str, cases: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    about, case = found["Description"], cases.get(found["U_id"], {})
    return {
        "id": _text(found["image"]),
        "image": f"{PICTURES}/{_text(found['image']).removesuffix('.png')}.png",
        "text": caption_of(_text(about["Caption"])),
        "patient": _text(found["U_id"]),
        "split": side,
        "modality": _text(found["Type"]),
        "plane": plane_of(_text(about.get("Plane"))),
        "body_part": _text(found.get("Location Category")),
        "title": _text(case.get("Title")),
        "findings": _text(case.get("Findings")),
    }


def _cases(path: Path) -> dict[str, Mapping[str, Any]]:
    if not path.is_file():
        return {}
    return {entry["U_id"]: entry.get("Case") or {} for entry in read_json(path) if "U_id" in entry}


def _shared_cases(rows: list[dict[str, str]], folder: Path) -> set[str]:
    asked = vqa_rad.read(folder).rows["image"]
    numbers = {picture_number(name) for name in asked} - {""}
    return {row["patient"] for row in rows if picture_number(row["id"]) in numbers}


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _notes(rows: list[dict[str, str]], hidden: set[str]) -> list[str]:
    captions = [row["text"] for row in rows if row["text"]]
    said = [f"{len(rows) - len(captions)} captions are placeholders or blank, {len(set(captions))} are distinct."]
    if hidden:
        said.append(f"{len(hidden)} cases with a picture in VQA-RAD are left out.")
    return said
