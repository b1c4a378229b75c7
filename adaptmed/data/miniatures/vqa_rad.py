"""Miniature of VQA-RAD: 24 drawn pictures with five questions each, and the traps of the published json."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from adaptmed.data.miniatures.pictures import slice_of
from adaptmed.data.readers.vqa_rad import ANNOTATIONS, PICTURES

_SIDE_PX = 96
_COUNT = 24


def write(folder: Path) -> None:
    """Write the json and the folder of pictures.

    Traps: an id that is text and an answer that is a number, kinds of answers and questions with blanks and misspelt,
    ``NULL`` for nothing, a row that lacks a key, a repeated row, and a picture without a question.
    """
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    for number in range(_COUNT):
        bright, spot = number % 2 == 0, (None, "left", "right")[number % 3]
        name = f"synpic{10000 + number}.jpg"
        drawn = slice_of(side=_SIDE_PX, seed=number, bright=bright, spot=spot)
        Image.fromarray(drawn).save(folder / PICTURES / name)
        entries += _entries(name, number, "mr" if bright else "ct", spot)
    Image.fromarray(slice_of(side=_SIDE_PX, seed=_COUNT)).save(folder / PICTURES / "synpic99999.jpg")
    entries[0] |= {"qid": "0", "answer_type": "CLOSED "}
    entries[1]["question_type"] = "PRSE"
    entries.append(entries[2] | {"qid": len(entries)})
    del entries[3]["question_rephrase"]
    (folder / ANNOTATIONS).write_text(json.dumps(entries, indent=1))


def _entries(name: str, number: int, modality: str, spot: str | None) -> list[dict[str, Any]]:
    found = "Yes" if spot else "No"
    asked: list[tuple[str, str, object, str, str]] = [
        ("Is there a lesion?", "PRES", found, "CLOSED", "Is/Are there a lesion in the image?"),
        ("is a bright spot present", "PRES", found.lower(), "CLOSED", "NULL"),
        ("What modality is shown?", "MODALITY", modality.upper(), "OPEN", "What is the modality?"),
        ("Where is the lesion?", "POS, PRES", spot or "none", "OPEN", "NULL"),
        ("How many lesions are there?", "COUNT", int(spot is not None), "OPEN", "NULL"),
    ]
    return [
        {
            "qid": number * len(asked) + place,
            "phrase_type": ("test_freeform" if (number + place) % 5 == 0 else ("freeform", "para")[place % 2]),
            "qid_linked_id": f"{number:04d}-{place}",
            "image_case_url": f"https://example.org/case?id={number}",
            "image_name": name,
            "image_organ": "HEAD",
            "evaluation": "not evaluated",
            "question": question,
            "question_rephrase": "NULL",
            "question_relation": "NULL",
            "question_frame": frame,
            "question_type": kind,
            "answer": answer,
            "answer_type": answer_type,
        }
        for place, (question, kind, answer, answer_type, frame) in enumerate(asked)
    ]
