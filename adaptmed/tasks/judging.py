"""How well a classifier does on held-out images: AUROC with intervals over patients, and calibration beside it."""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from adaptmed.bank import Bank
from adaptmed.cohort.rows import names_of
from adaptmed.errors import InputError, sentence
from adaptmed.heads.outputs import Outputs
from adaptmed.metrics.classification import expected_calibration_error, mean_of_defined, weighted_auroc
from adaptmed.metrics.uncertainty import entry, patient_weights

_BLOCK = 200  # replicates at a time


def judge(
    probabilities: Float[np.ndarray, "n output"],
    labels: Shaped[np.ndarray, "n *label"],
    patients: Shaped[np.ndarray, " n"],
    names: tuple[str, ...],
    outputs: Outputs,
    *,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Judge predictions as a study does: the same draws of patients, and the mean over the labels that are defined.

    Args:
        probabilities: One column per label or class.
        labels: ``(n, label)`` of 0, 1 and NaN, or ``(n,)`` class numbers with -1.
        patients: The patient of each row, the unit of the bootstrap.
        names: Of the columns.
        outputs: Which of them were learnt, and why the others were not.
        replicates: Bootstrap replicates.

    Returns:
        ``auroc``: for each name under ``labels``, and for their mean under ``macro``, the value with ``ci_low`` and
        ``ci_high`` (95 %), or ``None`` with its reason; of classes one against the rest. ``ece``: the mean over labels,
        or of the likeliest class. JSON values.
    """
    members = labels
    if outputs.multiclass:
        members = np.where(labels[:, None] >= 0, labels[:, None] == np.arange(len(names)), np.nan)
    weights = np.vstack([np.ones((1, len(labels))), patient_weights(patients, replicates=replicates)])
    samples: dict[str, Float[np.ndarray, " replicate"]] = {}
    found: dict[str, Any] = {}
    for number, name in enumerate(names):
        reason = outputs.reasons.get(number) or _one_sided(members[:, number])
        if reason is None:
            blocks = np.array_split(weights, -(-len(weights) // _BLOCK))
            parts = [weighted_auroc(probabilities[:, number], members[:, number], block) for block in blocks]
            samples[name] = np.concatenate(parts)
        found[name] = entry(samples.get(name), reason)
    macro = mean_of_defined(np.stack(list(samples.values()))) if samples else None
    return {
        "auroc": {"labels": found, "macro": entry(macro, None if samples else "no label is defined")},
        "ece": _calibration(probabilities, labels, outputs),
    }


def order_of(bank: Bank, names: tuple[str, ...], *, multiclass: bool) -> list[int]:
    """Where the logits of a head are in the order of a bank's labels or classes.

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


def _calibration(
    probabilities: Float[np.ndarray, "n output"], labels: Shaped[np.ndarray, "n *label"], outputs: Outputs
) -> float | None:
    if outputs.multiclass:
        return expected_calibration_error(probabilities, labels) if (labels >= 0).any() else None
    labelled = [number for number in outputs.usable if (labels[:, number] >= 0).any()]
    errors = [expected_calibration_error(probabilities[:, number], labels[:, number]) for number in labelled]
    return float(np.mean(errors)) if errors else None


def _one_sided(came: Float[np.ndarray, " n"]) -> str | None:
    missing = [word for word, number in (("positive", 1), ("negative", 0)) if not (came == number).any()]
    return f"no {missing[0]} in the test split" if missing else None
