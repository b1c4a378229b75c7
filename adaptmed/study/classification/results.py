"""The results of one bank under study: cells judged and compared, and what an adaptor does without labels."""

from collections.abc import Collection, Sequence
from typing import Any

from adaptmed.study.classification.arms import untrained_fusion
from adaptmed.study.classification.settings import BASELINES, TUNED_ARMS, StudySettings
from adaptmed.study.classification.subject import Subject
from adaptmed.study.classification.zero_shot import retrieval_of, zero_shot_cell
from adaptmed.study.statistics import Cell, Judgement, judge

Records = list[dict[str, Any]]


def results_of(subject: Subject, cells: Sequence[Cell], settings: StudySettings) -> dict[str, Records]:
    """Judge the cells, and the adaptor's zero-shot classification and retrieval, on the test split.

    Args:
        subject: The bank under study.
        cells: Of all its arms.
        settings: The study's.
    """
    arms = {cell.arm for cell in cells}
    judged = judge(cells, subject.rows.truth, replicates=settings.replicates)
    return {
        "records": judged.records(),
        "summaries": judged.summaries(),
        "comparisons": _comparisons(judged, arms),
        "retrieval": _retrieval(subject, arms, settings.replicates),
        "zero_shot": _zero_shot(subject, settings.replicates),
    }


def _comparisons(judged: Judgement, arms: Collection[str]) -> Records:
    """Every arm beside the baselines, and beside the adaptor those that it is set against."""
    found = [row for arm in BASELINES if arm in arms for row in judged.comparisons(arm)]
    rivals = {"lora-tuned", *(TUNED_ARMS if "adaptor+lora" in arms else ())}
    if "adaptor" in arms:
        found += [row for row in judged.comparisons("adaptor") if row["arm"] in rivals]
    return found


def _zero_shot(subject: Subject, replicates: int) -> Records:
    if subject.adaptor is None or subject.prompts is None:
        return []
    cell = zero_shot_cell(subject.adaptor.fusion, subject.bank, subject.rows, subject.prompts)
    return judge([cell], subject.rows.truth, replicates=replicates).records()


def _retrieval(subject: Subject, arms: Collection[str], replicates: int) -> Records:
    found: Records = []
    adaptor, tuned = subject.adaptor, subject.tuned
    if adaptor is not None:
        fusions = {"adaptor": adaptor.fusion, "adaptor-untrained": untrained_fusion(adaptor, subject.bank, 0)}
        found += retrieval_of(fusions, subject.bank, subject.rows, replicates=replicates)
    if tuned is not None and "adaptor+lora" in arms:
        fusions = {"adaptor+lora": tuned.adaptor.fusion}
        found += retrieval_of(fusions, tuned.bank, subject.rows, replicates=replicates)
    return found
