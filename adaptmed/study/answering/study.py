"""The whole study of answers: arms × fractions × seeds, written to ``results.json`` and ``report.html``."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.cohort.rows import patients_of
from adaptmed.files import write_json, write_text_whole
from adaptmed.runs.folder import open_run
from adaptmed.study.answering.arms import Arm, arms_of
from adaptmed.study.answering.examples import SHOWN, examples_of, shown_questions
from adaptmed.study.answering.settings import BASELINES, AnsweringStudy
from adaptmed.study.answering.subject import Subject, open_subject
from adaptmed.study.cautions import patient_cautions, shared_facts
from adaptmed.study.cells import Place, Progress, cell_path, cells_of, places_of
from adaptmed.study.report.report import Shown, write_report
from adaptmed.study.statistics import Cell, judge
from adaptmed.tasks.pairs.answers import AnswerVocabulary, truncated_questions
from adaptmed.tasks.pairs.goal import Goal, goal_of
from adaptmed.tasks.pairs.judging import right_answers

BEST = 5
TITLE = "Low-data study of answers to questions"


def study_answering(
    bank: Bank,
    runs: Sequence[Path],
    out: Path,
    *,
    settings: AnsweringStudy,
    examples: bool = True,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run a study and write its results and its report; what is on disk already is not computed again.

    Args:
        bank: With questions and answers.
        runs: Any number of pre-trained runs on Tokens of its encoders, of different methods; each is an arm.
        out: Study folder.
        settings: What to run over.
        examples: Show pictures with questions and answers in the report.
        progress: Called with what is being done, its number and how many there are.

    Returns:
        What ``results.json`` holds: ``records``, ``summaries``, ``comparisons``, ``settings``.

    Raises:
        InputError: An arm cannot run, a fraction has fewer than two answers, or ``out`` holds
            another study.
        OverlapError: A test patient stands in another split or was seen by a run.
    """
    subject = open_subject(bank, runs, settings)
    able = arms_of(bank, subject.runs, "auto")
    arms = {name: able[name] for name in settings.chosen(tuple(able))}
    open_run(out, _config(subject, arms, settings))
    shown = shown_questions(subject.truth, SHOWN)
    path_of = partial(cell_path, out, subject.identity)
    compute = partial(_compute, subject, arms, settings, path_of)
    cells = cells_of(places_of(list(arms), settings.fractions, settings.seeds), path_of, compute, progress)
    results = _results(subject, cells, settings)
    write_json(out / "results.json", results, indent=1)
    cautions = patient_cautions(subject, subject.truth.encoder)
    predicted = {arm: _best_of(path_of, arm, settings) for arm in arms}
    write_report(
        out / "report.html",
        results=results,
        shown=Shown(answers=examples_of(bank, subject.test, shown, predicted) if examples else ()),
        facts={"title": TITLE, "cautions": cautions, **_facts(subject, settings)},
        no_examples=not examples,
    )
    return results


def _compute(
    subject: Subject,
    arms: Mapping[str, Arm],
    settings: AnsweringStudy,
    path_of: Callable[[Place], Path],
    place: Place,
) -> Cell:
    """Train an arm at one place, and keep its five best answers before the cell is written."""
    started = time.monotonic()
    choices = replace(settings.training, fraction=place.fraction, seed=place.seed, allow_overlap=settings.allow_overlap)
    goal = _without_validation(goal_of(subject.bank, choices, before=subject.seen))
    answered = arms[place.arm](goal, choices)
    logits = answered.logits
    seconds = round(time.monotonic() - started, 3)
    write_text_whole(_answers_path(path_of(place)), json.dumps(_best(goal, logits)))
    vocabulary = AnswerVocabulary(goal.names, goal.facts["majority"])
    right = right_answers(subject.bank, vocabulary, logits.argmax(dim=1).numpy(), subject.test)
    return Cell(
        arm=place.arm,
        fraction=place.fraction,
        seed=place.seed,
        values=np.repeat(right[:, None].astype(np.float64), len(subject.truth.names), axis=1),
        reasons={},
        n_train=len(goal.rows.train),
        n_positive={},
        trainable_parameters=answered.parameters,
        seconds=seconds,
    )


def _without_validation(goal: Goal) -> Goal:
    """Answers of ``validate`` lie outside the fraction, so that no epoch may be chosen by them."""
    return replace(goal, rows=replace(goal.rows, validate=goal.rows.validate[:0]))


def _best(goal: Goal, logits: Float[Tensor, "n answer"]) -> list[list[str]]:
    best = logits.topk(min(BEST, len(goal.names)), dim=1)
    return [
        [goal.names[number] for number, logit in zip(numbers, values, strict=True) if logit > -np.inf]
        for numbers, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _answers_path(cell: Path) -> Path:
    return cell.with_suffix(".json")


def _best_of(path_of: Callable[[Place], Path], arm: str, settings: AnsweringStudy) -> list[list[str]]:
    """What an arm answered at the largest fraction, seed 0."""
    return json.loads(_answers_path(path_of(Place(arm, max(settings.fractions), 0))).read_text())


def _results(subject: Subject, cells: Sequence[Cell], settings: AnsweringStudy) -> dict[str, Any]:
    judged = judge(cells, subject.truth, replicates=settings.replicates)
    there = {cell.arm for cell in cells}
    ran = {"task": "answering", "fractions": list(settings.fractions), "seeds": settings.seeds}
    return {
        "records": judged.records(),
        "summaries": judged.summaries(),
        "comparisons": [row for arm in BASELINES if arm in there for row in judged.comparisons(arm)],
        "settings": settings.as_json() | ran | {"overlapping_test_patients": subject.overlap},
    }


def _config(subject: Subject, arms: Mapping[str, Arm], settings: AnsweringStudy) -> dict[str, object]:
    """Everything that decides a cell, so that no cell of another adaptor or table is taken for this study's."""
    ran = {"fractions": list(settings.fractions), "seeds": settings.seeds, "arms": list(arms)}
    return {"command": "study", "task": "answering", "subjects": [subject.identity], **settings.as_json(), **ran}


def _facts(subject: Subject, settings: AnsweringStudy) -> dict[str, Any]:
    bank, training = subject.bank, settings.training
    train: Int[np.ndarray, " n"] = bank.subset("train")
    return {
        subject.truth.encoder: {
            "tokens": f"{bank.info.layout}, {bank.info.dtype}",
            "training questions": len(train),
            "training patients": len(set(patients_of(bank, train))),
            "test questions": len(subject.test),
            "test patients": len(set(subject.truth.patients)),
            "questions cut by the text encoder": truncated_questions(bank),
            "notes of the table": " ".join(bank.info.notes) or "none",
        },
        "training": {
            "epochs of every trained arm": training.settings.epochs,
            "batch": training.settings.batch_size,
            "rates of head and fusion": [training.settings.learning_rate, training.settings.fusion_learning_rate],
            "dropout before the last layer": training.dropout,
            "answers by kind of question": training.kinds,
            "epoch": "the last; no answer outside the fraction is read",
        },
    } | shared_facts(settings.replicates)
