"""What a fine-tuning leaves behind: metrics.json beside the head and the tuned adaptor, whatever was learnt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from adaptmed.adaptor.model import trainable_parameters
from adaptmed.bank import Bank
from adaptmed.cohort.rows import patients_of
from adaptmed.files import write_json
from adaptmed.runs.folder import read_metrics
from adaptmed.tasks.task import Job, Noun, Task

RESULT, REJECTS = "metrics.json", "rejects.jsonl"
SEEN = "test patients seen in training (the numbers are too good)"


def result_of(task: Task, bank: Bank, job: Job, out: Path, *, device: str) -> dict[str, Any]:
    """Judge the test rows once, and say what was trained and which epoch was kept.

    Args:
        task: What was learnt.
        bank: With the rows.
        job: What was worked on.
        out: Run folder.
        device: Lightning's accelerator.
    """
    rows, lines = job.division(), read_metrics(out)
    kept = min(lines, key=lambda line: line.get("validate/loss", -line["step"])) if lines else {}
    result = {
        f"train_{task.noun}": len(rows.train),
        "train_patients": len(set(patients_of(bank, rows.train))),
        "patient_column": bank.info.has_patients,
        "patients_of_pretraining_known": rows.known,
        "trainable_parameters": trainable_parameters(job.network()),
        "kept": {name: value for name, value in kept.items() if "/" in name or name in ("epoch", "step")},
        "test": None,
        **job.facts(),
    }
    if len(rows.test):
        counts = test_counts(bank, rows.test, noun=task.noun, overlap=rows.overlap)
        result["test"] = counts | job.judge(out, device)
    return result


def test_counts(bank: Bank, rows: Int[np.ndarray, " n"], *, noun: Noun, overlap: int) -> dict[str, Any]:
    """Count what is judged: images or pairs, patients, and patients that were seen in training."""
    patients = len(set(patients_of(bank, rows)))
    return {noun: len(rows), "patients": patients, "patients_seen_in_training": overlap}


def save(task: Task, job: Job, result: Mapping[str, Any], out: Path) -> None:
    """Write the head, the adaptor and, as the sign that the run is complete, the result."""
    job.save_head(out)
    job.adaptor.eval().save_pretrained(out / "adaptor", metrics=_card(task, result), labels=job.label_names())
    write_json(out / RESULT, result)


def _card(task: Task, result: Mapping[str, Any]) -> dict[str, float | int | None]:
    test = result["test"]
    if test is None:
        return dict(result["kept"])
    card = {f"test {task.noun}": test[task.noun], "test patients": test["patients"]}
    if test["patients_seen_in_training"]:
        card[SEEN] = test["patients_seen_in_training"]
    return card | task.card(test)
