"""From predictions to records: every cell of a study judged on the same test items, with paired intervals."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from adaptmed.errors import InputError, sentence
from adaptmed.metrics.retrieval import weighted_median_rank, weighted_recall
from adaptmed.metrics.segmentation import METRICS as SEGMENTATION
from adaptmed.metrics.uncertainty import hierarchical, interval, p_value, patient_weights
from adaptmed.study.scoring import Cell, Score, Scores, Truth, check, is_defined, macro, score

__all__ = ["Cell", "Judgement", "Truth", "comparisons", "judge", "records", "retrieval_records", "summaries"]

METRICS = {
    "multilabel": ("auroc", "average_precision", "ece"),
    "multiclass": ("accuracy", "balanced_accuracy", "auroc", "ece"),
    "segmentation": tuple(SEGMENTATION),
    "answering": ("accuracy",),
}
Record = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """All cells scored once; records, summaries and any number of comparisons are read from it.

    Attributes:
        cells: What was judged.
        truth: What it was judged by.
        scores: The scores of each cell.
        seed: Seed of the draws.
    """

    cells: tuple[Cell, ...]
    truth: Truth
    scores: tuple[Scores, ...]
    seed: int

    def records(self) -> list[Record]:
        """One record per cell, metric and label, see `records`."""
        return [
            {**_facts([cell], self.truth, label), "seed": cell.seed, "metric": metric}
            | _estimate([self._score(number, metric, label)], self.seed)
            for number, cell in enumerate(self.cells)
            for metric, label in self._rows()
        ]

    def summaries(self) -> list[Record]:
        """One summary per arm, fraction, metric and label, see `summaries`; the order of cells changes no draw."""
        groups: dict[tuple[str, float], list[int]] = defaultdict(list)
        for number, cell in sorted(enumerate(self.cells), key=lambda item: item[1].seed):
            groups[cell.arm, cell.fraction].append(number)
        return [
            {**_facts([self.cells[number] for number in members], self.truth, label), "metric": metric}
            | _over_seeds([self._score(number, metric, label) for number in members], self.seed)
            for members in groups.values()
            for metric, label in self._rows()
        ]

    def comparisons(self, baseline: str) -> list[Record]:
        """One paired difference per other arm, fraction, metric and label, see `comparisons`."""
        by_seed = sorted(enumerate(self.cells), key=lambda item: item[1].seed)
        place = {(cell.arm, cell.fraction, cell.seed): number for number, cell in by_seed}
        arms = list(dict.fromkeys(cell.arm for cell in self.cells))
        if baseline not in arms:
            fix = "Name an arm judged here."
            raise InputError(sentence("baseline", expected=f"one of {arms}", got=baseline, fix=fix))
        pairs: dict[tuple[str, float], list[tuple[int, int]]] = defaultdict(list)
        for (arm, fraction, seed), number in place.items():
            if arm != baseline and (baseline, fraction, seed) in place:
                pairs[arm, fraction].append((number, place[baseline, fraction, seed]))
        return [
            {"arm": arm, "baseline": baseline, "dataset": self.truth.dataset, "encoder": self.truth.encoder}
            | {"fraction": fraction, "metric": metric, "label": label}
            | _difference([self._gap(*pair, metric, label) for pair in members], self.seed)
            for (arm, fraction), members in pairs.items()
            for metric, label in self._rows()
        ]

    def _rows(self) -> list[tuple[str, str]]:
        whole = {"multiclass": ("all",), "answering": self.truth.names}
        labels = whole.get(self.truth.kind, (*self.truth.names, "macro"))
        return [(metric, label) for metric in METRICS[self.truth.kind] for label in labels]

    def _score(self, number: int, metric: str, label: str) -> Score:
        stored = self.scores[number].get((metric, label))
        return stored or macro(self.scores[number], metric, self.truth.names)

    def _gap(self, number: int, other: int, metric: str, label: str) -> Score:
        """Difference of two cells of one fraction and seed; a macro over the labels that both define."""
        ours, theirs = self.scores[number], self.scores[other]
        one, two = ours.get((metric, label)), theirs.get((metric, label))
        if one is None or two is None:
            names = self.truth.names
            both = {name for name in names if is_defined(ours, metric, name) and is_defined(theirs, metric, name)}
            one, two = (macro(scores, metric, names, within=both) for scores in (ours, theirs))
        return Score(one.samples - two.samples, one.reason or two.reason)


def judge(cells: Sequence[Cell], truth: Truth, *, replicates: int = 1000, seed: int = 0) -> Judgement:
    """Score every cell once, point values and bootstrap replicates together.

    Args:
        cells: All judged on the same test items, in the same order.
        truth: Labels and patients of these items.
        replicates: Bootstrap replicates.
        seed: Seed of the draws of patients and of seeds.

    Returns:
        What records, summaries and any number of comparisons are read from.

    Raises:
        InputError: An arm, fraction and seed comes twice, or probabilities do not fit the truth or leave [0, 1].
    """
    seen: set[tuple[str, float, int]] = set()
    for cell in cells:
        key = (cell.arm, cell.fraction, cell.seed)
        if key in seen:
            raise InputError(sentence("cells", expected="each arm, fraction and seed once", got=key, fix="Drop one."))
        seen.add(key)
        check(cell, truth)
    drawn = patient_weights(truth.patients, replicates=replicates, seed=seed).T
    weights = np.hstack([np.ones((len(drawn), 1)), drawn]).T
    return Judgement(tuple(cells), truth, tuple(score(cell, truth, weights) for cell in cells), seed)


def records(cells: Sequence[Cell], truth: Truth, *, replicates: int = 1000, seed: int = 0) -> list[Record]:
    """Judge every cell: one flat record per cell, metric and label.

    Metrics are ``auroc``, ``average_precision`` and ``ece`` per label and as ``macro`` (mean over the defined labels);
    multi-class: ``accuracy``, ``balanced_accuracy``, ``auroc`` (macro, one versus rest) and ``ece`` (of the top class)
    under the label ``all``. ``value`` is ``None`` where undefined, and ``reason`` says why; beside a value, ``reason``
    says what was left out of it or why it has no interval. Intervals of a record are over patients only.

    Args:
        cells: All judged on the same test items.
        truth: Labels and patients of these items.
        replicates: Bootstrap replicates.
        seed: Seed of the draws.

    Returns:
        Records of arm, task, dataset, encoder, label, fraction, seed, metric, value, ci_low, ci_high, reason, n_train,
        n_test, n_positive (training positives, ``None`` for the whole), trainable_parameters, seconds.

    Raises:
        InputError: See `judge`, which serves records, summaries and comparisons with one bootstrap.
    """
    return judge(cells, truth, replicates=replicates, seed=seed).records()


def summaries(cells: Sequence[Cell], truth: Truth, *, replicates: int = 1000, seed: int = 0) -> list[Record]:
    """Judge every arm at every fraction over its seeds: means, with intervals over seeds outside and patients inside.

    Args:
        cells: See `records`.
        truth: See `records`.
        replicates: Bootstrap replicates.
        seed: Seed of the draws.

    Returns:
        The keys of `records` without ``seed``, and ``n_seeds``: how many seeds define the value. Counts and seconds
        are means over the seeds.

    Raises:
        InputError: See `judge`.
    """
    return judge(cells, truth, replicates=replicates, seed=seed).summaries()


def comparisons(
    cells: Sequence[Cell], truth: Truth, *, baseline: str, replicates: int = 1000, seed: int = 0
) -> list[Record]:
    """Compare every arm with a baseline, paired over the same test items and seeds.

    A macro is taken over the labels that both arms define. Intervals and p values are not corrected for the number of
    comparisons.

    Args:
        cells: See `records`.
        truth: See `records`.
        baseline: The arm that the others are compared with.
        replicates: Bootstrap replicates.
        seed: Seed of the draws.

    Returns:
        Dictionaries of arm, baseline, dataset, encoder, fraction, metric, label, difference (arm - baseline), ci_low,
        ci_high, p_value, n_seeds (shared by both), reason.

    Raises:
        InputError: The baseline is no arm, or see `judge`.
    """
    return judge(cells, truth, replicates=replicates, seed=seed).comparisons(baseline)


def retrieval_records(
    ranks: Int[np.ndarray, " n"],
    patients: np.ndarray,
    *,
    arm: str,
    direction: str,
    n_gallery: int,
    ks: tuple[int, ...] = (1, 5, 10),
    replicates: int = 1000,
    seed: int = 0,
) -> list[Record]:
    """Judge one direction of retrieval, with intervals over the patients that ask; the gallery is held fixed.

    Args:
        ranks: What `first_positive_ranks` gives; -1 (no positive in the gallery) is left out.
        patients: The patient of each query.
        arm: Name of the contender.
        direction: For example ``image to text``.
        n_gallery: Size of the gallery.
        ks: Lengths of the lists looked at.
        replicates: Bootstrap replicates.
        seed: Seed of the draws.

    Returns:
        One dictionary per metric: arm, direction, metric (``R@k``, ``median_rank``), value, ci_low, ci_high, reason,
        n_queries, n_gallery.
    """
    drawn = patient_weights(patients, replicates=replicates, seed=seed)
    weights = np.vstack([np.ones((1, len(ranks))), drawn])
    samples = {f"R@{k}": weighted_recall(ranks, weights, k=k) for k in ks}
    samples["median_rank"] = weighted_median_rank(ranks, weights)
    none = None if (ranks > 0).any() else "no query has a positive in the gallery"
    counts = {"n_queries": int((ranks > 0).sum()), "n_gallery": n_gallery}
    return [
        {"arm": arm, "direction": direction, "metric": metric, **_estimate([Score(values, none)], seed), **counts}
        for metric, values in samples.items()
    ]


def _facts(cells: Sequence[Cell], truth: Truth, label: str) -> Record:
    labelled = truth.labels >= 0
    column = labelled[:, truth.names.index(label)] if labelled.ndim == 2 and label in truth.names else labelled
    positive = [cell.n_positive[label] for cell in cells if label in cell.n_positive]
    return {
        "arm": cells[0].arm,
        "task": truth.kind,
        "dataset": truth.dataset,
        "encoder": truth.encoder,
        "label": label,
        "fraction": float(cells[0].fraction),
        "n_train": round(float(np.mean([cell.n_train for cell in cells]))),
        "n_test": int(column.reshape(len(column), -1).any(1).sum()),
        "n_positive": round(float(np.mean(positive))) if positive else None,
        "trainable_parameters": max(int(cell.trainable_parameters) for cell in cells),
        "seconds": float(np.mean([cell.seconds for cell in cells])),
    }


def _estimate(scores: Sequence[Score], seed: int) -> Record:
    """Mean over the seeds that define the score, its interval, and what must be said about it."""
    samples = _resampled(scores, seed)
    said = "; ".join(dict.fromkeys(item.reason for item in scores if item.reason)) or None
    if samples is None:
        return {"value": None, "ci_low": None, "ci_high": None, "reason": said or "no score"}
    lacking = sum(not item.defined for item in scores)
    bounds = interval(samples)
    notes = [f"undefined in {lacking} of {len(scores)} seeds"] * (lacking > 0) + [said] * (said is not None)
    notes += ["no interval: fewer than half of the bootstrap replicates are defined"] * (bounds is None)
    low, high = bounds or (None, None)
    value = float(np.mean([item.samples[0] for item in scores if item.defined]))
    return {"value": value, "ci_low": low, "ci_high": high, "reason": "; ".join(map(str, notes)) or None}


def _over_seeds(scores: Sequence[Score], seed: int) -> Record:
    return _estimate(scores, seed) | {"n_seeds": sum(item.defined for item in scores)}


def _difference(gaps: Sequence[Score], seed: int) -> Record:
    samples, fields = _resampled(gaps, seed), _over_seeds(gaps, seed)
    return {"difference": fields.pop("value"), **fields, "p_value": None if samples is None else p_value(samples)}


def _resampled(scores: Sequence[Score], seed: int) -> Float[np.ndarray, " replicate"] | None:
    defined = [item.samples[1:] for item in scores if item.defined]
    return hierarchical(np.stack(defined), seed=seed) if defined else None
