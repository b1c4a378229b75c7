"""What a fine-tuning on pairs leaves behind: its result beside the baselines, the head, the tuned adaptor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptmed.adaptor.model import trainable_parameters
from adaptmed.cohort.rows import patients_of
from adaptmed.files import write_text_whole
from adaptmed.runs.folder import read_metrics
from adaptmed.tasks.pairs.answers import truncated_questions, write_answers
from adaptmed.tasks.pairs.baselines import frozen_heads, shuffled_image
from adaptmed.tasks.pairs.head_file import PairHeadFacts, save_pair_head
from adaptmed.tasks.pairs.judging import answered, beside_answers, right_answers, whom
from adaptmed.tasks.pairs.model import PairClassifier, joint_width, token_widths
from adaptmed.tasks.pairs.settings import ANSWERING
from adaptmed.tasks.pairs.task import PairJob
from adaptmed.tasks.pairs.training import PairTuning, predict

RESULT, REJECTS, ANSWERS = "metrics.json", "rejects.jsonl", "answers.csv"
ONE_PATIENT = "all test pairs are of one patient"


def result_of(job: PairJob, tuning: PairTuning, out: Path, *, device: str) -> dict[str, Any]:
    """Judge the test pairs, train and judge the baselines, and say what was trained and which epoch was kept.

    Args:
        job: What was worked on.
        tuning: With the tuned model.
        out: Run folder; of answers every single one is written there.
        device: Lightning's accelerator.
    """
    bank, goal, choices = job.bank, job.goal, job.choices
    rows, lines = goal.rows, read_metrics(out)
    kept = min(lines, key=lambda line: line.get("validate/loss", -line["step"]))
    result: dict[str, Any] = {
        "task": choices.task,
        "train_pairs": len(rows.train),
        "train_patients": len(set(patients_of(bank, rows.train))),
        "left_out_rows": len(goal.rejects),
        "outputs": len(goal.names),
        "patient_column": bank.info.has_patients,
        "patients_of_pretraining_known": rows.known,
        "trainable_parameters": trainable_parameters(tuning.model),
        "kept": {name: value for name, value in kept.items() if "/" in name or name in ("epoch", "step")},
        "test": None,
    }
    if choices.task == ANSWERING:
        result |= {"answers_from": choices.answers_from, "truncated_questions": truncated_questions(bank)}
    if len(rows.test):
        result["test"] = _test(job, tuning, out, device=device)
    return result


def save(job: PairJob, tuning: PairTuning, result: Mapping[str, Any], out: Path) -> None:
    """Write the head, the adaptor and, as the sign that all is whole, the result."""
    goal, answering = job.goal, job.choices.task == ANSWERING
    assert isinstance(tuning.model, PairClassifier)  # the job built it
    save_pair_head(out, tuning.model, _facts(job))
    labels = () if answering else goal.names
    job.adaptor.eval().save_pretrained(out / "adaptor", metrics=_card(result, answering=answering), labels=labels)
    write_text_whole(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")


def _test(job: PairJob, tuning: PairTuning, out: Path, *, device: str) -> dict[str, Any]:
    bank, goal, choices = job.bank, job.goal, job.choices
    rows, facts = goal.rows.test, _facts(job)
    logits = predict(tuning, job.reading.pairs(rows), device)
    found = whom(bank, rows, overlap=goal.rows.overlap) | {"tuned": goal.judge(logits, rows)}
    swapped = shuffled_image(tuning, job.reading, rows, seed=choices.seed, device=device)
    found["shuffled_image"] = {"reason": ONE_PATIENT} if swapped is None else goal.judge(swapped, rows)
    heads = frozen_heads(bank, goal, choices, hidden=joint_width(job.adaptor.fusion), device=device)
    found |= {name: goal.judge(other, rows) for name, other in heads.items()}
    if choices.task == ANSWERING:
        found |= beside_answers(bank, facts.vocabulary, rows)
        every = {"tuned": logits, **({} if swapped is None else {"shuffled_image": swapped}), **heads}
        said = {name: answered(facts.vocabulary, some) for name, some in every.items()}
        right = right_answers(bank, facts.vocabulary, logits.argmax(dim=1).numpy(), rows)
        write_answers(out / ANSWERS, bank, rows, said, right.tolist())
    return found


def _facts(job: PairJob) -> PairHeadFacts:
    goal = job.goal
    width = joint_width(job.adaptor.fusion)
    beside = token_widths(job.adaptor.fusion) if job.choices.frozen_beside else None
    return PairHeadFacts(task=job.choices.task, width=width, names=goal.names, beside=beside, **goal.facts)


def _card(result: Mapping[str, Any], *, answering: bool) -> dict[str, float | int | None]:
    """What the model card says: the tuned model beside what must stand beside it."""
    test = result["test"]
    if test is None:
        return dict(result["kept"])
    card = {"test pairs": test["pairs"], "test patients": test["patients"]}
    if test["patients_seen_in_training"]:
        card["test patients seen in training (the numbers are too good)"] = test["patients_seen_in_training"]
    arms = [name for name, found in test.items() if isinstance(found, dict) and "reason" not in found]
    for arm in arms:
        found = test[arm]["overall"] if answering else test[arm]["auroc"]["macro"]
        name = f"test {'accuracy' if answering else 'AUROC'}, {arm.replace('_', ' ')}"
        card |= {name: found["value"], f"{name}, 95 % from": found["ci_low"], f"{name}, 95 % to": found["ci_high"]}
    return card
