from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.data.splits import assign_splits, fraction_rows, overlapping_patients, patient_digest
from adaptmed.errors import InputError

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@st.composite
def datasets(draw, min_rows=1):
    """Patients with one or more rows, and labels of either form."""
    patients = draw(st.lists(NAMES, min_size=min_rows, max_size=60))
    n = len(patients)
    width = draw(st.integers(0, 4))
    matrix = st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=n * width, max_size=n * width)
    classes = st.lists(st.integers(-1, 3), min_size=n, max_size=n)
    form = draw(st.sampled_from(["matrix", "classes", "none"]))
    if form == "none":
        return patients, None
    labels = np.reshape(draw(matrix), (n, width)) if form == "matrix" else np.array(draw(classes))
    return patients, labels


def strata_of(patients, labels):
    """Each patient's rarest positive label, written again in the plainest way."""
    if labels is None:
        return dict.fromkeys(patients, None)
    if labels.ndim == 1:
        labels = np.stack([labels == k for k in range(4)], axis=1).astype(float)
    positives = defaultdict(set)
    for patient, row in zip(patients, labels, strict=True):
        positives[patient] |= {k for k, value in enumerate(row) if value == 1}
    prevalence = Counter(k for some in positives.values() for k in some)
    return {
        patient: min(some, key=lambda k: (prevalence[k], k)) if some else None for patient, some in positives.items()
    }


@given(datasets(), st.floats(0.001, 1.0), st.floats(0.001, 1.0), st.integers(0, 5))
def test_fractions_are_nested_patient_disjoint_and_of_the_right_size(data, one, other, seed):
    patients, labels = data
    small, large = (fraction_rows(patients, labels, share, seed=seed) for share in sorted((one, other)))
    assert not (small & ~large).any()
    inside = {patient for patient, taken in zip(patients, small, strict=True) if taken}
    outside = {patient for patient, taken in zip(patients, small, strict=True) if not taken}
    assert not inside & outside
    assert len(inside) == max(1, round(min(one, other) * len(set(patients))))
    assert fraction_rows(patients, labels, 1.0, seed=seed).all()


@given(datasets(), st.floats(0.001, 1.0), st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_choice(data, fraction, random):
    patients, labels = data
    order = random.sample(range(len(patients)), len(patients))
    moved = None if labels is None else labels[order]
    chosen = fraction_rows(patients, labels, fraction, seed=3)
    assert (fraction_rows([patients[k] for k in order], moved, fraction, seed=3) == chosen[order]).all()
    splits = assign_splits(patients, labels)
    assert (assign_splits([patients[k] for k in order], moved) == splits[order]).all()


@given(st.integers(0, 10**6), st.integers(1, 300), st.floats(0.001, 1.0))
def test_every_stratum_gives_the_same_share_within_one_patient(seed, n, fraction):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 4)) < rng.random(4) ** 2).astype(float)
    patients = [f"p{k}" for k in rng.integers(0, n, n)]
    chosen = fraction_rows(patients, labels, fraction, seed=seed)
    stratum = strata_of(patients, labels)
    size = Counter(stratum.values())
    taken = Counter(stratum[patient] for patient in {p for p, take in zip(patients, chosen, strict=True) if take})
    lowest = max((taken[name] - 1) / size[name] for name in size)
    highest = min((taken[name] + 1) / size[name] for name in size)
    assert lowest < highest + 1e-9  # some share t has |taken - t * size| < 1 in all strata
    assert lowest < fraction + (len(size) + 1) / len(set(patients))
    assert highest > fraction - (len(size) + 1) / len(set(patients))


def test_strata_stay_close_to_the_fraction_on_a_usual_dataset():
    rng = np.random.default_rng(0)
    labels = (rng.random((3000, 5)) < [0.4, 0.2, 0.1, 0.05, 0.02]).astype(float)
    patients = [f"p{k}" for k in range(3000)]
    stratum = strata_of(patients, labels)
    size = Counter(stratum.values())
    for fraction in (0.01, 0.1, 0.5):
        chosen = fraction_rows(patients, labels, fraction, seed=1)
        taken = Counter(stratum[p] for p, take in zip(patients, chosen, strict=True) if take)
        assert chosen.sum() == 3000 * fraction
        assert all(abs(taken[name] - fraction * n) < 2 for name, n in size.items())


def test_over_seeds_no_stratum_is_favoured():
    patients, classes = [str(k) for k in range(100)], np.array([0] * 95 + [1] * 5)
    rare = [fraction_rows(patients, classes, 0.1, seed=seed)[95:].sum() for seed in range(400)]
    assert np.mean(rare) == pytest.approx(0.5, abs=0.1)


def test_the_seed_decides():
    patients = [str(k) for k in range(200)]
    first, second = (fraction_rows(patients, None, 0.5, seed=seed) for seed in (0, 1))
    assert 60 < (first != second).sum() < 140


def test_names_of_classes_serve_as_strata():
    patients, names = [str(k) for k in range(40)], ["a"] * 20 + ["b"] * 20
    chosen = fraction_rows(patients, names, 0.5, seed=0)
    assert abs(int(chosen[:20].sum()) - 10) <= 1
    assert chosen.sum() == 20


@given(datasets())
def test_splits_hold_whole_patients_and_their_shares(data):
    patients, labels = data
    splits = assign_splits(patients, labels)
    assert overlapping_patients(patients, splits) == {}
    n = len(set(patients))
    count = Counter(dict(zip(patients, splits, strict=True)).values())
    assert count["train"] == round(0.7 * n)
    assert count["train"] + count["validate"] == round(0.8 * n)


def test_overlap_and_digest():
    assert overlapping_patients(["a", "a", "b", "b"], ["test", "train", "test", "test"]) == {"a": ("test", "train")}
    digests = patient_digest(["x", "y", "x"])
    assert len(digests) == 2
    assert digests == sorted(digests)
    assert digests == patient_digest(["y", "x"])
    assert set(patient_digest(["x"])) < set(digests)
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(InputError, match=r"`fraction`: expected a number in \(0, 1\]"):
        fraction_rows(["a"], None, fraction, seed=0)


def test_bad_arguments():
    with pytest.raises(InputError, match="`patients`: expected at least one row"):
        fraction_rows([], None, 0.5, seed=0)
    with pytest.raises(InputError, match="`labels`: expected one row of labels for each of 2 rows"):
        fraction_rows(["a", "b"], [[1.0]], 0.5, seed=0)
    with pytest.raises(InputError, match="`shares`: expected three shares that sum to 1"):
        assign_splits(["a"], shares=(0.5, 0.1, 0.1))
