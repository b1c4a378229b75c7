"""VQA-RAD: questions that clinicians asked about radiographs and slices, as its authors publish it.

Lau, Gayen, Ben Abacha, Demner-Fushman: A dataset of clinically generated visual questions and answers about radiology
images, Scientific Data 2018. CC0, osf.io/89kps. One json beside one folder of pictures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from adaptmed.data.readers.listing import Listing, read_json, require_choice, require_files, require_pictures
from adaptmed.data.splits import assign_splits
from adaptmed.errors import InputError, sentence

ANNOTATIONS = "VQA_RAD Dataset Public.json"
PICTURES = "VQA_RAD Image Folder"
SplitOf = Literal["official", "image"]
Paraphrases = Literal["none", "train", "mevf"]
_KEYS = ("qid", "phrase_type", "image_name", "question", "question_frame", "question_type", "answer", "answer_type")
_FIX = "Download both again from osf.io/89kps."
_VALIDATE_SHARE = 0.1
_IMAGE_SHARES = (0.7, 0.1, 0.2)
_MISSPELT = {"ATRIB": "ATTRIB", "PRSE": "PRES"}


def read(folder: Path, *, split: str = "official", paraphrases: str | bool = "none") -> Listing:
    """List the questions, each with its picture and its answer.

    Answers and ids that are numbers become text, kinds of answers lose their blanks, ``NULL`` is nothing. A picture is
    what counts as a patient, so that intervals and fractions are over pictures.

    Args:
        folder: With the json and the folder of pictures.
        split: ``official`` tests on the rows whose ``phrase_type`` begins with ``test`` (308 + 143), and takes a tenth
            of the pictures out of train to validate; most test pictures stand in train as well, which ``notes`` say.
            ``image`` is ours: no picture on two sides.
        paraphrases: Further training rows, the same questions in the annotators' common form (``question_frame``):
            ``none`` of them, those of ``train`` rows, or all as in ``mevf`` (True; Nguyen et al., MICCAI 2019: 3,064
            training rows), which teaches the answers of those test questions that have such a form.

    Raises:
        InputError: The folder lacks a part, another version of the dataset, or an option that there is not.
    """
    asked = ("mevf" if paraphrases else "none") if isinstance(paraphrases, bool) else paraphrases
    require_choice("split", split, SplitOf)
    require_choice("paraphrases", asked, Paraphrases)
    if split == "image" and asked == "mevf":
        fix = "Pass paraphrases='train', or split='official'."
        raise InputError(sentence("paraphrases", expected="train or none with split='image'", got="mevf", fix=fix))
    require_files(folder, (ANNOTATIONS, PICTURES), dataset="vqa-rad", fix=_FIX)
    entries = read_json(folder / ANNOTATIONS)
    _require_keys(folder / ANNOTATIONS, entries)
    require_pictures(folder / PICTURES, (entry["image_name"] for entry in entries), fix=_FIX)
    sides = _sides(entries, split)
    rows = [_row(entry, side) for entry, side in zip(entries, sides, strict=True)]
    framed = _framed(entries, sides, asked)
    return Listing.of(folder, [*rows, *framed], notes=_notes(rows, framed, split))


def _require_keys(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    for place, entry in enumerate(entries):
        missing = [key for key in _KEYS if key not in entry]
        if missing:
            expected, got = f"entries with {', '.join(_KEYS)}", f"none of {', '.join(missing)} in entry {place}"
            raise InputError(sentence(str(path), expected=expected, got=got, fix=f"It is another version. {_FIX}"))


def _is_test(entry: Mapping[str, Any]) -> bool:
    return _text(entry["phrase_type"]).startswith("test")


def _sides(entries: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    """The split of every entry; validate takes whole pictures."""
    pictures = [_text(entry["image_name"]) for entry in entries]
    if split == "image":
        return list(assign_splits(pictures, shares=_IMAGE_SHARES))
    trained = sorted({name for name, entry in zip(pictures, entries, strict=True) if not _is_test(entry)})
    side = dict(zip(trained, assign_splits(trained, shares=(1 - _VALIDATE_SHARE, _VALIDATE_SHARE, 0.0)), strict=True))
    return ["test" if _is_test(entry) else side[name] for name, entry in zip(pictures, entries, strict=True)]


def _row(entry: Mapping[str, Any], side: str) -> dict[str, str]:
    return {
        "id": _text(entry["qid"]),
        "image": f"{PICTURES}/{_text(entry['image_name'])}",
        "question": _text(entry["question"]),
        "answer": _text(entry["answer"]),
        "answer_type": _text(entry["answer_type"]).lower(),
        "question_type": _kind(_text(entry["question_type"])),
        "patient": Path(_text(entry["image_name"])).stem,
        "split": side,
    }


def _framed(entries: Sequence[Mapping[str, Any]], sides: Sequence[str], paraphrases: str) -> list[dict[str, str]]:
    """Rows that ask in the common form; those of test questions join the side of their picture, or else train."""
    if paraphrases == "none":
        return []
    pairs = list(zip(entries, sides, strict=True))
    side_of = {entry["image_name"]: side for entry, side in pairs if side != "test"}
    rows = []
    for entry, side in pairs:
        if _text(entry["question_frame"]) and (side != "test" or paraphrases == "mevf"):
            row = _row(entry, side if side != "test" else side_of.get(entry["image_name"], "train"))
            rows.append(row | {"id": f"{row['id']}-framed", "question": _text(entry["question_frame"])})
    return rows


def _kind(kinds: str) -> str:
    """The first kind of a question, in one spelling."""
    first = kinds.split(",")[0].strip().upper()
    return _MISSPELT.get(first, first)


def _text(value: object) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text == "NULL" else text


def _notes(rows: Sequence[Mapping[str, str]], framed: Sequence[Mapping[str, str]], split: str) -> list[str]:
    tested = {row["image"] for row in rows if row["split"] == "test"}
    both = tested & {row["image"] for row in rows if row["split"] != "test"}
    said = [
        f"{len(both)} of {len(tested)} test pictures stand in train or validate: the official split is by question."
    ]
    if split == "image":
        said = ["Split by picture, 70 % train, 10 % validate, 20 % test: not the published rows."]
    repeats = Counter((row["image"], row["question"].lower(), row["answer"].lower()) for row in rows)
    twice = sum(count - 1 for count in repeats.values())
    if twice:
        said.append(f"{twice} rows repeat a picture, a question and its answer.")
    leaked = {row["id"] for row in rows if row["split"] == "test"} & {row["id"][: -len("-framed")] for row in framed}
    if leaked:
        said.append(
            f"{len(leaked)} test questions stand in train in the annotators' common form, with their answers: "
            "that is the published protocol of 3,064 rows, and no result on it shows what is known of new questions."
        )
    return said
