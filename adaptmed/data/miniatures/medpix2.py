"""Miniature of MedPix 2.0: 24 cases of two drawn pictures with captions, and the traps of the published files."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from adaptmed.data.miniatures.pictures import slice_of
from adaptmed.data.readers.medpix2 import CASES, PARTS, PICTURES

_SIDE_PX = 96
_COUNT = 24


def write(folder: Path) -> None:
    """Write pictures, the three lists of descriptions and the cases.

    Traps: captions that are placeholders, one caption for both pictures of a case, planes in several spellings and
    missing ones, and picture numbers that VQA-RAD's miniature has as well.
    """
    for part in (PICTURES, PARTS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[dict[str, Any]]] = {"train": [], "dev": [], "test": []}
    for number in range(_COUNT):
        part = "test" if number % 4 == 3 else "dev" if number % 8 == 6 else "train"
        for view in range(2):
            lines[part].append(_description(folder, number, view))
    for name, described in lines.items():
        text = "".join(json.dumps(entry) + "\n" for entry in described)
        (folder / PARTS / f"descriptions_{name}.jsonl").write_text(text)
    cases = [{"U_id": f"MPX{number}", "Case": {"Title": "Mass", "Findings": None}} for number in range(_COUNT)]
    (folder / CASES).write_text(json.dumps(cases))


def _description(folder: Path, number: int, view: int) -> dict[str, Any]:
    bright, spot = number % 2 == 0, (None, "left", "right")[number % 3]
    name = f"MPX{number}_synpic{(10000 if number == 0 else 20000) + 2 * number + view}"
    drawn = slice_of(side=_SIDE_PX, seed=100 + 2 * number + view, bright=bright, spot=spot)
    Image.fromarray(drawn).save(folder / PICTURES / f"{name}.png")
    caption = f"{'MR' if bright else 'CT'} with {f'a mass on the {spot}' if spot else 'no mass'}."
    return {
        "Type": "MR" if bright else "CT",
        "U_id": f"MPX{number}",
        "image": name,
        "Description": {
            "Caption": "Replace this - DESCRIPTION OF THE IMAGE OR FINDINGS." if number == 1 else caption,
            "Plane": ("Axial", "Transverse", "coronal", None)[(number + view) % 4],
            "Sex": "female",
        },
        "Location": "Brain and Neuro",
        "Location Category": ("Head", "Thorax")[number // 4 % 2],
    }
