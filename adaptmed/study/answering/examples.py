"""Questions of the test split that the report shows, with what every arm answered."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from adaptmed.bank import Bank
from adaptmed.bank.source_files import root_of
from adaptmed.study.report.answers import AnswerExample
from adaptmed.study.report.thumbnails import thumbnail
from adaptmed.study.statistics import Truth
from adaptmed.tasks.pairs.answers import answers_of, normalise_answer, questions_of

SHOWN = 12


def shown_questions(truth: Truth, count: int) -> Int[np.ndarray, " k"]:
    """Pick places of test questions: of each kind in turn one from the middle of those left; no favours.

    Args:
        truth: With kinds of questions.
        count: How many at most.
    """
    picked: list[int] = []
    columns = [np.flatnonzero(truth.labels[:, column] == 1) for column in range(1, len(truth.names))]
    for turn in range(count):
        free = [place for place in columns[turn % len(columns)].tolist() if place not in picked]
        if free:
            picked.append(free[len(free) // 2])
    return np.array(picked, dtype=np.int64)


def examples_of(
    bank: Bank,
    test: Int[np.ndarray, " n"],
    shown: Int[np.ndarray, " k"],
    predicted: Mapping[str, Sequence[Sequence[str]]],
) -> list[AnswerExample]:
    """Put pictures, questions and answers together.

    Args:
        bank: With the way to the pictures.
        test: Row numbers of the test questions.
        shown: Places among them.
        predicted: Arm → the best answers to every test question, best first.
    """
    rows = test[shown]
    names = bank.rows["image"].astype(str).to_numpy(object)
    asked = zip(shown.tolist(), rows.tolist(), questions_of(bank, rows), answers_of(bank, rows), strict=True)
    return [
        AnswerExample(
            picture=thumbnail(root_of(bank) / names[row]),
            question=question,
            answer=answer,
            arms={arm: tuple(best[place]) for arm, best in predicted.items()},
            right={arm: best[place][:1] == [normalise_answer(answer)] for arm, best in predicted.items()},
        )
        for place, row, question, answer in asked
    ]
