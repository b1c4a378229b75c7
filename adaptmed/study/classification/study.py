"""The whole study of labels: every bank judged arm by arm, written to ``results.json`` and ``report.html``."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from adaptmed.adaptor.fresh import fresh_fusion
from adaptmed.adaptor.model import trainable_parameters
from adaptmed.bank import Bank
from adaptmed.cohort.rows import rows_with_sides
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_json
from adaptmed.fusion import Fusion
from adaptmed.runs.folder import open_run
from adaptmed.study.cautions import patient_cautions, shared_facts
from adaptmed.study.cells import Place, Progress, cell_path, cells_of, places_of
from adaptmed.study.checks import check_distinct
from adaptmed.study.classification.arms import Arm, Outcome, adaptor_arms
from adaptmed.study.classification.full import FULL, full_arm
from adaptmed.study.classification.pictures import maps_of, retrieval_examples
from adaptmed.study.classification.rows import StudyRows
from adaptmed.study.classification.settings import BASELINES, TUNED_ARMS, StudySettings
from adaptmed.study.classification.subject import Subject, prepare
from adaptmed.study.classification.tuned import facts_of
from adaptmed.study.classification.zero_shot import retrieval_of, zero_shot_cell
from adaptmed.study.report.report import write_report
from adaptmed.study.statistics import Cell, Truth, judge


def results_of(subject: Subject, cells: Sequence[Cell], settings: StudySettings) -> dict[str, Any]:
    """Judge the cells, and the adaptor's zero-shot classification and retrieval, on the test split."""
    truth, arms = subject.rows.truth, {cell.arm for cell in cells}
    judged = judge(cells, truth, replicates=settings.replicates)
    comparisons = [row for arm in BASELINES if arm in arms for row in judged.comparisons(arm)]
    if {"adaptor", "adaptor+lora"} <= arms:
        comparisons += [row for row in judged.comparisons("adaptor") if row["arm"] in TUNED_ARMS]
    zero_shot: list[dict[str, Any]] = []
    if subject.prompts is not None:
        cell = zero_shot_cell(subject.adaptor.fusion, subject.bank, subject.rows, subject.prompts)
        zero_shot = judge([cell], truth, replicates=settings.replicates).records()
    fusions = {"adaptor": subject.adaptor.fusion, "adaptor-untrained": untrained_fusion(subject, 0)}
    retrieval = retrieval_of(fusions, subject.bank, subject.rows, replicates=settings.replicates)
    if subject.tuned is not None and "adaptor+lora" in arms:
        tuned = {"adaptor+lora": subject.tuned.adaptor.fusion}
        retrieval += retrieval_of(tuned, subject.tuned.bank, subject.rows, replicates=settings.replicates)
    return {
        "records": judged.records(),
        "summaries": judged.summaries(),
        "comparisons": comparisons,
        "retrieval": retrieval,
        "zero_shot": zero_shot,
    }


def untrained_fusion(subject: Subject, seed: int) -> Fusion:
    """An untrained fusion of the adaptor's shape, its input statistics fitted on the same training rows."""
    rows = rows_with_sides(subject.bank, "train", texts=subject.adaptor.fusion.reads_texts)
    return fresh_fusion(subject.adaptor, subject.bank, rows, seed=seed)


def cells_of_subject(
    subject: Subject, settings: StudySettings, out: Path, makers: Mapping[str, Callable[[], Arm]], progress: Progress
) -> list[Cell]:
    """Compute the cells of arms on one subject; what is on disk is not computed again.

    Args:
        subject: Bank and adaptor.
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
    return cells_of(places, lambda place: cell_path(out, subject.identity_for(place.arm), place), compute, progress)


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
        InputError: If none is left, or one needs a tuned bank.
    """
    names = settings.chosen(tuned=subject.tuned is not None)
    fusion = subject.adaptor.fusion
    arms = adaptor_arms(
        subject.rows,
        subject.bank,
        fusion,
        fresh=lambda seed: untrained_fusion(subject, seed),
        prior=None if subject.prompts is None else subject.prompts.directions.numpy(),
        precision=settings.precision,
    )
    arms["full"] = lambda: _full_arm(subject, settings)
    if subject.tuned is not None:
        arms |= subject.tuned.arms(subject.rows)
    chosen = {name: arms[name] for name in names if name in arms}
    if not chosen:
        got, fix = "only arms that need prompts", f"There are none, because {subject.without_prompts}"
        raise InputError(sentence("arms", expected="an arm that can run", got=got, fix=fix))
    return chosen


def _full_arm(subject: Subject, settings: StudySettings) -> Arm:
    tuning = replace(FULL, precision=settings.precision)
    return full_arm(subject.rows, subject.bank, subject.adaptor.encoders.load_image(), settings=tuning)


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
    title: str = "Low-data study",
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run a study and write its results and its report; what is on disk already is not computed again.

    Args:
        banks: One, or one per pair of encoders for the backbone grid.
        runs: The run of each bank, in the same order.
        out: Study folder.
        settings: What to run over.
        tuned: For the arms with LoRA: of each bank, in the same order, the bank of the same rows that tuned encoders
            wrote, and the run that tuned them.
        examples: Show pictures and report texts in the report.
        title: Of the report.
        progress: Called with what is being done, its number and how many there are.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: If there is not one run, and one or no tuned bank, per bank, or ``out`` holds another study.
        OverlapError: If a test patient was seen in pre-training.
    """
    if not banks or len(banks) != len(runs):
        fix = "Repeat --adaptor once per bank, in the same order."
        raise InputError(sentence("adaptor", expected=f"{len(banks)} runs, one per bank", got=len(runs), fix=fix))
    if tuned and len(tuned) != len(banks):
        expected, fix = f"{len(banks)} tuned banks, one per bank, or none", "Repeat --tuned-bank in the same order."
        raise InputError(sentence("tuned", expected=expected, got=len(tuned), fix=fix))
    settings = replace(settings, arms=settings.chosen(tuned=bool(tuned)))
    beside: Sequence[tuple[Bank, Path] | None] = tuned or [None] * len(banks)
    subjects = [prepare(bank, run, settings, tuned=pair) for bank, run, pair in zip(banks, runs, beside, strict=True)]
    check_distinct(banks)
    makers = [arms_of(subject, settings) for subject in subjects]
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
        retrieval_examples=retrieval_examples(subjects[0]) if examples else (),
        facts={"title": title, "cautions": _cautions(subjects), **_facts(subjects, settings)},
        no_examples=not examples,
    )
    return results


def _with_precision(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a study with its precision; older ones computed in bf16 and did not say so."""
    return {"precision": "bf16", **config}


def _config(subjects: Sequence[Subject], settings: StudySettings) -> dict[str, object]:
    """Everything that decides a cell, so that no cell of another adaptor or table is taken for this study's."""
    facts = json.loads(json.dumps(asdict(settings)))
    tuned = [subject.tuned.identity for subject in subjects if subject.tuned is not None]
    facts |= {"tuned": tuned} if tuned else {}
    return {"command": "study", "subjects": [subject.identity for subject in subjects], **facts}


def _cautions(subjects: Sequence[Subject]) -> list[str]:
    cautions = []
    for subject in subjects:
        encoder = subject.rows.truth.encoder
        cautions += patient_cautions(subject, encoder)
        if subject.tuned is not None and subject.tuned.seen is None:
            cautions.append(
                f"{encoder}: which patients LoRA was trained on, and whether labels were read, is not known, because "
                "the tuned adaptor is not in its run folder; nobody checked that no test patient is among them."
            )
        if subject.without_prompts:
            retrieval = "" if subject.adaptor.fusion.reads_texts else "no retrieval, "
            lacking = f"{retrieval}no zero-shot and no text-informed probe"
            cautions.append(f"{encoder}: {lacking}, because {subject.without_prompts}")
    return cautions


def _facts(subjects: Sequence[Subject], settings: StudySettings) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for subject in subjects:
        encoders, bank = subject.adaptor.encoders, subject.bank
        trained = trainable_parameters(subject.adaptor.fusion)
        facts[subject.rows.truth.encoder] = {
            **{f"{side} encoder fingerprint": record.fingerprint for side, record in encoders.records.items()},
            "frozen parameters": f"{encoders.parameters_count:,}",
            "trainable parameters of the fusion": f"{trained:,} ({trained / max(1, encoders.parameters_count):.1%})",
            "tokens": f"{bank.info.layout}, {bank.info.dtype}",
            "labelled training images": len(subject.rows.train),
            "training patients": len(set(subject.rows.patients)),
            "test images": len(subject.rows.test),
            "test patients": len(set(subject.rows.truth.patients)),
            "rejected rows": bank.info.rejected,
            **({} if subject.tuned is None else facts_of(subject.tuned)),
        }
    return facts | shared_facts(settings.replicates)
