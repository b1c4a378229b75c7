"""Scores of a model of pairs on test pairs: itself, itself with exchanged images, and what must stand beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.rows import names_of
from adaptmed.objectives.supervised import answer_bce
from adaptmed.tasks.judging import order_of
from adaptmed.tasks.pairs.answers import AnswerVocabulary, write_answers
from adaptmed.tasks.pairs.baselines import frozen_heads, shuffled_image
from adaptmed.tasks.pairs.goal import Goal
from adaptmed.tasks.pairs.head_file import PairHeadFacts, load_pair_head
from adaptmed.tasks.pairs.judging import answered, beside_answers, judge_answers, judge_labels, right_answers
from adaptmed.tasks.pairs.model import PairClassifier, tuning_of
from adaptmed.tasks.pairs.reading import PairReading, frozen_features
from adaptmed.tasks.pairs.settings import ANSWERING, PairChoices
from adaptmed.tasks.task import How
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.tuning import Tuning
from adaptmed.training.work import predict_images

ANSWERS = "answers.csv"
ONE_PATIENT = "all test pairs are of one patient"
Rows = Int[np.ndarray, " n"]


def scores_of(
    tuning: Tuning, goal: Goal, reading: PairReading, choices: PairChoices, out: Path, device: str
) -> dict[str, Any]:
    """Score a model that was just tuned, train its baselines, and write every single answer.

    Args:
        tuning: With the model.
        goal: What was learnt.
        reading: How pairs are read.
        choices: How it was tuned.
        out: Run folder.
        device: Lightning's accelerator.
    """
    bank, rows, settings = reading.bank, goal.rows.test, choices.settings
    logits = goal.possible(bank, predict_images(tuning, reading.pairs(rows), settings, device), rows)
    found: dict[str, Any] = {"tuned": goal.judge(logits, rows)}
    swapped = shuffled_image(tuning, reading, rows, settings, seed=choices.seed, device=device)
    swapped = None if swapped is None else goal.possible(bank, swapped, rows)
    found["shuffled_image"] = {"reason": ONE_PATIENT} if swapped is None else goal.judge(swapped, rows)
    heads = frozen_heads(bank, goal, choices, device=device)
    heads = {name: goal.possible(bank, other, rows) for name, other in heads.items()}
    found |= {name: goal.judge(other, rows) for name, other in heads.items()}
    if choices.task == ANSWERING:
        vocabulary = AnswerVocabulary(goal.names, goal.facts["majority"])
        found |= beside_answers(bank, vocabulary, rows)
        every = {"tuned": logits, **({} if swapped is None else {"shuffled_image": swapped}), **heads}
        predicted = {name: answered(vocabulary, some) for name, some in every.items()}
        right = right_answers(bank, vocabulary, logits.argmax(dim=1).numpy(), rows)
        write_answers(out / ANSWERS, bank, rows, predicted, right.tolist())
    return found


def judge_again(run: Path, adaptor: Adaptor, bank: Bank, rows: Rows, how: How) -> dict[str, Any]:
    """Score the head of a finished run on test pairs of any bank of the same encoders.

    Args:
        run: Run folder.
        adaptor: Of the run.
        bank: Tokens of both encoders.
        rows: Row numbers.
        how: Device and precision.
    """
    head, beside, facts, kinds = load_pair_head(run)
    judged = _judge_of(bank, facts)
    settings = FinetuneSettings(precision=how.precision)
    model = PairClassifier(adaptor.fusion, head, beside=beside)
    tuning = tuning_of(model, settings, answer_bce, seed=0, items=1)
    reading = PairReading(bank)

    def possible(logits: torch.Tensor) -> torch.Tensor:
        return logits if kinds is None else kinds(logits, frozen_features(bank, rows, image=False))

    found = {"tuned": judged(possible(predict_images(tuning, reading.pairs(rows), settings, how.device)), rows)}
    swapped = shuffled_image(tuning, reading, rows, settings, seed=0, device=how.device)
    swapped = None if swapped is None else possible(swapped)
    found["shuffled_image"] = {"reason": ONE_PATIENT} if swapped is None else judged(swapped, rows)
    if facts.task == ANSWERING:
        found |= beside_answers(bank, facts.vocabulary, rows)
    return found


def _judge_of(bank: Bank, facts: PairHeadFacts) -> Callable[[torch.Tensor, Rows], dict[str, Any]]:
    if facts.task == ANSWERING:
        return lambda logits, rows: judge_answers(bank, facts.vocabulary, logits, rows)
    order = order_of(bank, facts.names, multiclass=facts.multiclass)
    return lambda logits, rows: judge_labels(bank, facts.outputs(names_of(bank)), logits[:, order], rows)
