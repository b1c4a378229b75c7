"""The whole study: every bank with its run, judged, written to ``results.json`` and ``report.html``."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adaptmed.adaptor.model import trainable_parameters
from adaptmed.adaptor.saving import library_versions
from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.runs.folder import open_run
from adaptmed.study.checks import check_distinct
from adaptmed.study.pictures import maps_of, retrieval_examples
from adaptmed.study.report import write_report
from adaptmed.study.run import Progress, StudySettings, Subject, arms_of, cells_of, prepare, results_of
from adaptmed.study.statistics import write_json
from adaptmed.study.tuned import facts_of


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
    open_run(out, _config(subjects, settings))
    results: dict[str, Any] = {}
    for subject, arms in zip(subjects, makers, strict=True):
        found = results_of(subject, cells_of(subject, settings, out, arms, progress), settings)
        for name, rows in found.items():
            results.setdefault(name, []).extend(rows)
    results["settings"] = {
        "fractions": list(settings.fractions),
        "seeds": settings.seeds,
        "arms": list(settings.arms or ()),
        "allow_overlap": settings.allow_overlap,
        "overlapping_test_patients": sum(subject.overlap for subject in subjects),
    }
    write_json(out / "results.json", results)
    write_report(
        out / "report.html",
        results=results,
        maps=maps_of(subjects[0]),
        retrieval_examples=retrieval_examples(subjects[0]) if examples else (),
        facts={"title": title, "cautions": _cautions(subjects), **_facts(subjects, settings)},
        no_examples=not examples,
    )
    return results


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
        if subject.overlap:
            cautions.append(
                f"{encoder}: {subject.overlap} test patients were seen in training; the numbers are too good."
            )
        if not subject.seen_known:
            cautions.append(
                f"{encoder}: which patients the adaptor was trained on is not known, because it is not in its run "
                "folder; nobody checked that no test patient is among them."
            )
        if subject.tuned is not None and subject.tuned.seen is None:
            cautions.append(
                f"{encoder}: which patients LoRA was trained on, and whether labels were read, is not known, because "
                "the tuned adaptor is not in its run folder; nobody checked that no test patient is among them."
            )
        if not subject.bank.info.has_patients:
            cautions.append(f"{encoder}: the table has no patient column, every row is taken as its own patient.")
        if subject.without_prompts:
            cautions.append(f"{encoder}: no zero-shot and no text-informed probe, because {subject.without_prompts}")
    return cautions


def _facts(subjects: Sequence[Subject], settings: StudySettings) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for subject in subjects:
        encoders, bank = subject.adaptor.encoders, subject.bank
        trained = trainable_parameters(subject.adaptor.fusion)
        facts[subject.rows.truth.encoder] = {
            "image encoder fingerprint": encoders.image_record.fingerprint,
            "text encoder fingerprint": encoders.text_record.fingerprint,
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
    facts["intervals"] = {
        "method": "95 %, hierarchical bootstrap: seeds outside, patients inside; differences are paired",
        "replicates": settings.replicates,
    }
    facts["versions"] = library_versions()
    return facts
