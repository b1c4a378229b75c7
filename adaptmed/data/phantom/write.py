"""Writes a phantom dataset to a folder: pictures, masks, manifest, questions and the truth behind the reports."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from adaptmed.data.phantom.anatomy import draw_anatomy
from adaptmed.data.phantom.findings import FINDINGS, Finding, draw_findings
from adaptmed.data.phantom.pictures import draw_study
from adaptmed.data.phantom.reports import write_questions, write_report
from adaptmed.errors import InputError, sentence
from adaptmed.files import written_whole

_SPLITS = ("train", "validate", "test")
_VERSION = 1


@dataclass(frozen=True)
class _Patient:
    number: int
    split: str
    studies: int


@dataclass(frozen=True)
class _Rows:
    """What one patient adds to the tables."""

    manifest: list[dict[str, object]]
    questions: list[dict[str, object]]
    truth: list[dict[str, object]]


def write_phantom(
    folder: Path,
    *,
    studies: int = 2000,
    seed: int = 0,
    image_size_px: int = 256,
    splits: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a phantom dataset: drawn, not photographed; nothing in it comes from a person.

    Every picture shows a crude chest with none to five findings: pleural effusion, pneumothorax, consolidation, nodule,
    cardiomegaly, from subtle to marked. Spots, blobs, skin folds and devices that look like findings lie elsewhere, so
    that it matters where something is, not only what. Each picture bears the word PHANTOM. The patient's left is on the
    right of the picture. A patient has one to three studies and stands in one split.

    The folder holds ``manifest.csv`` (image, text, patient, split, mask and a 0/1 column per finding), ``images/*.png``
    (8-bit grey), ``masks/*.png`` (0 background, 1 to 5 the findings in the order of ``FINDINGS``; where two overlap the
    smaller is kept), ``questions.csv`` (image, question, answer, patient, split), ``findings.jsonl`` (per study side,
    zone, severity, and which findings the report states and denies) and ``phantom.json`` (the parameters).

    Every patient has generators of its own, made from the seed and the patient's number: the same parameters give the
    same bytes (with the same Pillow), in any order of work. A run that was stopped continues where it was; a whole
    phantom with the same parameters is left as it is.

    Args:
        folder: Where to write; made if missing.
        studies: How many pictures, when ``splits`` is not given: 70 % train, 10 % validate, 20 % test.
        seed: Any integer from 0. Another seed gives other patients.
        image_size_px: Height and width of the pictures, 64 to 2048.
        splits: Pictures per split instead of ``studies``, exactly that many; the last patient's studies are cut to fit.
        progress: Called with the pictures done and their total, after each patient.

    Returns:
        The path of the manifest.

    Raises:
        InputError: A parameter is out of range, or the folder holds something else.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_phantom(Path(folder), studies=4, image_size_px=64).name
        'manifest.csv'
    """
    folder, counts = Path(folder), _check(studies, seed, image_size_px, splits)
    manifest = folder / "manifest.csv"
    if _is_whole(folder, {"version": _VERSION, "seed": seed, "image_size_px": image_size_px, "splits": counts}):
        return manifest
    patients, total, done = _plan(counts, seed), sum(counts.values()), 0
    parts = []
    with ThreadPoolExecutor(2) as pool:
        for part in pool.map(lambda patient: _write_patient(folder, patient, seed, image_size_px), patients):
            parts.append(part)
            done += len(part.manifest)
            if progress:
                progress(done, total)
    truth = chain.from_iterable(part.truth for part in parts)
    _put(folder / "findings.jsonl", "".join(json.dumps(row) + "\n" for row in truth).encode())
    _put(folder / "questions.csv", _table(chain.from_iterable(part.questions for part in parts)))
    _put(manifest, _table(chain.from_iterable(part.manifest for part in parts)))
    return manifest


def _check(studies: int, seed: int, image_size_px: int, splits: Mapping[str, int] | None) -> dict[str, int]:
    """Check the parameters and return how many pictures each split gets."""
    if seed < 0:
        raise InputError(sentence("seed", expected="an integer from 0", got=seed, fix="Pass for example 0."))
    if not 64 <= image_size_px <= 2048:
        fix = "Pass for example 256."
        raise InputError(sentence("image_size_px", expected="64 to 2048", got=image_size_px, fix=fix))
    if splits is None:
        if studies < 1:
            raise InputError(sentence("studies", expected="at least 1", got=studies, fix="Pass for example 2000."))
        validate, test = round(0.1 * studies), round(0.2 * studies)
        return {"train": studies - validate - test, "validate": validate, "test": test}
    if not set(splits) <= set(_SPLITS) or min(splits.values(), default=0) < 0 or not sum(splits.values()):
        expected = "numbers of pictures from 0, not all 0, for train, validate and test"
        raise InputError(
            sentence("splits", expected=expected, got=dict(splits), fix='Pass for example {"train": 700}.')
        )
    return {split: splits.get(split, 0) for split in _SPLITS}


def _is_whole(folder: Path, parameters: dict[str, object]) -> bool:
    """Tell whether this very phantom is already there; claim the folder for it if not."""
    record, whole = folder / "phantom.json", (folder / "manifest.csv").exists()
    if record.exists():
        found = json.loads(record.read_text())
        if found != parameters:
            fix = "Choose another folder, or delete this one."
            raise InputError(
                sentence(str(folder), expected=f"a phantom of {parameters}", got=f"one of {found}", fix=fix)
            )
        return whole
    if whole:
        fix = "Choose another folder."
        raise InputError(
            sentence(str(folder), expected="a phantom or no manifest", got="another manifest.csv", fix=fix)
        )
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _put(record, json.dumps(parameters, indent=1).encode())
    return False


def _plan(counts: Mapping[str, int], seed: int) -> list[_Patient]:
    """Number the patients and deal their studies to the splits until each is full."""
    patients: list[_Patient] = []
    for split, count in counts.items():
        while count > 0:
            drawn = int(_generator(seed, len(patients), "studies").integers(1, 4))
            patients.append(_Patient(len(patients), split, min(drawn, count)))
            count -= drawn
    return patients


def _generator(seed: int, patient: int, purpose: str, study: int = 0) -> np.random.Generator:
    """A generator of its own for everything that is drawn, so that nothing depends on the order of work."""
    purposes = ("studies", "findings", "anatomy", "picture", "report", "questions")
    return np.random.default_rng([seed, patient, purposes.index(purpose), study])


def _write_patient(folder: Path, patient: _Patient, seed: int, image_size_px: int) -> _Rows:
    """Write the pictures and masks of one patient that are not there yet, and return its rows."""
    rows = _Rows([], [], [])
    anatomy = draw_anatomy(_generator(seed, patient.number, "anatomy"))
    studies = draw_findings(_generator(seed, patient.number, "findings"), 3)[: patient.studies]
    for study, findings in enumerate(studies):
        name = f"p{patient.number:05d}_s{study + 1}.png"
        image, mask = folder / "images" / name, folder / "masks" / name
        if not (image.exists() and mask.exists()):
            rng = _generator(seed, patient.number, "picture", study)
            picture, labels = draw_study(anatomy, findings, rng=rng, image_size_px=image_size_px)
            _put(mask, _png(labels))
            _put(image, _png(picture))
        generators = [_generator(seed, patient.number, purpose, study) for purpose in ("report", "questions")]
        _add_rows(rows, name, patient, findings, *generators)
    return rows


def _add_rows(
    rows: _Rows,
    name: str,
    patient: _Patient,
    findings: Mapping[str, Finding],
    report_rng: np.random.Generator,
    question_rng: np.random.Generator,
) -> None:
    """Add one study's rows to the tables."""
    report = write_report(findings, report_rng)
    image, owner = f"images/{name}", {"patient": f"p{patient.number:05d}", "split": patient.split}
    labels = {finding: int(finding in findings) for finding in FINDINGS}
    rows.manifest.append({"image": image, "text": report.text, **owner, "mask": f"masks/{name}", **labels})
    for question, answer in write_questions(findings, question_rng):
        rows.questions.append({"image": image, "question": question, "answer": answer, **owner})
    present = [
        {"name": found.name, "side": found.side, "zone": found.zone, "grade": found.grade, "severity": found.severity}
        for found in findings.values()
    ]
    said = {"stated": list(report.stated), "denied": list(report.denied)}
    rows.truth.append({"image": image, **owner, "findings": present, **said})


def _png(values: UInt8[np.ndarray, "height width_px"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _table(rows: Iterable[dict[str, object]]) -> bytes:
    """Write rows of the same columns as comma-separated text."""
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
