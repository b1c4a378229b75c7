"""A study of answers: arms beside blind ones, the same rows for all, nothing read outside the fraction, resumed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from adaptmed.cli.study import study
from adaptmed.errors import InputError, OverlapError
from adaptmed.study.answering import study as module
from adaptmed.study.answering.settings import AnsweringStudy
from adaptmed.study.answering.study import study_answering
from adaptmed.tasks.pairs.answers import normalise_answer
from adaptmed.tasks.pairs.settings import PairChoices
from tests.tasks.pairs.asked import LONG, save_adaptor, with_answers, write_asked_bank

TRAINING = PairChoices(task="answering", settings=replace(LONG, epochs=8), dropout=0.1)
SETTINGS = AnsweringStudy(fractions=(0.5, 1.0), seeds=2, training=TRAINING, replicates=50)
ARMS = ("majority", "lookup", "question", "frozen", "no pre-training", "adaptor", "adaptor+gm-coord")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_asked_bank(tmp_path_factory.mktemp("banks") / "bank", images=60, noise=0.1)


@pytest.fixture(scope="module")
def run(bank, tmp_path_factory):
    return save_adaptor(bank, tmp_path_factory.mktemp("runs") / "run", dropout=0.0)


@pytest.fixture(scope="module")
def made(bank, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "s"
    return study_answering(bank, [run], out, settings=SETTINGS), out


def value(results, arm, label="all", fraction=1.0):
    rows = [
        row for row in results["summaries"] if (row["arm"], row["label"], row["fraction"]) == (arm, label, fraction)
    ]
    return rows[0]["value"]


def test_every_arm_stands_beside_the_blind_ones(made):
    results, out = made
    assert tuple(dict.fromkeys(row["arm"] for row in results["summaries"])) == ARMS
    assert {row["label"] for row in results["summaries"]} == {"all", "open", "closed"}
    assert value(results, "frozen", "closed") > value(results, "question", "closed") + 0.2
    assert value(results, "question") >= value(results, "majority")
    assert value(results, "lookup") >= value(results, "majority")
    assert {row["baseline"] for row in results["comparisons"]} == {"question", "frozen", "no pre-training"}
    assert json.loads((out / "results.json").read_text())["settings"]["task"] == "answering"
    page = (out / "report.html").read_text()
    assert "Test questions with answers" in page
    assert "is there an effusion?" in page


def test_the_majority_is_one_answer_whatever_is_asked(made, bank):
    results, out = made
    (cell,) = out.glob("cells/*/majority/1-0.json")
    assert {tuple(best) for best in json.loads(cell.read_text())} == {("no",)}
    right = bank.rows.loc[bank.rows["split"] == "test", "answer"].map(normalise_answer) == "no"
    assert value(results, "majority") == pytest.approx(right.mean())


def test_overall_is_the_share_of_right_answers_and_open_and_closed_add_up(made, bank):
    results, _ = made
    closed = np.isin(bank.rows.loc[bank.rows["split"] == "test", "answer"].str.lower().str.strip(". "), ["yes", "no"])
    for arm in ARMS:
        parts = closed.mean() * value(results, arm, "closed") + (1 - closed.mean()) * value(results, arm, "open")
        assert value(results, arm) == pytest.approx(parts)


def test_again_it_computes_nothing(made, bank, run, monkeypatch):
    results, out = made
    monkeypatch.setattr(module, "goal_of", lambda *_, **__: pytest.fail("a cell was computed again"))
    again = study_answering(bank, [run], out, settings=SETTINGS)
    assert again == results


def test_all_arms_see_the_same_rows_and_no_answer_of_validate_or_test(bank, run, tmp_path, monkeypatch):
    seen, real = [], module.goal_of

    def goal_of(*given, **named):
        goal = real(*given, **named)
        seen.append(tuple(goal.rows.train))
        return goal

    monkeypatch.setattr(module, "goal_of", goal_of)
    settings = replace(SETTINGS, fractions=(0.5,), seeds=1, arms=("question", "frozen", "adaptor"))
    plain = study_answering(bank, [run], tmp_path / "plain", settings=settings)
    assert len(set(seen)) == 1
    poisoned = with_answers(bank, np.flatnonzero(bank.rows["split"] == "validate"), "plutonium")
    other = study_answering(poisoned, [run], tmp_path / "other", settings=settings)
    values = [[row["value"] for row in found["records"]] for found in (plain, other)]
    assert values[0] == values[1]


def test_without_runs_the_arms_are_blind_or_frozen(bank, tmp_path):
    settings = replace(
        SETTINGS, fractions=(1.0,), seeds=1, training=replace(TRAINING, settings=replace(LONG, epochs=1))
    )
    results = study_answering(bank, [], tmp_path, settings=settings, examples=False)
    assert {row["arm"] for row in results["summaries"]} == {"majority", "lookup", "question", "frozen"}
    assert "is there an effusion?" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ("umd",)}, r"(?s)distinct names among majority.*got umd. Pass --adaptor"),
        ({"arms": ("frozen", "frozen")}, "distinct names among"),
    ],
)
def test_arms_that_cannot_run_are_refused(bank, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        study_answering(bank, [], tmp_path / "s", settings=replace(SETTINGS, **settings))
    assert not (tmp_path / "s").exists()


def test_two_banks_or_two_runs_of_one_method_are_refused(bank, run, tmp_path):
    with pytest.raises(InputError, match="one bank for a study of answers, but got 2 banks"):
        study(bank.folder, bank.folder, out=tmp_path / "s", task="answering")
    with pytest.raises(InputError, match="runs of other methods each, but got adaptor twice"):
        study_answering(bank, [run, run], tmp_path / "s", settings=SETTINGS)


def test_test_patients_in_train_are_refused_unless_they_are_allowed(bank, tmp_path):
    leaking = with_answers(bank, [], "")
    leaking.rows.loc[leaking.rows["split"] == "test", "patient"] = "p0"
    with pytest.raises(OverlapError, match="test patients that no training has seen"):
        study_answering(leaking, [], tmp_path / "s", settings=SETTINGS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fractions": (0.0,)}, "distinct shares in"),
        ({"seeds": 0}, "at least 1"),
        ({"training": PairChoices(task="image-text-classification")}, "answers on a bank's Tokens"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        AnsweringStudy(**values)
