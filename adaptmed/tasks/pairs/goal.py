"""What a pair model is to say: the rows it reads, its targets, its loss, and how it is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.cohort.division import SPLITS, Division, Share, divide
from adaptmed.cohort.rows import Reject, labelled_rows, labels_of, names_of, pair_rows, patients_of
from adaptmed.coordination.scores import class_score, label_score
from adaptmed.errors import InputError, sentence
from adaptmed.heads.outputs import Outputs, learnable
from adaptmed.objectives.supervised import answer_bce, balanced_weights, masked_bce, masked_cross_entropy
from adaptmed.tasks.pairs.answers import AnswerVocabulary, answering_rows, answers_of, closed_of
from adaptmed.tasks.pairs.judging import judge_answers, judge_labels
from adaptmed.tasks.pairs.kinds import Kinds, Questions
from adaptmed.tasks.pairs.reading import frozen_features
from adaptmed.tasks.pairs.settings import ANSWERING, PairChoices

Rows = Int[np.ndarray, " n"]
Loss = Callable[[Tensor, Tensor], Float[Tensor, ""]]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One task on one bank.

    Attributes:
        rows: Whom it reads.
        names: Of the logits: answers, labels or classes.
        targets: Of rows, as the loss wants them; what no logit stands for is not labelled.
        loss: Of logits and targets.
        score: Of logits and targets: how well they answer, for GM-Coord.
        judge: Of logits and the rows they are of, to what the result says.
        rejects: Rows that are left out.
        exclusive: Whether one logit of all is right: answers and classes, not labels.
        kinds: Excludes answers that a question of its kind cannot have; ``None`` excludes none.
        right: Of logits and targets: how many are answered rightly, where the epoch is chosen by that.
        facts: What the head's file says beside names.
    """

    rows: Division
    names: tuple[str, ...]
    targets: Callable[[Rows], Tensor]
    loss: Loss
    score: Loss
    judge: Callable[[Float[Tensor, "n output"], Rows], dict[str, Any]]
    rejects: list[Reject]
    exclusive: bool
    kinds: Kinds | None = None
    right: Callable[[Tensor, Tensor], int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def possible(self, bank: Bank, logits: Float[Tensor, "n output"], rows: Rows) -> Float[Tensor, "n output"]:
        """Logits of rows of a bank, without the answers that their questions cannot have."""
        return logits if self.kinds is None else self.kinds(logits, frozen_features(bank, rows, image=False))


def goal_of(bank: Bank, choices: PairChoices, *, before: frozenset[str] | None) -> Goal:
    """Read from a bank what its pairs can teach.

    Args:
        bank: With questions and answers, or with labels or a class column, and images and texts.
        choices: With the task.
        before: Digests of the patients that were seen before; ``None`` when nobody knows.

    Raises:
        InputError: There is nothing to learn in the fraction.
        OverlapError: A patient stands in train and validate, or a test patient was seen.
    """
    return (_answers if choices.task == ANSWERING else _labels)(bank, choices, before)


def _answers(bank: Bank, choices: PairChoices, before: frozenset[str] | None) -> Goal:
    found = [answering_rows(bank, split) for split in SPLITS]
    train, validate, test = (rows for rows, _ in found)
    rejects = [reject for _, rejected in found for reject in rejected]
    strata = np.array(answers_of(bank, train), dtype=object)
    rows = divide(bank, (train, validate, test), strata, _share(choices), before=before)
    others = np.concatenate([train, validate, test]) if choices.answers_from == "all" else rows.train
    vocabulary = AnswerVocabulary.of(answers_of(bank, rows.train), more=answers_of(bank, others))
    return Goal(
        rows=rows,
        names=vocabulary.answers,
        targets=lambda some: vocabulary.numbers(answers_of(bank, some)),
        loss=answer_bce
        if choices.loss == "binary"
        else partial(masked_cross_entropy, smoothing=choices.label_smoothing),
        score=class_score,
        judge=partial(judge_answers, bank, vocabulary),
        rejects=rejects,
        exclusive=True,
        kinds=_kinds(bank, rows.train, vocabulary) if choices.kinds else None,
        right=_count_right if choices.keeps_accuracy else None,
        facts={"majority": vocabulary.majority},
    )


def _kinds(bank: Bank, rows: Rows, vocabulary: AnswerVocabulary) -> Kinds | None:
    questions = Questions(
        features=frozen_features(bank, rows, image=False).numpy(),
        closed=closed_of(bank, rows),
        answers=vocabulary.numbers(answers_of(bank, rows)).numpy(),
        patients=patients_of(bank, rows),
    )
    return Kinds.of(questions, len(vocabulary))


def _labels(bank: Bank, choices: PairChoices, before: frozenset[str] | None) -> Goal:
    found = [_labelled_pairs(bank, split) for split in SPLITS]
    train, validate, test = (rows for rows, _ in found)
    rejects = [reject for _, rejected in found for reject in rejected]
    rows = divide(bank, (train, validate, test), labels_of(bank, train), _share(choices), before=before)
    names, labels = names_of(bank), labels_of(bank, rows.train)
    outputs = learnable(labels, len(names))
    if not outputs.usable:
        expected, got = "a label with a positive and a negative, or two classes", f"none in {len(rows.train)} pairs"
        fix = "Take a larger --fraction, or check labels and splits with `adaptmed check`."
        raise InputError(sentence(f"{bank.folder}: train", expected=expected, got=got, fix=fix))
    return Goal(
        rows=rows,
        names=tuple(names[index] for index in outputs.usable),
        targets=lambda some: outputs.targets(labels_of(bank, some)),
        loss=_label_loss(outputs, labels, choices),
        score=class_score if outputs.multiclass else label_score,
        judge=partial(judge_labels, bank, outputs),
        rejects=rejects,
        exclusive=outputs.multiclass,
        right=_count_right if choices.keeps_accuracy and outputs.multiclass else None,
        facts={
            "multiclass": outputs.multiclass,
            "left_out": {names[index]: reason for index, reason in outputs.reasons.items()},
        },
    )


def _share(choices: PairChoices) -> Share:
    return Share(fraction=choices.fraction, seed=choices.seed, allow_overlap=choices.allow_overlap)


def _count_right(logits: Float[Tensor, "batch output"], targets: Int[Tensor, " batch"]) -> int:
    return int((logits.argmax(dim=1) == targets).sum())


def _label_loss(outputs: Outputs, labels: Shaped[np.ndarray, "n *label"], choices: PairChoices) -> Loss:
    if choices.class_weights == "none":
        return masked_cross_entropy if outputs.multiclass else masked_bce
    if not outputs.multiclass:
        got, fix = "label columns", "Embed with --class-column, or leave --class-weights out."
        raise InputError(sentence("class_weights", expected="a bank with a class column", got=got, fix=fix))
    weights = balanced_weights(outputs.targets(labels), len(outputs.usable))
    return partial(masked_cross_entropy, weights=weights)


def _labelled_pairs(bank: Bank, split: str) -> tuple[Rows, list[Reject]]:
    return pair_rows(bank, labelled_rows(bank, split), {})


def judged_rows(bank: Bank, task: str) -> Rows:
    """Row numbers of the test split that a task judges."""
    return (answering_rows if task == ANSWERING else _labelled_pairs)(bank, "test")[0]
