"""Answers that can be given, rows that ask something, and a result that keeps test answers out of training."""

import csv
import json

import numpy as np
import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.tasks.pairs.answers import AnswerVocabulary, answering_rows, closed_of, normalise_answer
from adaptmed.tasks.pairs.head_file import load_pair_head
from adaptmed.tasks.pairs.judging import accuracies
from adaptmed.tasks.pairs.reading import exchanged
from tests.short_training import weights
from tests.tasks.pairs.asked import save_adaptor, tune, with_answers, write_asked_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_asked_bank(tmp_path_factory.mktemp("banks") / "bank")


@pytest.fixture(scope="module")
def run(bank, tmp_path_factory):
    return save_adaptor(bank, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize(
    ("said", "compared"),
    [("Yes.", "yes"), ("  left \t lung ", "left lung"), ("3.5 cm .", "3.5 cm"), (".", ""), ("", ""), ("No..", "no.")],
)
def test_answers_are_compared_without_case_space_and_full_stop(said, compared):
    assert normalise_answer(said) == compared
    assert normalise_answer(compared) == compared.removesuffix(".")


def test_the_vocabulary_is_sorted_and_knows_the_majority():
    vocabulary = AnswerVocabulary.of(["b", "A", "a.", "B", "c"], more=["z", "z", "z", ""])
    assert vocabulary == AnswerVocabulary(("a", "b", "c", "z"), "a")
    assert vocabulary.numbers([" C", "z", "nothing", ""]).tolist() == [2, 3, -1, -1]
    with pytest.raises(InputError, match=r"two distinct answers to learn, but got yes"):
        AnswerVocabulary.of(["yes", "Yes."])


def test_rows_without_an_image_a_question_or_an_answer_are_left_out_with_their_reasons(bank, run, tmp_path):
    rows = bank.subset("train")
    changed = with_answers(bank, rows[:2], ["", " . "])
    changed.rows.loc[rows[1:3], "question"] = ""
    changed.rows.loc[rows[3], "image_index"] = -1
    kept, rejects = answering_rows(changed, "train")
    assert kept.tolist() == rows[4:].tolist()
    reasons = ["no answer", "no question, no answer", "no question", "no image"]
    assert [reject["reason"] for reject in rejects] == reasons
    result = tune(changed, run, tmp_path / "out")
    assert result["left_out_rows"] == 4
    written = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert written == rejects
    assert result["truncated_questions"] == 1


def test_a_bank_whose_texts_are_not_its_questions_is_refused(bank, run, tmp_path):
    changed = with_answers(bank, [], "")
    changed.rows.loc[bank.subset("train")[:3], "text"] = "a report"
    with pytest.raises(
        InputError, match=r"another text in 3 of 96 rows of train, 'a report' first.*--text-column quest"
    ):
        tune(changed, run, tmp_path / "out")
    changed.rows["question"] = ""
    with pytest.raises(InputError, match=r"a bank with a column `question`, but got none"):
        tune(changed, run, tmp_path / "out")


def test_closed_questions_are_those_of_the_column_else_of_yes_and_no(bank):
    rows = bank.subset("test")[:4]
    assert closed_of(bank, rows).tolist() == [True, True, False, False]
    changed = with_answers(bank, [], "")
    changed.rows["answer_type"] = "CLOSED"
    changed.rows.loc[rows[0], "answer_type"] = " Open"
    changed.rows.loc[rows[3], "answer_type"] = ""
    assert closed_of(changed, rows).tolist() == [False, True, True, False]


def test_accuracies_by_hand_and_none_with_a_reason(bank):
    rows = bank.subset("test")[:8]
    found = accuracies(bank, rows, np.array([1, 0, 1, 1, 1, 0, 0, 1], dtype=bool))
    assert {name: entry["value"] for name, entry in found.items()} == {"overall": 5 / 8, "open": 3 / 4, "closed": 1 / 2}
    found = accuracies(bank, rows[:2], np.array([True, True]))
    assert found["open"] == {
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "reason": "no open question in the test split",
    }


def test_answers_of_validate_and_test_decide_nothing(bank, run, tmp_path):
    poison = with_answers(bank, bank.subset("test"), "Plutonium")
    one, other = (tune(some, run, tmp_path / name) for some, name in ((bank, "one"), (poison, "other")))
    assert all(torch.equal(v, weights(tmp_path / "other")[k]) for k, v in weights(tmp_path / "one").items())
    assert load_pair_head(tmp_path / "one")[2].names == ("a lung", "left", "no", "right", "yes")
    assert load_pair_head(tmp_path / "other")[2] == load_pair_head(tmp_path / "one")[2]
    assert one["kept"] == other["kept"]
    test = other["test"]
    assert (test["answers_outside_vocabulary"], one["test"]["answers_outside_vocabulary"]) == (32, 0)
    arms = ("tuned", "shuffled_image", "frozen", "question_only", "majority")
    assert {test[arm]["overall"]["value"] for arm in arms} == {0.0}
    judged = with_answers(bank, bank.subset("validate")[:1], "Plutonium")
    tune(judged, run, tmp_path / "judged")
    assert load_pair_head(tmp_path / "judged")[2] == load_pair_head(tmp_path / "one")[2]


def test_answers_outside_the_fraction_are_not_in_the_vocabulary(bank, run, tmp_path, monkeypatch):
    rows = bank.subset("train")
    inside = np.arange(len(rows)) < len(rows) // 2
    monkeypatch.setattr("adaptmed.cohort.division.fraction_rows", lambda *_, **__: inside)
    poison = with_answers(bank, rows[~inside], "Plutonium")
    for some, name in ((bank, "one"), (poison, "other")):
        tune(some, run, tmp_path / name, fraction=0.5)
    assert load_pair_head(tmp_path / "one")[2] == load_pair_head(tmp_path / "other")[2]
    assert all(torch.equal(v, weights(tmp_path / "other")[k]) for k, v in weights(tmp_path / "one").items())
    results = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "other")]
    assert results[0] == results[1]


def test_the_papers_vocabulary_is_an_option_and_written_down(bank, run, tmp_path):
    poison = with_answers(bank, bank.subset("test")[:1], "Plutonium")
    result = tune(poison, run, tmp_path / "out", answers_from="all")
    assert "plutonium" in load_pair_head(tmp_path / "out")[2].names
    assert result["answers_from"] == "all"
    assert result["test"]["answers_outside_vocabulary"] == 0


def test_every_answer_is_written_beside_the_question(bank, run, tmp_path):
    result = tune(bank, run, tmp_path / "out")
    lines = list(csv.DictReader((tmp_path / "out" / "answers.csv").read_text().splitlines()))
    assert [line["row"] for line in lines] == [f"r{row}" for row in bank.subset("test")]
    right = [normalise_answer(line["answer"]) == line["predicted"] for line in lines]
    assert [line["correct"] == "1" for line in lines] == right
    assert np.mean(right) == pytest.approx(result["test"]["tuned"]["overall"]["value"])
    for arm in ("shuffled_image", "frozen", "question_only"):
        right = [normalise_answer(line["answer"]) == line[arm] for line in lines]
        assert np.mean(right) == pytest.approx(result["test"][arm]["overall"]["value"]), arm


def test_an_exchanged_image_is_another_patients_and_the_draw_is_even():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    drawn = np.stack([exchanged(patients, seed=seed) for seed in range(3000)])
    assert (patients[drawn] != patients).all()
    for item, patient in enumerate(patients):
        others = np.flatnonzero(patients != patient)
        shares = np.bincount(drawn[:, item], minlength=6)[others] / len(drawn)
        assert np.abs(shares - 1 / len(others)).max() < 0.05
    assert np.array_equal(exchanged(patients, seed=3), exchanged(patients, seed=3))
    assert exchanged(np.array(["a", "a"]), seed=0) is None
