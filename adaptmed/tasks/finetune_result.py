"""What a fine-tuning leaves behind: its result beside that of the probe it started at, the head, the tuned adaptor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from adaptmed.adaptor.model import trainable_parameters
from adaptmed.cohort.rows import labels_of, names_of, patients_of
from adaptmed.files import write_text_whole
from adaptmed.runs.folder import read_metrics
from adaptmed.tasks.classification.model import ImageClassifier
from adaptmed.tasks.classification.task import Job, Start
from adaptmed.tasks.head_file import HeadFacts, save_head
from adaptmed.tasks.judging import judge

RESULT = "metrics.json"


def result_of(
    job: Job, start: Start, model: ImageClassifier, logits: Float[Tensor, "m logit"], out: Path
) -> dict[str, Any]:
    """Judge the test images, before and after tuning, and say what was trained and which epoch was kept.

    Args:
        job: What was worked on.
        start: Where tuning began.
        model: The tuned classifier.
        logits: Its own of the test images.
        out: Run folder.
    """
    bank, rows = job.bank, job.rows
    lines = read_metrics(out)
    kept = min(lines, key=lambda line: line.get("validate/loss", -line["step"])) if lines else {}
    result = {
        "train_images": len(rows.train),
        "train_patients": len(set(patients_of(bank, rows.train))),
        "patient_column": bank.info.has_patients,
        "patients_of_pretraining_known": rows.known,
        "trainable_parameters": trainable_parameters(model),
        "kept": {name: value for name, value in kept.items() if "/" in name or name in ("epoch", "step")},
        "test": None,
    }
    if len(rows.test):
        patients = patients_of(bank, rows.test)
        truth = labels_of(bank, rows.test), patients, names_of(bank), start.outputs
        result["test"] = {
            "images": len(rows.test),
            "patients": len(set(patients)),
            "patients_seen_in_training": rows.overlap,
            "tuned": judge(start.outputs.probabilities(logits).double().numpy(), *truth),
            "probe": judge(start.test, *truth),
        }
    return result


def save(job: Job, start: Start, model: ImageClassifier, result: Mapping[str, Any], out: Path) -> None:
    """Write the head, the adaptor and, as the sign that all is whole, the result."""
    names, outputs = names_of(job.bank), start.outputs
    facts = HeadFacts(
        names=tuple(names[index] for index in outputs.usable),
        multiclass=outputs.multiclass,
        left_out={names[index]: reason for index, reason in outputs.reasons.items()},
        variant=start.variant,
        width=start.features.shape[1],
        hidden=job.settings.hidden,
    )
    save_head(out, model.head, facts)
    job.adaptor.eval().save_pretrained(out / "adaptor", metrics=_card(result), labels=names)
    write_text_whole(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")


def _card(result: Mapping[str, Any]) -> dict[str, float | int | None]:
    """What the model card says: the mean over labels, beside that of the probe tuning started at."""
    test = result["test"]
    if test is None:
        return dict(result["kept"])
    card = {"test images": test["images"], "test patients": test["patients"]}
    if test["patients_seen_in_training"]:
        card["test patients seen in training (the numbers are too good)"] = test["patients_seen_in_training"]
    for arm in ("tuned", "probe"):
        macro = test[arm]["auroc"]["macro"]
        card[f"test AUROC, {arm}"] = macro["value"]
        card[f"test AUROC, {arm}, 95 % from"] = macro["ci_low"]
        card[f"test AUROC, {arm}, 95 % to"] = macro["ci_high"]
        card[f"test ECE, {arm}"] = test[arm]["ece"]
    return card
