"""Which answers can be given, and which rows of a bank ask and answer something."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.cohort.rows import Reject, pair_rows
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole

Rows = Int[np.ndarray, " n"]
_CLOSED = ("yes", "no")


def normalise_answer(answer: str) -> str:
    """Write an answer as it is compared: lower case, single spaces, no full stop at the end.

    Example:
        >>> normalise_answer("  Left   Lung. ")
        'left lung'
    """
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()


@dataclass(frozen=True)
class AnswerVocabulary:
    """The answers a head can give, one per logit.

    Attributes:
        answers: Normalised, sorted.
        majority: The most frequent one; of several the first.

    Example:
        >>> vocabulary = AnswerVocabulary.of(["No", "Yes.", "no"])
        >>> vocabulary.answers, vocabulary.majority, vocabulary.numbers(["YES", "left"]).tolist()
        (('no', 'yes'), 'no', [1, -1])
    """

    answers: tuple[str, ...]
    majority: str

    @classmethod
    def of(cls, answers: Iterable[str], *, more: Iterable[str] = ()) -> Self:
        """Collect answers.

        Args:
            answers: Of the rows that are learnt from.
            more: Of other rows; they can be given, but are not counted for the majority.

        Raises:
            InputError: There are fewer than two distinct ones.
        """
        counts = Counter(map(normalise_answer, answers))
        every = tuple(sorted({*counts, *map(normalise_answer, more)} - {""}))
        if len(every) < 2:
            fix = "Take a larger --fraction, or check the column `answer` with `adaptmed check`."
            got = ", ".join(every) or "none"
            raise InputError(sentence("answer", expected="two distinct answers to learn", got=got, fix=fix))
        return cls(every, min(counts, key=lambda answer: (-counts[answer], answer)))

    def __len__(self) -> int:
        return len(self.answers)

    def numbers(self, answers: Iterable[str]) -> Int[Tensor, " n"]:
        """Return the number of each answer; -1 where it is none of these."""
        number = {answer: place for place, answer in enumerate(self.answers)}
        return torch.tensor([number.get(normalise_answer(answer), -1) for answer in answers], dtype=torch.int64)


def answering_rows(bank: Bank, split: str) -> tuple[Rows, list[Reject]]:
    """Row numbers of a split with image, question and answer, and why the others are left out.

    Raises:
        InputError: The bank has no such columns, or its texts are not its questions.
    """
    for name in ("question", "answer"):
        if name not in bank.rows or not _column(bank, name, np.arange(len(bank))).astype(bool).any():
            fix = "Embed a table that has columns image, question and answer."
            raise InputError(sentence(str(bank.folder), expected=f"a bank with a column `{name}`", got="none", fix=fix))
    asked = bank.subset(split)
    questions, answers = (_column(bank, name, asked) for name in ("question", "answer"))
    reasons = {"no question": questions == "", "no answer": np.array([not normalise_answer(a) for a in answers], bool)}
    rows, rejects = pair_rows(bank, asked, reasons)
    texts = _column(bank, "text", rows)
    other = np.flatnonzero(texts != _column(bank, "question", rows))
    if len(other):
        got = f"another text in {len(other)} of {len(rows)} rows of {split}, {texts[other[0]]!r:.60} first"
        fix = "Run `adaptmed embed` again with --text-column question."
        raise InputError(sentence(str(bank.folder), expected="the question as the text", got=got, fix=fix))
    return rows, rejects


def questions_of(bank: Bank, rows: Rows) -> list[str]:
    """The question of each row."""
    return list(_column(bank, "question", rows))


def answers_of(bank: Bank, rows: Rows) -> list[str]:
    """The answer of each row, as it stands in the table."""
    return list(_column(bank, "answer", rows))


def closed_of(bank: Bank, rows: Rows) -> Bool[np.ndarray, " n"]:
    """Which rows ask a closed question: as the column ``answer_type`` says, else those answered by yes or no."""
    said = _column(bank, "answer_type", rows) if "answer_type" in bank.rows else np.full(len(rows), "")
    said = np.array([kind.strip().lower() for kind in said], dtype=object)
    yes_no = np.array([normalise_answer(answer) in _CLOSED for answer in answers_of(bank, rows)], dtype=bool)
    return np.where(np.isin(said, ["open", "closed"]), said == "closed", yes_no).astype(bool)


def kinds_of(bank: Bank, rows: Rows) -> np.ndarray:
    """What each question asks for, as the column ``question_type`` says; blank where nothing does."""
    return _column(bank, "question_type", rows) if "question_type" in bank.rows else np.full(len(rows), "")


def truncated_questions(bank: Bank) -> int:
    """How many distinct questions were longer than the text encoder reads."""
    return sum(shard.truncated for shard in bank.info.shards_of("text"))


def write_answers(
    path: Path, bank: Bank, rows: Rows, predicted: Mapping[str, Sequence[str]], correct: Sequence[bool]
) -> None:
    """Write what was answered to every question, so that models and runs can be compared question by question.

    Args:
        path: File to write.
        bank: With questions and right answers.
        rows: Row numbers.
        predicted: Answers of each model by its name; one column each, the first is called ``predicted``.
        correct: Whether those of the first are right.
    """
    (_, first), *others = predicted.items()
    asked = {"question": questions_of(bank, rows), "answer": answers_of(bank, rows), "predicted": first}
    columns = {**asked, "correct": [int(right) for right in correct], **dict(others)}
    frame = pd.DataFrame(columns, index=bank.rows["row"].astype(str).to_numpy(object)[rows])
    write_text_whole(path, frame.to_csv(index_label="row", lineterminator="\n"))


def _column(bank: Bank, name: str, rows: Rows) -> np.ndarray:
    column: pd.Series = bank.rows[name].fillna("").astype(str)
    return column.to_numpy(object)[rows]
