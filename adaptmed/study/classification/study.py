"""The whole study of labels: every bank judged arm by arm, written to ``results.json`` and ``report.html``."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_json
from adaptmed.runs.folder import open_run
from adaptmed.study.cells import Place, Progress, cell_path, cells_of, places_of
from adaptmed.study.checks import check_counts, check_distinct
from adaptmed.study.classification.again import again_arms, check_images, costs_of
from adaptmed.study.classification.arms import Arm, Outcome, adaptor_arms, frozen_arm
from adaptmed.study.classification.lora_tuned import lora_facts
from adaptmed.study.classification.pictures import maps_of, retrieval_examples
from adaptmed.study.classification.results import cautions_of, facts_of_study, results_of
from adaptmed.study.classification.rows import StudyRows
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.subject import Subject, prepare
from adaptmed.study.report.report import Shown, write_report
from adaptmed.study.statistics import Cell, Truth

TITLE = "Low-data study"


def cells_of_subject(
    subject: Subject, settings: StudySettings, out: Path, makers: Mapping[str, Callable[[], Arm]], progress: Progress
) -> list[Cell]:
    """Compute the cells of arms on one subject; what is on disk is not computed again.

    Args:
        subject: The bank under study.
        settings: What to run over.
        out: Study folder.
        makers: Arms by name, each made when it is first needed.
        progress: Called with what is done, its number and the number of all cells.
    """
    made: dict[str, Arm] = {}

    def compute(place: Place) -> Cell:
        if place.arm not in made:
            made[place.arm] = makers[place.arm]()
        return _cell(subject.rows, made[place.arm], place)

    places = places_of(list(makers), settings.fractions, settings.seeds)
    return cells_of(places, partial(_path_of, subject, out), compute, progress)


def waiting_cells(subject: Subject, settings: StudySettings, out: Path, arms: Iterable[str]) -> list[Place]:
    """The cells of arms on one subject that are not on disk."""
    places = places_of(list(arms), settings.fractions, settings.seeds)
    return [place for place in places if not _path_of(subject, out, place).exists()]


def _path_of(subject: Subject, out: Path, place: Place) -> Path:
    return cell_path(out, subject.identity_for(place.arm), place)


def _cell(rows: StudyRows, arm: Arm, place: Place) -> Cell:
    started = time.monotonic()
    places = rows.fraction(place.fraction, place.seed)
    outcome = arm(places, place.seed)
    return Cell(
        arm=place.arm,
        fraction=place.fraction,
        seed=place.seed,
        values=outcome.probabilities.astype(np.float64),
        reasons=_reasons(rows.truth, outcome),
        n_train=len(places),
        n_positive=rows.positives(places),
        trainable_parameters=outcome.trainable_parameters,
        seconds=round(time.monotonic() - started, 3),
    )


def arms_of(subject: Subject, settings: StudySettings) -> dict[str, Callable[[], Arm]]:
    """The arms of the settings that can run on a subject, each made when it is first needed.

    Raises:
        InputError: If none is left, or one needs an adaptor or a tuned bank.
    """
    rows, bank, adaptor = subject.rows, subject.bank, subject.adaptor
    names = settings.chosen(adaptor=adaptor is not None, tuned=subject.tuned is not None)
    arms = {"frozen": lambda: frozen_arm(rows, bank), **again_arms(subject, settings)}
    if adaptor is not None:
        prior = None if subject.prompts is None else subject.prompts.directions.numpy()
        arms |= adaptor_arms(rows, bank, adaptor, prior=prior, precision=settings.precision)
    if subject.tuned is not None:
        arms |= subject.tuned.arms(rows)
    chosen = {name: arms[name] for name in names if name in arms}
    if not chosen:
        got, fix = "only arms that need prompts", f"There are none, because {subject.without_prompts}"
        raise InputError(sentence("arms", expected="an arm that can run", got=got, fix=fix))
    return chosen


def _reasons(truth: Truth, outcome: Outcome) -> dict[str, str]:
    """Reasons by label; where no class can be told from another, one reason for the whole cell."""
    reasons = {truth.names[index]: reason for index, reason in outcome.reasons.items()}
    if truth.kind == "multiclass" and len(reasons) == len(truth.names):
        return {"all": next(iter(reasons.values()))}
    return reasons


def study(
    banks: Sequence[Bank],
    runs: Sequence[Path],
    out: Path,
    *,
    settings: StudySettings,
    tuned: Sequence[tuple[Bank, Path]] = (),
    examples: bool = True,
    announce: Callable[[Sequence[str]], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run a study and write its results and its report; what is on disk already is not computed again.

    Args:
        banks: One, or one per pair of encoders for the backbone grid.
        runs: The run of each bank, in the same order; none at all leaves the arms out that need an adaptor.
        out: Study folder.
        settings: What to run over.
        tuned: For the arms with LoRA: of each bank, in the same order, the bank of the same rows that tuned encoders
            wrote, and the run that tuned them.
        examples: Show pictures and report texts in the report.
        announce: Called before the first cell with what the cells will cost that read images again.
        progress: Called with what is being done, its number and how many there are.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: If there is not one run or none, and one or no tuned bank, per bank, an image encoder that is needed
            cannot be loaded, or ``out`` holds another study.
        OverlapError: If a test patient was seen in pre-training.
    """
    check_counts(banks, runs, tuned)
    settings = replace(settings, arms=settings.chosen(adaptor=bool(runs), tuned=bool(tuned)))
    subjects = [prepare(bank, run, settings, tuned=pair) for bank, run, pair in zip_longest(banks, runs, tuned)]
    check_distinct(banks)
    makers = [arms_of(subject, settings) for subject in subjects]
    announce(_checked_costs(subjects, makers, settings, out))
    open_run(out, _config(subjects, settings), upgrade=_with_precision)
    results: dict[str, Any] = {}
    for subject, arms in zip(subjects, makers, strict=True):
        found = results_of(subject, cells_of_subject(subject, settings, out, arms, progress), settings)
        for name, rows in found.items():
            results.setdefault(name, []).extend(rows)
    results["settings"] = {
        "fractions": list(settings.fractions),
        "seeds": settings.seeds,
        "arms": list(settings.arms or ()),
        "allow_overlap": settings.allow_overlap,
        "overlapping_test_patients": sum(subject.overlap for subject in subjects),
    }
    write_json(out / "results.json", results, indent=1)
    write_report(
        out / "report.html",
        results=results,
        maps=maps_of(subjects[0]),
        shown=Shown(retrieval=retrieval_examples(subjects[0]) if examples else ()),
        facts={"title": TITLE, "cautions": cautions_of(subjects), **facts_of_study(subjects, settings)},
        no_examples=not examples,
    )
    return results


def _checked_costs(
    subjects: Sequence[Subject], makers: Sequence[Mapping[str, object]], settings: StudySettings, out: Path
) -> list[str]:
    """What the cells will cost that are not on disk and read images again, which must be there."""
    said: list[str] = []
    for subject, arms in zip(subjects, makers, strict=True):
        waiting = waiting_cells(subject, settings, out, arms)
        check_images(subject, waiting)
        said += costs_of(subject.rows, waiting)
    return said


def _with_precision(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a study with its precision; older ones computed in bf16 and did not say so."""
    return {"precision": "bf16", **config}


def _config(subjects: Sequence[Subject], settings: StudySettings) -> dict[str, object]:
    """Everything that decides a cell, so that no cell of another adaptor or table is taken for this study's."""
    facts = json.loads(json.dumps(asdict(settings)))
    tuned = [subject.tuned.identity for subject in subjects if subject.tuned is not None]
    facts |= {"tuned": tuned} if tuned else {}
    facts |= {"lora_tuned": lora_facts()} if "lora-tuned" in (settings.arms or ()) else {}
    return {"command": "study", "subjects": [subject.identity for subject in subjects], **facts}
