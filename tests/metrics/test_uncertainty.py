import numpy as np
import pytest

from adaptmed.errors import InputError
from adaptmed.metrics.uncertainty import hierarchical, interval, p_value, patient_weights


def test_items_of_one_patient_are_drawn_together():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    weights = patient_weights(patients, replicates=200, seed=3)
    for name in "abc":
        columns = weights[:, patients == name]
        assert (columns == columns[:, :1]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()  # as many patients drawn as there are
    assert (weights == patient_weights(patients, replicates=200, seed=3)).all()
    assert (weights != patient_weights(patients, replicates=200, seed=4)).any()


def test_missing_patients_are_refused():
    with pytest.raises(InputError, match="1 of 2 missing"):
        patient_weights(np.array(["a", None], dtype=object))
    with pytest.raises(InputError, match="1 of 2 missing"):
        patient_weights(np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="at least one item"):
        patient_weights([])


def coverage(*, by_patient):
    random, hits = np.random.default_rng(0), 0
    for trial in range(200):
        patients = np.repeat(np.arange(60), 4)
        values = random.normal(size=60)[patients] + 0.3 * random.normal(size=240)
        weights = patient_weights(patients if by_patient else np.arange(240), replicates=200, seed=trial)
        low, high = interval(weights @ values / weights.sum(1))
        hits += low <= 0 <= high
    return hits / 200


def test_intervals_cover_when_patients_are_drawn_and_not_when_rows_are():
    assert 0.90 <= coverage(by_patient=True) <= 0.985
    assert coverage(by_patient=False) < 0.8


def test_interval_needs_half_of_the_replicates():
    samples = np.array([0.1, 0.2, np.nan, np.nan])
    assert interval(samples) == pytest.approx((0.1025, 0.1975))
    assert interval(np.array([0.1, np.nan, np.nan])) is None
    assert interval(np.array([])) is None
    assert p_value(np.array([0.1, np.nan, np.nan])) is None


def test_hierarchical_adds_the_spread_of_seeds():
    random = np.random.default_rng(0)
    patients = random.normal(size=2000)
    one = hierarchical(patients[None], seed=1)
    assert (one == patients).all()
    same = hierarchical(np.stack([patients] * 5), seed=1)
    np.testing.assert_allclose(same, patients)
    offsets = np.array([-2.0, -1, 0, 1, 2])[:, None]
    spread = hierarchical(patients + offsets, seed=1)
    assert spread.mean() == pytest.approx(patients.mean(), abs=0.06)
    assert spread.var() == pytest.approx(1 + offsets.var() / 5, rel=0.1)


def test_paired_seed_draws_cancel():
    random = np.random.default_rng(0)
    arm = random.normal(size=(5, 300))
    gap = hierarchical(arm + 0.1, seed=7) - hierarchical(arm, seed=7)
    np.testing.assert_allclose(gap, 0.1)


def test_p_values():
    assert p_value(np.zeros(99)) == 1
    assert p_value(np.full(99, 0.1)) == pytest.approx(0.02)
    assert p_value(-np.full(99, 0.1)) == pytest.approx(0.02)
    assert p_value(np.linspace(-1, 1, 99)) > 0.9
