"""A finished run, judged again on the test split of another bank."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptmed.adaptor.features import adaptor_variants
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import require_unseen
from adaptmed.cohort.rows import labelled_rows, labels_of, names_of, patients_of, with_image
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole
from adaptmed.heads.outputs import Outputs
from adaptmed.objectives.supervised import answer_bce
from adaptmed.runs.folder import read_config, read_seen
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.tasks.head_file import load_head
from adaptmed.tasks.judging import judge
from adaptmed.tasks.pairs.baselines import shuffled_image
from adaptmed.tasks.pairs.goal import judged_rows
from adaptmed.tasks.pairs.head_file import PairHeadFacts, load_pair_head
from adaptmed.tasks.pairs.judging import beside_answers, judge_answers, judge_labels, whom
from adaptmed.tasks.pairs.model import PairClassifier
from adaptmed.tasks.pairs.reading import PairReading
from adaptmed.tasks.pairs.result import ONE_PATIENT, RESULT
from adaptmed.tasks.pairs.settings import ANSWERING, CLASSIFICATION
from adaptmed.tasks.pairs.training import PairTuning, predict
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import Precision


def evaluate(
    run: Path,
    bank: Bank,
    *,
    out: Path | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    allow_overlap: bool = False,
) -> dict[str, Any]:
    """Judge a finished run of ``adaptmed finetune`` on the test split of a bank.

    Args:
        run: Run folder of a fine-tuning: answering, image-text-classification or classification.
        bank: Tokens of the same encoders, with the columns the task needs.
        out: File to write; ``None`` is ``evaluation-<name of the bank>.json`` in the run folder.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
        precision: Of the forward pass.
        allow_overlap: Go on although test patients were seen; the result says so.

    Returns:
        What the file holds: ``task``, ``run``, ``bank`` and under ``test`` the scores of the ``tuned`` model; of pairs
        those with a ``shuffled_image``, of answers those of the ``majority`` answer as well.

    Raises:
        InputError: The run is not a finished one of these tasks, or the bank has Tokens of other encoders or nothing to
            judge.
        OverlapError: Test patients were seen.
    """
    task = _task_of(run)
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    check_tokens(bank, adaptor, run, texts=task != "classification")
    rows = _JUDGED[task](bank)
    if not len(rows):
        fix = "Give a bank whose table has a test split with what the task needs."
        raise InputError(sentence(str(bank.folder), expected="a test row to judge", got="none", fix=fix))
    seen = read_seen(run)
    overlap = require_unseen(bank, with_image(bank, "test"), seen or (), allow_overlap=allow_overlap)
    found = {
        "task": task,
        "run": str(run.resolve()),
        "bank": str(bank.folder.resolve()),
        "patient_column": bank.info.has_patients,
        "patients_of_pretraining_known": seen is not None,
    }
    if task == "classification":
        scores = _images(run, adaptor, bank, rows)
    else:
        scores = _pairs(run, adaptor, bank, rows, device=device, precision=precision)
    found["test"] = whom(bank, rows, overlap=overlap) | scores
    write_text_whole(out or target_of(run, bank), json.dumps(found, indent=2, allow_nan=False) + "\n")
    return found


def target_of(run: Path, bank: Bank) -> Path:
    """The file an evaluation is written to when none was named."""
    return run / f"evaluation-{bank.folder.resolve().name}.json"


def _task_of(run: Path) -> str:
    config = read_config(run) or {}
    task = config.get("task", "none") if config.get("command") == "finetune" else config.get("command", "none")
    if task not in _JUDGED or not (run / RESULT).exists():
        got = f"one of {task}" if task not in _JUDGED else "one that has not ended"
        expected = f"a finished run of `adaptmed finetune` for {', '.join(_JUDGED)}"
        fix = _FIXES.get(task, "Name its run folder.")
        raise InputError(sentence(str(run), expected=expected, got=got, fix=fix))
    return task


def _pairs(
    run: Path, adaptor: Adaptor, bank: Bank, rows: np.ndarray, *, device: str, precision: Precision
) -> dict[str, Any]:
    head, beside, facts = load_pair_head(run)
    judged = _judge_of(bank, facts)
    model = PairClassifier(adaptor.fusion, head, beside=beside)
    task = PairTuning(model, FinetuneSettings(precision=precision), answer_bce, seed=0, items=1)
    reading = PairReading(bank)
    found = {"tuned": judged(predict(task, reading.pairs(rows), device), rows)}
    swapped = shuffled_image(task, reading, rows, seed=0, device=device)
    found["shuffled_image"] = {"reason": ONE_PATIENT} if swapped is None else judged(swapped, rows)
    if facts.task == ANSWERING:
        found |= beside_answers(bank, facts.vocabulary, rows)
    return found


def _judge_of(bank: Bank, facts: PairHeadFacts) -> Callable[[torch.Tensor, np.ndarray], dict[str, Any]]:
    if facts.task == ANSWERING:
        return lambda logits, rows: judge_answers(bank, facts.vocabulary, logits, rows)
    order = _order(bank, facts.names, multiclass=facts.multiclass)
    return lambda logits, rows: judge_labels(bank, facts.outputs(names_of(bank)), logits[:, order], rows)


def _images(run: Path, adaptor: Adaptor, bank: Bank, rows: np.ndarray) -> dict[str, Any]:
    head, facts = load_head(run)
    order, names = _order(bank, facts.names, multiclass=facts.multiclass), names_of(bank)
    unknown = {n: facts.left_out.get(name, "not learnt") for n, name in enumerate(names) if name not in facts.names}
    outputs = Outputs(len(names), facts.multiclass, unknown)
    features = torch.from_numpy(adaptor_variants(adaptor.fusion, bank, rows)[facts.variant])
    with torch.inference_mode():
        probabilities = outputs.probabilities(head(features).float()[:, order]).double().numpy()
    return {"tuned": judge(probabilities, labels_of(bank, rows), patients_of(bank, rows), names, outputs)}


def _order(bank: Bank, names: tuple[str, ...], *, multiclass: bool) -> list[int]:
    """Where the logits of a head stand in the order of a bank's labels or classes.

    Raises:
        InputError: The bank has labels where the head has classes or the reverse, or lacks one of them.
    """
    there = names_of(bank)
    missing = [name for name in names if name not in there]
    if missing or multiclass != (bank.info.class_column is not None):
        kind = "the class column" if multiclass else "the label columns"
        fix = "Embed with the --labels or the --class-column that the run was trained on."
        expected = f"{kind} the head was trained on: {', '.join(names)}"
        raise InputError(sentence(str(bank.folder), expected=expected, got=", ".join(there) or "none", fix=fix))
    return [names.index(name) for name in there if name in names]


_JUDGED: dict[str, Callable[[Bank], np.ndarray]] = {
    ANSWERING: lambda bank: judged_rows(bank, ANSWERING),
    CLASSIFICATION: lambda bank: judged_rows(bank, CLASSIFICATION),
    "classification": lambda bank: labelled_rows(bank, "test"),
}
_FIXES = dict.fromkeys(("pretrain", "calibrate"), "Pass --task retrieval, or tune it first with `adaptmed finetune`.")
