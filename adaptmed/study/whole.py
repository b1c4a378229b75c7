"""The whole study: every bank with its run, judged, written to ``results.json`` and ``report.html``."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.model import trainable_parameters
from adaptmed.saving import library_versions
from adaptmed.study.pictures import maps_of, retrieval_examples
from adaptmed.study.report import write_report
from adaptmed.study.run import Progress, StudySettings, Subject, prepare, results_of, run_cells
from adaptmed.study.statistics import write_json
from adaptmed.tasks.run_folder import open_run


def study(
    banks: Sequence[Bank],
    runs: Sequence[Path],
    out: Path,
    *,
    settings: StudySettings,
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
        examples: Show pictures and report texts in the report.
        title: Of the report.
        progress: Called with what is being done, its number and how many there are.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: If there is not one run per bank, or ``out`` holds another study.
        OverlapError: If a test patient was seen in pre-training.
    """
    if not banks or len(banks) != len(runs):
        fix = "Repeat --adaptor once per bank, in the same order."
        raise InputError(sentence("adaptor", expected=f"{len(banks)} runs, one per bank", got=len(runs), fix=fix))
    subjects = [prepare(bank, run, settings) for bank, run in zip(banks, runs, strict=True)]
    open_run(out, _config(subjects, runs, settings))
    results: dict[str, Any] = {}
    for subject in subjects:
        found = results_of(subject, run_cells(subject, settings, out, progress), settings)
        for name, rows in found.items():
            results.setdefault(name, []).extend(rows)
    results["settings"] = {"fractions": list(settings.fractions), "seeds": settings.seeds, "arms": list(settings.arms)}
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


def _config(subjects: Sequence[Subject], runs: Sequence[Path], settings: StudySettings) -> dict[str, object]:
    tokens = [
        [stored.token_key for stored in (subject.bank.info.images, subject.bank.info.texts) if stored is not None]
        for subject in subjects
    ]
    weights = [run.resolve() for run in runs]
    facts = json.loads(json.dumps(asdict(settings)))
    return {"command": "study", "tokens": tokens, "runs": [str(path) for path in weights], **facts}


def _cautions(subjects: Sequence[Subject]) -> list[str]:
    cautions = []
    for subject in subjects:
        encoder = subject.rows.truth.encoder
        if subject.overlap:
            cautions.append(
                f"{encoder}: {subject.overlap} test patients were seen in training; the numbers are too good."
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
        }
    facts["intervals"] = {
        "method": "95 %, hierarchical bootstrap: seeds outside, patients inside; differences are paired",
        "replicates": settings.replicates,
    }
    facts["versions"] = library_versions()
    return facts
