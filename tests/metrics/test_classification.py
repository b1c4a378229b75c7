import inspect

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.errors import InputError
from adaptmed.metrics import classification as ours

BINARY = [
    (ours.weighted_auroc, sklearn.metrics.roc_auc_score),
    (ours.weighted_average_precision, sklearn.metrics.average_precision_score),
]


def binary(seed, n=60):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    labels[:2] = 0, 1
    return np.round(random.random(n) * 0.8 + 0.2 * labels, 1), labels, random.integers(0, 4, (5, n)) + 0.0


def multiclass(seed, n=80, classes=4):
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, n - classes)])
    scores = random.dirichlet(np.ones(classes), n) + 0.5 * np.eye(classes)[labels]
    return scores / scores.sum(1, keepdims=True), labels, random.integers(1, 4, (5, n)) + 0.0


@pytest.mark.parametrize(("function", "oracle"), BINARY)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_ranking_metrics_equal_sklearn_with_ties_and_weights(function, oracle, seed):
    scores, labels, weights = binary(seed)
    weights[:, :2] = 1
    expected = [oracle(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(function(scores, labels, weights), expected, rtol=1e-9)


@pytest.mark.parametrize("function", [ours.weighted_auroc, ours.weighted_average_precision])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_laws_of_ranking_metrics(function, seed):
    scores, labels, weights = binary(seed)
    weights[:, :2] = 1
    value = function(scores, labels, weights)
    order = np.random.default_rng(seed).permutation(len(scores))
    np.testing.assert_allclose(function(scores[order], labels[order], weights[:, order]), value, rtol=1e-9)
    np.testing.assert_allclose(function(np.exp(3 * scores), labels, weights), value, rtol=1e-9)
    times = weights[0].astype(int)
    repeated = function(scores.repeat(times), labels.repeat(times), np.ones((1, times.sum())))
    np.testing.assert_allclose(repeated[0], value[0], rtol=1e-9)


def test_auroc_of_negated_scores_is_the_complement():
    scores, labels, weights = binary(3)
    both = ours.weighted_auroc(scores, labels, weights) + ours.weighted_auroc(-scores, labels, weights)
    np.testing.assert_allclose(both, 1, rtol=1e-12)


def test_constant_scores_are_worth_nothing():
    _, labels, weights = binary(0)
    np.testing.assert_allclose(ours.weighted_auroc(np.zeros(60), labels, weights), 0.5)
    np.testing.assert_allclose(
        ours.weighted_average_precision(np.zeros(60), labels, weights), weights @ labels / weights.sum(1)
    )


@pytest.mark.parametrize("function", [ours.weighted_auroc, ours.weighted_average_precision])
def test_a_replicate_without_one_side_is_undefined(function):
    scores, labels = np.array([0.1, 0.7, 0.9]), np.array([0, 1, 1])
    values = function(scores, labels, np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]))
    assert values[0] == 1
    assert np.isnan(values[1:]).all()


@pytest.mark.parametrize("missing", [np.nan, -1])
def test_what_is_not_labelled_is_left_out(missing):
    scores, labels, weights = binary(5)
    labels = labels.astype(float)
    labels[10:20] = missing
    scores[15] = np.nan  # of an item that is not labelled
    keep = np.r_[0:10, 20:60]
    for function in (ours.weighted_auroc, ours.weighted_average_precision, ours.weighted_expected_calibration_error):
        expected = function(scores[keep], labels[keep], weights[:, keep])
        np.testing.assert_allclose(function(scores, labels, weights), expected, rtol=1e-12)
    probabilities, classes, heavy = multiclass(5)
    masked = np.where(np.arange(80) < 70, classes, -1)
    for function in (ours.weighted_accuracy, ours.weighted_balanced_accuracy, ours.weighted_macro_auroc):
        expected = function(probabilities[:70], classes[:70], heavy[:, :70])
        np.testing.assert_allclose(function(probabilities, masked, heavy), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_multiclass_metrics_equal_sklearn(seed):
    scores, labels, weights = multiclass(seed)
    predicted = scores.argmax(1)
    for i, row in enumerate(weights):
        area = sklearn.metrics.roc_auc_score(labels, scores, multi_class="ovr", sample_weight=row)
        assert ours.weighted_macro_auroc(scores, labels, weights)[i] == pytest.approx(area)
        right = sklearn.metrics.accuracy_score(labels, predicted, sample_weight=row)
        assert ours.weighted_accuracy(scores, labels, weights)[i] == pytest.approx(right)
        recall = sklearn.metrics.balanced_accuracy_score(labels, predicted, sample_weight=row)
        assert ours.weighted_balanced_accuracy(scores, labels, weights)[i] == pytest.approx(recall)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_equals_torchmetrics(seed):
    random = np.random.default_rng(seed)
    said, came = random.random(200), random.integers(0, 2, 200)
    expected = torchmetrics.binary_calibration_error(torch.tensor(said), torch.tensor(came), n_bins=15)
    assert ours.expected_calibration_error(said, came) == pytest.approx(float(expected), abs=1e-6)
    scores, labels, _ = multiclass(seed)
    expected = torchmetrics.multiclass_calibration_error(
        torch.tensor(scores), torch.tensor(labels), num_classes=4, n_bins=15
    )
    assert ours.expected_calibration_error(scores, labels) == pytest.approx(float(expected), abs=1e-6)


def test_weighted_calibration_equals_repetition():
    said, came, weights = binary(7)
    times = weights[0].astype(int)
    expected = ours.expected_calibration_error(said.repeat(times), came.repeat(times))
    assert ours.weighted_expected_calibration_error(said, came, weights)[0] == pytest.approx(expected)


def test_calibration_holds_the_probability_one():
    assert ours.expected_calibration_error(np.array([1.0, 1.0]), np.array([1, 0])) == pytest.approx(0.5)


def test_point_values_are_the_weighted_form_with_ones():
    scores, labels, _ = binary(11)
    assert ours.auroc(scores, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    assert ours.average_precision(scores, labels) == pytest.approx(
        sklearn.metrics.average_precision_score(labels, scores)
    )
    probabilities, classes, _ = multiclass(11)
    assert ours.macro_auroc(probabilities, classes) == pytest.approx(
        sklearn.metrics.roc_auc_score(classes, probabilities, multi_class="ovr")
    )
    assert ours.balanced_accuracy(probabilities, classes) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(classes, probabilities.argmax(1))
    )


def test_nothing_labelled_is_undefined():
    labels = np.full(4, -1)
    assert np.isnan(ours.auroc(np.arange(4.0), labels))
    assert np.isnan(ours.accuracy(np.eye(4), labels))
    assert np.isnan(ours.balanced_accuracy(np.eye(4), labels))
    assert np.isnan(ours.expected_calibration_error(np.eye(4), labels))


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="finite scores, but got 1"):
        ours.auroc(np.array([np.nan, 0.2]), np.array([0, 1]))
    with pytest.raises(InputError, match="one score, label and weight column per item"):
        inspect.unwrap(ours.weighted_auroc)(np.zeros(3), np.zeros(2), np.ones((1, 3)))  # past the shape checks of tests
    with pytest.raises(InputError, match=r"numbers in \[0, 1\].*sigmoid"):
        ours.expected_calibration_error(np.array([-2.0, 3.0]), np.array([0, 1]))
