"""Kinds of questions: which answers are excluded, and that nothing is in doubt."""

import numpy as np
import torch

from adaptmed.tasks.pairs.kinds import Kinds, Questions


def questions(count=60):
    draw = np.random.default_rng(0)
    closed = np.arange(count) % 2 == 0
    features = (np.where(closed, 1.0, -1.0)[:, None] + 0.1 * draw.normal(size=(count, 4))).astype(np.float32)
    answers = np.where(closed, np.arange(count) // 2 % 2, 2 + np.arange(count) % 3)
    return Questions(features, closed, answers, np.array([f"p{number // 3}" for number in range(count)]))


def test_closed_questions_are_not_answered_with_organs_nor_open_ones_with_yes():
    asked = questions()
    kinds = Kinds.of(asked, 6)
    logits = kinds(torch.zeros(2, 6), torch.tensor([[1.0] * 4, [-1.0] * 4]))
    assert torch.isfinite(logits[0]).tolist() == [True, True, False, False, False, True]
    assert torch.isfinite(logits[1]).tolist() == [False, False, True, True, True, True]


def test_an_answer_that_the_fraction_does_not_have_is_no_kinds_and_can_be_given():
    kinds = Kinds.of(questions(), 6)  # with answers_from="all" the vocabulary holds such answers
    assert kinds.seen[:, 5].all()


def test_in_doubt_nothing_is_excluded():
    kinds = Kinds.of(questions(), 6)
    logits = kinds(torch.zeros(1, 6), torch.zeros(1, 4))
    assert torch.isfinite(logits[0]).tolist() == [True] * 6


def test_one_kind_alone_excludes_nothing():
    asked = questions()
    assert Kinds.of(Questions(asked.features, np.ones(60, dtype=bool), asked.answers, asked.patients), 6) is None
