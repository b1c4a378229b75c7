"""The whole study of segmentation: every bank judged arm by arm, written to ``results.json`` and ``report.html``."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from adaptmed.bank import Bank
from adaptmed.cohort.planes import depth_of
from adaptmed.cohort.rows import with_mask
from adaptmed.data.fitting import mask_to_input
from adaptmed.data.mask_labels import as_classes
from adaptmed.files import write_json, written_whole
from adaptmed.runs.folder import open_run
from adaptmed.study.cautions import patient_cautions, shared_facts
from adaptmed.study.cells import Place, Progress, cell_path, cells_of, places_of
from adaptmed.study.checks import check_counts, check_distinct
from adaptmed.study.report.overlays import Overlay, colours, draw_overlay
from adaptmed.study.report.report import Shown, write_report
from adaptmed.study.segmentation.arms import Arm, arms_of
from adaptmed.study.segmentation.settings import BASELINES, TUNED, SegmentationStudy
from adaptmed.study.segmentation.subject import Run, Subject, has_pixels, open_subject, prepare, shown_rows
from adaptmed.study.statistics import Cell, judge
from adaptmed.tasks.segmentation.reading import Wanted, WindowReader
from adaptmed.tasks.segmentation.shapes import shown_in

SHOWN = 6
TITLE = "Low-data study of segmentation"


def study_segmentation(
    banks: Sequence[Bank],
    runs: Sequence[Path],
    out: Path,
    *,
    settings: SegmentationStudy,
    tuned: Sequence[Run] = (),
    examples: bool = True,
    device: str = "auto",
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run a study and write its results and its report; what is on disk already is not computed again.

    Args:
        banks: One, or one per encoder.
        runs: The run of each bank, in the same order; none at all leaves the arms on a fusion out.
        out: Study folder.
        settings: What to run over.
        tuned: For the arm ``adaptor+lora``: of each bank, in the same order, the bank of the same rows that tuned
            encoders wrote, and the run that tuned them.
        examples: Show images with masks in the report.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
        progress: Called with what is being done, its number and how many there are.

    Returns:
        What ``results.json`` holds: ``records``, ``summaries``, ``comparisons``, ``rejects``, ``settings``.

    Raises:
        InputError: There is not one run, and one or no tuned bank, per bank; the masks or the decoder do not fit; or
            ``out`` holds another study.
        OverlapError: A test patient was seen by a run.
    """
    check_counts(banks, runs, tuned)
    check_distinct(banks)
    parts = zip_longest(banks, runs, tuned)
    opened = [open_subject(bank, run, settings, tuned=beside) for bank, run, beside in parts]
    open_run(out, _config([each.identity for each in opened], settings))
    subjects = [
        prepare(each, out / "masks" / str(number), settings, progress=progress) for number, each in enumerate(opened)
    ]
    results: dict[str, Any] = {name: [] for name in ("records", "summaries", "comparisons", "rejects")}
    overlays: list[Overlay] = []
    for subject in subjects:
        shown = np.array(shown_rows(subject, SHOWN), dtype=np.int64)
        arms = arms_of(subject, settings, shown, device=device)
        path_of = partial(cell_path, out, subject.identity)
        places = places_of(list(arms), settings.fractions, settings.seeds)
        cells = cells_of(places, path_of, partial(_compute, subject, arms, path_of), progress)
        for name, rows in _results(subject, cells, settings).items():
            results[name].extend(rows)
        if examples and has_pixels(subject.bank):
            overlays += _overlays(subject, settings, out, list(arms), shown)
    results["settings"] = settings.as_json() | {
        "task": "segmentation",
        "fractions": list(settings.fractions),
        "seeds": settings.seeds,
        "overlapping_test_patients": sum(subject.overlap for subject in subjects),
    }
    write_json(out / "results.json", results, indent=1)
    write_report(
        out / "report.html",
        results=results,
        shown=Shown(overlays=overlays, colours=colours(subjects[0].masks.names)),
        facts={"title": TITLE, "cautions": _cautions(subjects, examples=examples), **_facts(subjects, settings)},
        no_examples=not examples,
    )
    return results


def length_of(bank: Bank, settings: SegmentationStudy) -> str:
    """Say how long every training may take, before the first one begins."""
    training = settings.training
    steps, every = training.rounds * training.steps_per_round, training.steps_per_round
    bound = "no bound in time" if training.minutes is None else f"{training.minutes:g} minutes"
    shown = " × ".join(map(str, shown_in(bank, training).image_size_px))
    early = "There are no validated masks: all the steps are made."
    if len(with_mask(bank, "validate")):
        early = f"It ends when {training.patience} looks at `validate`, {every} steps apart, have found no higher Dice."
    return f"{bank.images.name}: a training takes at most {steps} steps and {bound}, on images of {shown} px. {early}"


def _compute(subject: Subject, arms: Mapping[str, Arm], path_of: Callable[[Place], Path], place: Place) -> Cell:
    """Train an arm at one place, and keep what the report shows before the cell is written."""
    started = time.monotonic()
    places = subject.fraction(place.fraction, place.seed)
    outcome = arms[place.arm](place.fraction, place.seed)
    seconds = round(time.monotonic() - started, 3)
    with written_whole(path_of(place).with_suffix(".npy")) as temporary:
        np.save(temporary, np.stack(outcome.shown) if outcome.shown else np.zeros((0, 1, 1), dtype=np.uint8))
    counts = subject.present[places].sum(axis=0).tolist()
    return Cell(
        arm=place.arm,
        fraction=place.fraction,
        seed=place.seed,
        values=outcome.scores.astype(np.float64),
        reasons=dict(outcome.reasons),
        n_train=len(places),
        n_positive=dict(zip(subject.masks.names, counts, strict=True)),
        trainable_parameters=outcome.trainable_parameters,
        seconds=seconds,
    )


def _results(subject: Subject, cells: Sequence[Cell], settings: SegmentationStudy) -> dict[str, list[Any]]:
    judged = judge(cells, subject.truth, replicates=settings.replicates)
    arms = {cell.arm for cell in cells}
    baselines = [arm for arm in BASELINES if arm in arms]
    comparisons = [row for arm in baselines for row in judged.comparisons(arm)]
    if {"adaptor", TUNED} <= arms:
        comparisons += [row for row in judged.comparisons("adaptor") if row["arm"] == TUNED]
    rejects = [dict(reject) for reject in subject.masks.rejects]
    return {
        "records": judged.records(),
        "summaries": judged.summaries(),
        "comparisons": comparisons,
        "rejects": rejects,
    }


def _overlays(
    subject: Subject, settings: SegmentationStudy, out: Path, arms: Sequence[str], shown: Int[np.ndarray, " s"]
) -> list[Overlay]:
    """Draw the shown test images with the truth and what every arm predicted at the smallest fraction, seed 0."""
    fraction = min(settings.fractions)
    predicted = {arm: np.load(_shown_path(subject, out, arm, fraction)) for arm in arms}
    drawn = []
    for place, row in enumerate(shown.tolist()):
        middle = depth_of(subject.bank, row) // 2
        image, truth = _picture(subject, row, middle), _truth(subject, row, middle)
        found = {arm: classes[place] for arm, classes in predicted.items() if len(classes) and arm != "empty"}
        drawn.append(draw_overlay(str(subject.bank.rows["row"].iloc[row]), image, truth, found))
    return drawn


def _shown_path(subject: Subject, out: Path, arm: str, fraction: float) -> Path:
    return cell_path(out, subject.identity, Place(arm, fraction, 0)).with_suffix(".npy")


def _picture(subject: Subject, row: int, offset: int) -> np.ndarray:
    reader = WindowReader(subject.bank, Wanted(tokens=False, taps=False, pixels=True), subject.masks.shown)
    offsets = np.array([[offset]]) if subject.bank.holds_volumes else None
    pixels = reader(np.array([row]), offsets).pixels
    assert pixels is not None
    facts = reader.images.preprocessing
    return pixels[0].permute(1, 2, 0).numpy() * np.array(facts.std) + np.array(facts.mean)


def _truth(subject: Subject, row: int, offset: int) -> np.ndarray:
    mask = subject.masks.source(row)
    classes = as_classes(mask.values, subject.masks.labels)
    laid = mask_to_input(classes, subject.masks.shown).numpy()
    return laid if laid.ndim == 2 else laid[offset]


def _config(identities: Sequence[str], settings: SegmentationStudy) -> dict[str, object]:
    """Everything that decides a cell, so that no cell of another adaptor or table is taken for this study's."""
    ran = {"fractions": list(settings.fractions), "seeds": settings.seeds}
    return {"command": "study", "task": "segmentation", "subjects": list(identities), **settings.as_json(), **ran}


def _cautions(subjects: Sequence[Subject], *, examples: bool) -> list[str]:
    cautions = []
    for subject in subjects:
        encoder = subject.truth.encoder
        cautions += patient_cautions(subject, encoder)
        if subject.masks.rejects:
            cautions.append(
                f"{encoder}: {len(subject.masks.rejects)} rows were left out because their mask cannot be used; "
                "rejects.jsonl says why."
            )
        if examples and not has_pixels(subject.bank):
            cautions.append(f"{encoder}: no test image is shown, because the bank holds no pixels of its volumes.")
    return cautions


def _facts(subjects: Sequence[Subject], settings: SegmentationStudy) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for subject in subjects:
        images = subject.bank.images
        facts[subject.truth.encoder] = {
            "image encoder fingerprint": images.fingerprint,
            "tokens": f"{subject.bank.info.layout}, {subject.bank.info.dtype}",
            "labels": ", ".join(subject.masks.names),
            "training images with a mask": len(subject.train),
            "training patients": len(set(subject.patients)),
            "test images": len(subject.test),
            "test patients": len(set(subject.truth.patients)),
            "masks left out": len(subject.masks.rejects),
        }
    looked_at = any(len(subject.validate) for subject in subjects)
    facts["training"] = {
        "decoder": settings.training.decoder,
        "steps of every trained arm, at most": settings.training.rounds * settings.training.steps_per_round,
        "looks at the validated part": settings.training.rounds if looked_at else "none: every arm makes all the steps",
        "learning rates tried by every trained arm": ", ".join(f"{rate:g}" for rate in settings.learning_rates),
        "loss": settings.training.loss,
    }
    return facts | shared_facts(settings.replicates)
