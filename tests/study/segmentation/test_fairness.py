"""What the arms of a study of masks share: rows, steps, trials, and what they must not look at."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adaptmed.bank import Bank
from adaptmed.study.checks import lora_parameters
from adaptmed.study.segmentation import contender as contenders
from adaptmed.study.segmentation.arms import arms_of
from adaptmed.study.segmentation.settings import KNOWN, TUNED
from adaptmed.study.segmentation.subject import open_subject, prepare
from tests.masked_pictures import EVERY

NONE_SHOWN = np.array([], dtype=np.int64)
RATES = replace(EVERY, learning_rates=(1e-4, 0.03, 0.3), fractions=(0.5,), seeds=1)


def test_all_arms_see_the_same_rows(subject, monkeypatch):
    trained, judged = [], []
    real_work, real_score = contenders.work_of, contenders.score_model

    def work(model, examples, held, training, *, seed):
        trained.append((tuple(examples.rows.tolist()), tuple(held.rows.tolist()), training, seed))
        return real_work(model, examples, held, training, seed=seed)

    def score(model, reader, masks, rows, training, *, device):
        judged.append(tuple(rows))
        return real_score(model, reader, masks, rows, training, device=device)

    monkeypatch.setattr(contenders, "work_of", work)
    monkeypatch.setattr(contenders, "score_model", score)
    places = subject.fraction(0.25, 1)
    for arm in arms_of(subject, EVERY, NONE_SHOWN, device="cpu").values():
        arm(0.25, 1)
    validated = tuple(subject.looked_at(0.25, 1).tolist())
    assert 0 < len(validated) < len(subject.validate)
    training = replace(EVERY.training, learning_rate=EVERY.learning_rates[0])
    assert set(trained) == {(tuple(subject.train[places].tolist()), validated, training, 1)}
    assert set(judged) == {tuple(subject.test.tolist())}
    assert len(trained) == len(judged) == len(KNOWN) - 1


@pytest.mark.parametrize("seed", [0, 1])
def test_fractions_are_nested_stratified_and_of_whole_patients(subject, seed):
    chosen = {share: set(subject.fraction(share, seed).tolist()) for share in (0.25, 0.5, 1.0)}
    assert chosen[0.25] < chosen[0.5] < chosen[1.0] == set(range(len(subject.train)))
    for places in chosen.values():
        patients = set(subject.patients[list(places)])
        assert places == {place for place, patient in enumerate(subject.patients) if patient in patients}
    assert subject.present[list(chosen[0.25])].any(axis=0).all()  # three patients, and both labels among them
    assert not set(subject.patients) & set(subject.truth.patients)


def test_everything_that_was_trained_is_counted(subject):
    arms = arms_of(subject, EVERY, NONE_SHOWN, device="cpu")
    counts = {name: arm(0.25, 0).trainable_parameters for name, arm in arms.items()}
    assert counts["empty"] == 0
    tuned = lora_parameters(subject.tuned[1])
    assert tuned > 0
    assert counts[TUNED] == counts["adaptor"] + tuned
    fusion = sum(parameter.numel() for parameter in subject.adaptor.fusion.parameters())
    assert counts["adaptor"] == counts["adaptor-untrained"] + fusion
    assert counts["adaptor-untrained"] < counts["adaptor-trained"] <= counts["adaptor"]


def outcomes(subject, seed=0):
    return {name: arm(0.5, seed) for name, arm in arms_of(subject, RATES, NONE_SHOWN, device="cpu").items()}


def test_every_trained_arm_tries_each_rate_once_and_then_the_whole_fraction(subject, monkeypatch):
    real, real_score, seen, judged = contenders.work_of, contenders.score_model, [], []
    places = subject.fraction(0.5, 0)

    def work(model, examples, held, training, *, seed):
        seen.append((training.learning_rate, set(examples.rows.tolist())))
        return real(model, examples, held, training, seed=seed)

    def score(model, reader, masks, rows, training, *, device):
        judged.append(set(rows))
        return real_score(model, reader, masks, rows, training, device=device)

    monkeypatch.setattr(contenders, "work_of", work)
    monkeypatch.setattr(contenders, "score_model", score)
    for name, arm in arms_of(subject, RATES, NONE_SHOWN, device="cpu").items():
        seen.clear()
        judged.clear()
        found = arm(0.5, 0)
        if name == "empty":
            assert (seen, found.learning_rate) == ([], None)
            continue
        *tried, (rate, rows) = seen
        assert [rate for rate, _ in tried] == list(RATES.learning_rates)
        assert rows == set(subject.train[places].tolist())
        assert all(part < rows for _, part in tried)
        assert judged == [rows - part for _, part in tried] + [set(subject.test.tolist())]
        assert rate == found.learning_rate


def test_masks_outside_the_fraction_choose_nothing(masked, subject, tmp_path):
    """The same labels elsewhere in every training picture outside the fraction: nothing about the arms changes."""
    before = outcomes(subject)
    assert len({outcome.learning_rate for outcome in before.values()}) > 1
    inside = {*subject.train[subject.fraction(0.5, 0)].tolist(), *subject.looked_at(0.5, 0).tolist()}
    outside = [row for row in [*subject.train.tolist(), *subject.validate.tolist()] if row not in inside]
    assert set(subject.validate.tolist()) & set(outside)
    paths = {path: path.read_bytes() for path in map(subject.masks.files.mask, outside)}
    try:
        for path in paths:
            Image.fromarray(np.asarray(Image.open(path))[::-1].copy()).save(path)
        bank, tuned = Bank.open(masked / "bank"), (Bank.open(masked / "bank-l"), masked / "run-l")
        changed = prepare(open_subject(bank, masked / "run", EVERY, tuned=tuned), tmp_path / "others", EVERY)
        assert not np.array_equal(changed.masks.laid, subject.masks.laid)
        after = outcomes(changed)
    finally:
        for path, held in paths.items():
            path.write_bytes(held)
    for name, outcome in before.items():
        assert outcome.learning_rate == after[name].learning_rate
        np.testing.assert_array_equal(outcome.scores, after[name].scores)
