"""How well pairs are answered or classified on held-out patients, with intervals over patients."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.cohort.rows import labels_of, names_of, patients_of
from adaptmed.heads.outputs import Outputs
from adaptmed.metrics.classification import weighted_accuracy, weighted_macro_f1
from adaptmed.metrics.uncertainty import entry, patient_weights
from adaptmed.tasks.judging import judge
from adaptmed.tasks.pairs.answers import AnswerVocabulary, answers_of, closed_of

Rows = Int[np.ndarray, " n"]
_REPLICATES = 1000


def judge_answers(bank: Bank, vocabulary: AnswerVocabulary, logits: Float[Tensor, "n answer"], rows: Rows) -> Any:
    """Judge the likeliest answers.

    Args:
        bank: With the right ones.
        vocabulary: What the logits stand for.
        logits: One per answer.
        rows: Row numbers they are of.

    Returns:
        As :func:`accuracies`.
    """
    return accuracies(bank, rows, right_answers(bank, vocabulary, logits.argmax(dim=1).numpy(), rows))


def right_answers(
    bank: Bank, vocabulary: AnswerVocabulary, predicted: Int[np.ndarray, " n"], rows: Rows
) -> Bool[np.ndarray, " n"]:
    """Tell which answers are right; to a question whose answer is not in the vocabulary none is."""
    return vocabulary.numbers(answers_of(bank, rows)).numpy() == predicted


def answered(vocabulary: AnswerVocabulary, logits: Float[Tensor, "n answer"]) -> list[str]:
    """The likeliest answer to every question."""
    return [vocabulary.answers[number] for number in logits.argmax(dim=1).tolist()]


def beside_answers(bank: Bank, vocabulary: AnswerVocabulary, rows: Rows) -> dict[str, Any]:
    """Score the ``majority`` answer, and count the answers that no model of this vocabulary can give."""
    right = vocabulary.numbers(answers_of(bank, rows)).numpy()
    often = vocabulary.answers.index(vocabulary.majority)
    return {"answers_outside_vocabulary": int((right < 0).sum()), "majority": accuracies(bank, rows, right == often)}


def accuracies(bank: Bank, rows: Rows, correct: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Share of right answers ``overall`` and to ``open`` and ``closed`` questions.

    Args:
        bank: The rows.
        rows: Row numbers.
        correct: Whether each was answered rightly.

    Returns:
        For each of the three ``value`` with ``ci_low`` and ``ci_high`` (95 %), or ``None`` with its ``reason``.
    """
    closed = closed_of(bank, rows)
    weights = _weights(patients_of(bank, rows))
    scores = np.stack([~correct, correct], axis=1).astype(float)
    found = {}
    for name, asked in {"overall": np.ones(len(rows), dtype=bool), "open": ~closed, "closed": closed}.items():
        samples = weighted_accuracy(scores, np.where(asked, 1, -1), weights) if asked.any() else None
        found[name] = entry(samples, None if asked.any() else f"no {name} question in the test split")
    return found


def judge_labels(bank: Bank, outputs: Outputs, logits: Float[Tensor, "n logit"], rows: Rows) -> dict[str, Any]:
    """Judge labels or classes as ``judge`` does; of classes accuracy and macro F1 as well.

    Args:
        bank: With the right ones.
        outputs: What the logits stand for.
        logits: One per usable output.
        rows: Row numbers they are of.
    """
    probabilities = outputs.probabilities(logits).double().numpy()
    labels, patients = labels_of(bank, rows), patients_of(bank, rows)
    found = judge(probabilities, labels, patients, names_of(bank), outputs)
    if outputs.multiclass:
        weights = _weights(patients)
        found["accuracy"] = entry(weighted_accuracy(probabilities, labels, weights), None)
        found["macro_f1"] = entry(weighted_macro_f1(probabilities, labels, weights), None)
    return found


def _weights(patients: np.ndarray) -> Float[np.ndarray, "replicate n"]:
    return np.vstack([np.ones((1, len(patients))), patient_weights(patients, replicates=_REPLICATES)])
