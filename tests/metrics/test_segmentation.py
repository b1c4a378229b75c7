import warnings

import numpy as np
import pytest
from scipy import ndimage

from adaptmed.errors import InputError
from adaptmed.metrics.segmentation import METRICS, image_scores, over_patients, quiet_surfaces, weighted_mean


def blobs(size, seed, labels=2):
    """Smooth random regions, numbered 0 to ``labels``."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 1.5)
    return np.digitize(field, np.quantile(field, np.linspace(0.5, 1, labels + 1)[:-1]))


def edge(mask):
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(prediction, truth, spacing):
    """From each edge pixel of one mask to the nearest of the other, by a distance transform, in both directions."""
    a, b = edge(prediction), edge(truth)
    return [ndimage.distance_transform_edt(~y, sampling=spacing)[x] for x, y in ((a, b), (b, a))]


@pytest.mark.parametrize(
    ("size", "spacing"), [((40, 33), (1.0, 1.0)), ((31, 40), (0.7, 2.5)), ((7, 22, 25), (5.0, 0.8, 1.1))]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_against_distance_transforms(size, spacing, seed):
    truth = blobs(size, seed)
    prediction = np.roll(truth, 2, axis=-1) if seed else blobs(size, 9)
    scores = image_scores(prediction, truth, labels=[1, 2], spacing_mm=spacing, tolerance_mm=1.5)
    for place, label in enumerate([1, 2]):
        said, true = prediction == label, truth == label
        assert scores["dice"][place] == pytest.approx(2 * (said & true).sum() / (said.sum() + true.sum()))
        assert scores["dice_positives"][place] == scores["dice"][place]
        there, back = surface_distances(said, true, spacing)
        assert scores["hd95_mm"][place] == pytest.approx(
            max(np.quantile(there, 0.95), np.quantile(back, 0.95)), rel=1e-5
        )
        right = (np.concatenate([there, back]) <= 1.5).mean()
        assert scores["surface_dice"][place] == pytest.approx(right, rel=1e-5)


def test_distances_are_in_millimetres_along_the_right_axis():
    truth, prediction = np.zeros((20, 20), int), np.zeros((20, 20), int)
    truth[5, 5] = prediction[5, 9] = 1
    scores = image_scores(prediction, truth, labels=[1], spacing_mm=(100.0, 0.5))
    assert scores["hd95_mm"].tolist() == [2.0]
    assert scores["surface_dice"].tolist() == [1.0]  # 2 mm is within the tolerance
    assert image_scores(prediction, truth, labels=[1], spacing_mm=(100.0, 0.6))["surface_dice"].tolist() == [0.0]


def test_a_mask_at_the_border_has_its_edge_there():
    truth = np.ones((9, 9), int)
    prediction = truth.copy()
    prediction[:, :4] = 0
    there, back = surface_distances(prediction == 1, truth == 1, (1.0, 1.0))
    found = image_scores(prediction, truth, labels=[1], spacing_mm=(1.0, 1.0))["hd95_mm"][0]
    assert found == pytest.approx(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))


EMPTY, FULL = np.zeros((4, 5), int), np.eye(4, 5, dtype=int)


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "positive"),
    [(EMPTY, EMPTY, 1.0, np.nan), (FULL, EMPTY, 0.0, np.nan), (EMPTY, FULL, 0.0, 0.0)],
)
def test_empty_masks(prediction, truth, dice, positive):
    scores = image_scores(prediction, truth, labels=[1], spacing_mm=(1.0, 1.0))
    np.testing.assert_equal(scores["dice"], [dice])
    np.testing.assert_equal(scores["dice_positives"], [positive])
    np.testing.assert_equal(scores["hd95_mm"], [np.nan])
    np.testing.assert_equal(scores["surface_dice"], [np.nan])


def test_bytes_are_read_as_they_are():
    truth = np.array([[0, 200, 200, 0]], np.uint8)
    assert image_scores(truth[:, ::-1].copy(), truth, labels=[200, 255])["dice"].tolist() == [1.0, 1.0]


def test_without_a_spacing_there_are_no_distances():
    scores = image_scores(FULL, FULL, labels=[1])
    assert scores["dice"].tolist() == [1.0]
    assert np.isnan([scores["hd95_mm"], scores["surface_dice"]]).all()


def test_predicting_nothing_scores_exactly_the_share_of_empty_images():
    truths = [FULL if number % 7 == 0 else EMPTY for number in range(60)]
    scores = [image_scores(EMPTY, truth, labels=[1]) for truth in truths]
    records = {record["metric"]: record for record in over_patients(scores, range(60), names=["mass"])}
    assert records["dice"]["value"] == sum(not truth.any() for truth in truths) / 60
    assert records["dice_positives"]["value"] == 0.0
    assert records["dice_positives"]["n_images"] == 9
    assert records["hd95_mm"]["value"] is None
    assert records["hd95_mm"]["reason"].startswith("undefined in 60 of 60 images: truth or prediction is empty")


def test_what_is_not_labelled_does_not_count():
    truth = np.array([[1, 1, -1, 0], [0, 0, -1, -1]])
    prediction = np.array([[1, 0, 1, 0], [0, 0, 1, 1]])
    assert image_scores(prediction, truth, labels=[1])["dice"].tolist() == [pytest.approx(2 / 3)]
    nothing = image_scores(prediction, np.full_like(truth, -1), labels=[1], spacing_mm=(1.0, 1.0))
    assert all(np.isnan(values).all() for values in nothing.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prediction": EMPTY[:3]}, r"one size, but got \(3, 5\) and \(4, 5\)"),
        ({"prediction": EMPTY[0], "truth": EMPTY[0]}, r"two images or two volumes of one size, but got \(5,\)"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, "2 lengths above 0, one per axis"),
        ({"spacing_mm": (1.0, 0.0)}, "2 lengths above 0"),
        ({"spacing_mm": (1.0, float("nan"))}, "2 lengths above 0"),
        ({"tolerance_mm": -1.0}, "a length of at least 0, but got -1"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    given = {"prediction": EMPTY, "truth": FULL, "labels": [1]} | change
    with pytest.raises(InputError, match=said):
        image_scores(given.pop("prediction"), given.pop("truth"), **given)


def table(values):
    """Scores of images of which only one metric is asked."""
    return [{name: np.asarray(row, dtype=float) for name in METRICS} for row in values]


def test_means_and_reasons():
    nan = np.nan
    records = over_patients(table([[1, nan], [0.5, nan], [nan, nan]]), ["a", "b", "c"], names=["lung", "mass"])
    dice = {record["label"]: record for record in records if record["metric"] == "dice"}
    assert dice["lung"]["value"] == 0.75
    assert dice["lung"]["reason"] == "undefined in 1 of 3 images: the image is not labelled"
    assert (dice["lung"]["n_images"], dice["mass"]["n_images"], dice["macro"]["n_images"]) == (2, 0, 2)
    assert dice["mass"]["value"] is dice["mass"]["ci_low"] is dice["mass"]["ci_high"] is None
    assert dice["mass"]["reason"] == "undefined in 3 of 3 images: the image is not labelled"
    assert dice["macro"]["value"] == 0.75
    assert dice["macro"]["reason"] == "undefined for 1 of 2 labels"
    assert all(value == value for record in records for value in record.values())  # never NaN


def test_one_label_has_no_macro_and_whole_values_no_reason():
    records = over_patients(table([[1], [0]]), ["a", "b"], names=["mass"])
    assert {record["label"] for record in records} == {"mass"}
    assert {record["reason"] for record in records} == {None}


def test_images_of_one_patient_are_drawn_together():
    """Ten images of each of twenty patients that agree: as uncertain as twenty images."""
    values = np.random.default_rng(0).random(20)
    many = table(np.repeat(values, 10)[:, None])
    clustered, alone, single = (
        over_patients(scores, patients, names=["mass"])[0]
        for scores, patients in (
            (many, np.repeat(np.arange(20), 10)),
            (many, np.arange(200)),
            (table(values[:, None]), np.arange(20)),
        )
    )
    widths = [record["ci_high"] - record["ci_low"] for record in (clustered, alone, single)]
    assert clustered["ci_low"] < clustered["value"] < clustered["ci_high"]
    assert widths[0] == pytest.approx(widths[2])
    assert widths[1] < 0.5 * widths[0]


def test_a_rare_label_keeps_its_interval():
    """One patient in 401 has a value: 63 % of the draws hold it."""
    record = over_patients(table([[0.5]] + [[np.nan]] * 400), np.arange(401), names=["mass"])[0]
    assert (record["ci_low"], record["value"], record["ci_high"]) == (0.5, 0.5, 0.5)


def test_without_a_defined_draw_there_is_no_interval():
    record = over_patients(table([[0.5], [np.nan]]), ["a", "b"], names=["mass"], replicates=1, seed=3)[0]
    assert record["value"] == 0.5
    assert record["ci_low"] is record["ci_high"] is None
    assert record["reason"].endswith("no interval: fewer than half of the bootstrap replicates are defined")


def test_as_many_patients_as_images():
    with pytest.raises(InputError, match="a patient for each of 2 images, but got 1"):
        over_patients(table([[1], [0]]), ["a"], names=["mass"])


def test_weighted_mean_is_the_mean_of_what_is_drawn():
    values, weights = np.array([0.1, np.nan, 0.7, 0.4]), np.random.default_rng(1).integers(0, 3, (30, 4))
    for weight, found in zip(weights, weighted_mean(values, weights), strict=True):
        drawn = np.repeat(values, weight)
        expected = drawn[~np.isnan(drawn)].mean() if (~np.isnan(drawn)).any() else np.nan
        np.testing.assert_allclose(found, expected)


def test_threads_that_score_under_one_silence_are_silent():
    """Two blocks that overlap as in threads: the first to end puts the filters back while the second still works."""
    said = "Argument `always_return_as_numpy` has been deprecated"
    for held in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outer, first, second = quiet_surfaces(), quiet_surfaces(), quiet_surfaces()
            for block in (outer, first, second)[not held :]:
                block.__enter__()
            first.__exit__(None, None, None)
            if held:
                warnings.warn(said, FutureWarning, stacklevel=1)
            else:
                with pytest.raises(FutureWarning, match="always_return_as_numpy"):
                    warnings.warn(said, FutureWarning, stacklevel=1)
