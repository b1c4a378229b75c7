import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from adaptmed.errors import InputError
from adaptmed.heads import probe as module
from adaptmed.heads.fraction import Fraction, grouped_folds
from adaptmed.heads.probe import STRENGTHS, fit_best_probe, fit_probe, pca_whitened


def study(rows=120, width=8, labels=2, seed=0, noise=1.0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, width)) * np.linspace(3, 0.1, width) + 2
    truth = generator.normal(size=(width, labels))
    noisy = (features - 2) @ truth + noise * generator.normal(size=(rows, labels))
    return features, (noisy > 0.3).astype(float), generator.integers(0, rows // 2, rows), truth


def reference(features, labels, strength):
    """scikit-learn's own regression, weights brought back to the features as given."""
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(scaler.transform(features), labels)
    weight = model.coef_ / scaler.scale_
    return weight, model.intercept_ - weight @ scaler.mean_


@pytest.mark.parametrize(("rows", "width"), [(120, 8), (30, 50)])
def test_equals_scikit_learn_at_the_same_strength(rows, width):
    features, labels, groups, _ = study(rows, width)
    probe = fit_probe(features, labels, groups)
    for index in range(2):
        weight, bias = reference(features, labels[:, index], probe.strengths[index])
        np.testing.assert_allclose(probe.weight[index], weight[0], rtol=1e-4, atol=1e-4 * np.abs(weight).max())
        np.testing.assert_allclose(probe.bias[index], bias[0], rtol=1e-4, atol=1e-4)


def test_multiclass_equals_scikit_learn():
    features, _, groups, truth = study(150, 6, 3)
    labels = (features @ truth - (features @ truth).mean(0)).argmax(1)
    probe = fit_probe(features, labels, groups)
    weight, bias = reference(features, labels, probe.strengths[0])
    np.testing.assert_allclose(probe.weight, weight, atol=1e-4 * np.abs(weight).max())
    np.testing.assert_allclose(probe.bias, bias, atol=1e-3)
    np.testing.assert_allclose(probe.predict(features).sum(1), 1)


def test_strength_has_the_smallest_cross_validated_loss():
    features, labels, groups, _ = study(90, 5, 1)
    probe = fit_probe(features, labels, groups, seed=3)
    order = np.argsort(groups.astype(str), kind="stable")
    x, y, g = StandardScaler().fit_transform(features)[order], labels[order, 0], groups[order].astype(str)
    losses = []
    folds = grouped_folds(y, g, seed=3)
    for strength in np.array(STRENGTHS) / 5:
        held_out, predicted = [], []
        for train, test in folds:
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(x[train], y[train])
            held_out.append(y[test])
            predicted.append(model.predict_proba(x[test])[:, 1])
        losses.append(log_loss(np.concatenate(held_out), np.concatenate(predicted)))
    # The folds' own order of rows inside a patient may differ; that changes no fold.
    assert probe.strengths[0] == pytest.approx(STRENGTHS[int(np.argmin(losses))] / 5)
    assert probe.loss == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows_does_not_matter(seed):
    features, labels, groups, _ = study(40, 6)
    labels[::7, 0] = np.nan
    order = np.random.default_rng(seed).permutation(40)
    probe, again = fit_probe(features, labels, groups), fit_probe(features[order], labels[order], groups[order])
    np.testing.assert_array_equal(again.weight, probe.weight)
    np.testing.assert_array_equal(again.bias, probe.bias)


def test_rows_without_a_label_do_not_touch_its_regression():
    features, labels, groups, _ = study(80, 4)
    mean, std = features.mean(0), features.std(0)
    half = features[:40]
    half = (half - half.mean(0)) / half.std(0) * std + mean  # the standardisation alone sees every row
    rest = (features[40:] - features[40:].mean(0)) / features[40:].std(0) * std + mean
    masked = labels.copy()
    masked[40:, 0] = np.nan
    probe = fit_probe(np.vstack([half, rest]), masked, groups)
    alone = fit_probe(half, labels[:40, :1], groups[:40])
    np.testing.assert_allclose(probe.weight[0], alone.weight[0], rtol=1e-3, atol=1e-4)


def test_labels_without_both_values_have_a_reason_and_no_prediction():
    features, labels, groups, _ = study(30, 4, 4)
    labels[:, 1], labels[:, 2], labels[:, 3] = 0, 1, np.nan
    probe = fit_probe(features, labels, groups)
    assert probe.reasons == {
        1: "no positive in the fraction",
        2: "no negative in the fraction",
        3: "no row of the fraction has this label",
    }
    predicted = probe.predict(features)
    assert np.isfinite(predicted[:, 0]).all()
    assert np.isnan(predicted[:, 1:]).all()
    assert probe.parameters == 5
    assert len(probe.strengths) == 1


def test_missing_classes_have_probability_zero():
    features, labels, groups, _ = study(60, 4)
    codes = np.where(labels[:, 0] > 0, 3, 1)
    codes[:5] = -1
    probe = fit_probe(features, codes, groups, classes=5)
    predicted = probe.predict(features)
    assert set(probe.reasons) == {0, 2, 4}
    np.testing.assert_array_equal(predicted[:, [0, 2, 4]], 0)
    np.testing.assert_allclose(predicted.sum(1), 1)
    assert (predicted.argmax(1) == codes)[5:].mean() > 0.8


def test_one_class_alone_predicts_nothing():
    features, _, groups, _ = study(20, 4)
    probe = fit_probe(features, np.ones(20, dtype=int), groups, classes=3)
    assert set(probe.reasons) == {0, 1, 2}
    assert np.isnan(probe.predict(features)).all()
    assert probe.parameters == 0


def test_a_single_positive_patient_gets_the_default_strength():
    features, labels, groups, _ = study(20, 4, 1)
    labels[:], labels[:2] = 0, 1
    groups[:2] = 100
    probe = fit_probe(features, labels, groups)
    assert probe.strengths == (module.DEFAULT_STRENGTH / 4,)
    assert np.isnan(probe.loss)
    assert np.isfinite(probe.predict(features)).all()


def test_constant_features_give_the_prevalence():
    probe = fit_probe(np.ones((8, 3)), np.array([[1.0], [0], [0], [0]] * 2), np.arange(8))
    np.testing.assert_allclose(probe.predict(np.ones((1, 3))), 0.25, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_folds_keep_patients_together_and_score_every_row_once(seed, classes):
    generator = np.random.default_rng(seed)
    codes, groups = generator.integers(0, classes, 60), generator.integers(0, 25, 60).astype(str)
    folds = grouped_folds(codes, groups, seed=seed)
    assert len(folds) >= 2
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(60))


def test_a_class_of_one_row_breaks_no_fold():
    features, labels, groups, _ = study(60, 4)
    codes = labels[:, 0].astype(int)
    codes[0] = 2
    assert np.isfinite(fit_probe(features, codes, groups).loss)


def test_best_variant_is_the_informative_one():
    features, labels, groups, _ = study(100, 6)
    noise = np.random.default_rng(5).normal(size=features.shape)
    probe, name = fit_best_probe({"noise": noise, "good": features}, labels, groups)
    assert name == "good"
    assert probe.loss < fit_probe(noise, labels, groups).loss
    labels[:], labels[0] = 0, 1
    assert fit_best_probe({"first": noise, "second": features}, labels, groups)[1] == "first"


def test_text_informed_probe_between_its_limits(monkeypatch):
    features, labels, groups, truth = study(60, 6, 2, noise=8.0)
    prior = truth.T + np.random.default_rng(1).normal(size=(2, 6)) * 0.3
    monkeypatch.setattr(module, "STRENGTHS", (1e-9,))
    zero_shot = fit_probe(features, labels, groups, prior=prior)
    for index in range(2):
        direction = zero_shot.weight[index] / np.linalg.norm(zero_shot.weight[index])
        np.testing.assert_allclose(direction, prior[index] / np.linalg.norm(prior[index]), atol=1e-5)
    monkeypatch.setattr(module, "STRENGTHS", (1e3,))
    informed, plain = fit_probe(features, labels, groups, prior=prior), fit_probe(features, labels, groups)
    np.testing.assert_allclose(informed.predict(features), plain.predict(features), atol=2e-3)


def test_text_informed_multiclass_limit_is_the_zero_shot_softmax(monkeypatch):
    features, _, groups, truth = study(90, 6, 4)
    labels = (features @ truth - (features @ truth).mean(0)).argmax(1)
    monkeypatch.setattr(module, "STRENGTHS", (1e-9,))
    probe = fit_probe(features, labels, groups, prior=truth.T)
    ratio = probe.weight / truth.T
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    assert ratio[0, 0] > 0


def test_a_prior_that_ranks_backwards_is_switched_off(monkeypatch):
    features, labels, groups, truth = study(60, 6, 1)
    monkeypatch.setattr(module, "STRENGTHS", (1e-9,))
    probe = fit_probe(features, labels, groups, prior=-truth.T)
    np.testing.assert_allclose(probe.weight, 0, atol=1e-5)


def test_a_good_prior_helps_when_labels_are_few():
    features, labels, groups, truth = study(2000, 30, 1, seed=4)
    few, prior = slice(0, 16), truth.T
    test = labels[100:, 0] > 0

    def loss(probe):
        return log_loss(test, probe.predict(features[100:])[:, 0])

    informed = fit_probe(features[few], labels[few], groups[few], prior=prior)
    assert loss(informed) < loss(fit_probe(features[few], labels[few], groups[few]))


def test_whitened_training_features_are_white():
    features, *_ = study(50, 6)
    white = pca_whitened(features, features, 4)
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=1e-8)
    with pytest.raises(InputError, match=r"`components`: expected 1 to 6, but got 7"):
        pca_whitened(features, features, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, g: (x, y, g[:-1]), r"`features, labels, groups`.*same rows"),
        (lambda x, y, g: (x[:0], y[:0], g[:0]), r"`features, labels, groups`"),
        (lambda x, y, g: (np.where(np.arange(20)[:, None] == 3, np.inf, x), y, g), r"`features`.*row 3"),
        (lambda x, y, g: (x, y - 1, g), r"`labels`.*not labelled"),
        (lambda x, y, g: (x, y[:, 0], g), r"`labels`: expected .*integer classes"),
    ],
)
def test_bad_input_is_refused(change, message):
    features, labels, groups, _ = study(20, 4)
    with pytest.raises(InputError, match=message):
        Fraction.of(*change(features, labels, groups))


def test_bad_options_are_refused():
    features, labels, groups, _ = study(20, 4)
    codes = labels[:, 0].astype(int)
    with pytest.raises(InputError, match=r"`classes`: expected 2 or more, but got 1"):
        fit_probe(features, codes, groups, classes=1)
    with pytest.raises(
        InputError, match=r"`prior`: expected one row per label or class \(2\) of width 4 or less, but got \(1, 4\)"
    ):
        fit_probe(features, labels, groups, prior=np.ones((1, 4)))
    with pytest.raises(InputError, match=r"`variants`"):
        fit_best_probe({}, labels, groups)
