"""The results of one bank under study, and what a report says beside them: cautions, and what the numbers rest on."""

from collections.abc import Collection, Sequence
from typing import Any

from adaptmed.adaptor.model import trainable_parameters
from adaptmed.study.cautions import patient_cautions, shared_facts
from adaptmed.study.classification.arms import untrained_fusion
from adaptmed.study.classification.lora_tuned import LORA_TUNED, RANK
from adaptmed.study.classification.settings import BASELINES, TUNED_ARMS, StudySettings
from adaptmed.study.classification.subject import Subject
from adaptmed.study.classification.tuned import facts_of
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


def cautions_of(subjects: Sequence[Subject]) -> list[str]:
    """What a reader must know of each subject, in sentences."""
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
            retrieves = subject.adaptor is not None and subject.adaptor.fusion.reads_texts
            lacking = f"{'' if retrieves else 'no retrieval, '}no zero-shot and no text-informed probe"
            cautions.append(f"{encoder}: {lacking}, because {subject.without_prompts}")
    return cautions


def facts_of_study(subjects: Sequence[Subject], settings: StudySettings) -> dict[str, Any]:
    """What the numbers of each subject rest on, by its encoders, and what all of them share."""
    facts: dict[str, Any] = {}
    for subject in subjects:
        encoders, bank = subject.encoders, subject.bank
        facts[subject.rows.truth.encoder] = {
            **{f"{side} encoder fingerprint": record.fingerprint for side, record in encoders.records.items()},
            "frozen parameters": f"{encoders.parameters_count:,}",
            **_fusion(subject),
            "tokens": f"{bank.info.layout}, {bank.info.dtype}",
            "labelled training images": len(subject.rows.train),
            "training patients": len(set(subject.rows.patients)),
            "test images": len(subject.rows.test),
            "test patients": len(set(subject.rows.truth.patients)),
            "rejected rows": bank.info.rejected,
            **({} if subject.tuned is None else facts_of(subject.tuned)),
        }
    if "lora-tuned" in (settings.arms or ()):
        facts["lora-tuned"] = _lora()
    return facts | shared_facts(settings.replicates)


def _lora() -> dict[str, str]:
    tuning = LORA_TUNED
    return {
        "rank": f"{RANK}, in the attention layers, or in the others of an encoder without attention",
        "steps": f"{tuning.epochs} epochs, at least {tuning.least_steps} steps, at most {tuning.most_steps:,}",
        "images per step": f"{tuning.batch_size} or more, changed at random",
        "peak learning rates": f"LoRA {tuning.encoder_learning_rate:g}, head {tuning.learning_rate:g}",
    }


def _fusion(subject: Subject) -> dict[str, str]:
    if subject.adaptor is None:
        return {}
    trained, frozen = trainable_parameters(subject.adaptor.fusion), subject.encoders.parameters_count
    return {"trainable parameters of the fusion": f"{trained:,} ({trained / max(1, frozen):.1%})"}
