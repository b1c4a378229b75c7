"""Scores of masks in a study: means over images, over labels and over patients, and what stays undefined."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.errors import InputError
from adaptmed.metrics.segmentation import METRICS
from adaptmed.study.report.kinds import LABELS, MASKS, kind_of
from adaptmed.study.scoring import Truth
from adaptmed.study.statistics import Cell, comparisons, records, summaries
from adaptmed.tasks.segmentation.judging import score_nothing
from adaptmed.tasks.segmentation.masks import Masks

LABELLED = ("effusion", "nodule")
DICE, POSITIVES = (list(METRICS).index(name) for name in ("dice", "dice_positives"))
N = 12


def make_truth():
    """Twelve images of six patients; the last image of all holds nothing."""
    present = np.random.default_rng(0).random((N, 2)) < 0.5
    present[0], present[-1] = True, False
    return Truth("segmentation", LABELLED, present.astype(float), np.arange(N) // 2, "m.csv", "vit + bert")


def make_cell(truth, arm="adaptor", fraction=0.1, seed=0, reasons=None):
    """Random Dice where the label is there, 1 or 0 elsewhere; surface distances of no image."""
    generator = np.random.default_rng([len(arm), int(10 * fraction), seed])
    values = np.full((N, 2, len(METRICS)), np.nan)
    there = truth.labels > 0
    dice = np.where(there, generator.random((N, 2)), generator.integers(0, 2, (N, 2)))
    values[..., DICE], values[..., POSITIVES] = dice, np.where(there, dice, np.nan)
    return Cell(arm, fraction, seed, values, reasons or {}, 20, {"effusion": 6, "nodule": 3}, 771, 1.5)


def make_cells(truth, **options):
    return [make_cell(truth, arm, f, s, **options) for arm in ("frozen", "adaptor") for f in (0.1, 1.0) for s in (0, 1)]


def pick(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def value_of(rows, **wanted):
    (row,) = pick(rows, **wanted)
    return row["value"]


def test_values_are_equal_means_over_images_and_macro_over_labels():
    truth = make_truth()
    cell = make_cell(truth)
    rows = records([cell], truth, replicates=20)
    assert {(row["metric"], row["label"]) for row in rows} == {(m, n) for m in METRICS for n in (*LABELLED, "macro")}
    assert {row["task"] for row in rows} == {"segmentation"}
    for metric, place in (("dice", DICE), ("dice_positives", POSITIVES)):
        by_hand = []
        for label, name in enumerate(LABELLED):
            defined = [v for v in cell.values[:, label, place].tolist() if v == v]
            by_hand.append(sum(defined) / len(defined))
            assert value_of(rows, metric=metric, label=name) == pytest.approx(by_hand[-1])
        assert value_of(rows, metric=metric, label="macro") == pytest.approx(sum(by_hand) / 2)
    assert pick(rows, metric="dice", label="nodule")[0]["n_positive"] == 3
    assert {row["n_test"] for row in rows} == {N}


def test_summaries_and_differences_are_means_over_seeds():
    truth = make_truth()
    cells = make_cells(truth)
    single, whole = records(cells, truth, replicates=20), summaries(cells, truth, replicates=20)
    gaps = comparisons(cells, truth, baseline="frozen", replicates=20)
    for metric in ("dice", "dice_positives"):
        for label in (*LABELLED, "macro"):
            place = {"fraction": 1.0, "metric": metric, "label": label}
            means = {
                arm: np.mean([value_of(single, arm=arm, seed=seed, **place) for seed in (0, 1)])
                for arm in ("frozen", "adaptor")
            }
            assert value_of(whole, arm="adaptor", **place) == pytest.approx(means["adaptor"])
            (gap,) = pick(gaps, **place)
            assert gap["difference"] == pytest.approx(means["adaptor"] - means["frozen"])
            assert gap["n_seeds"] == 2
    assert {row["arm"] for row in gaps} == {"adaptor"}


def masks_of(present):
    """As much of masks as scoring nothing reads."""
    values = {row: (0, *np.flatnonzero(there) + 1) for row, there in enumerate(present)}
    masks = object.__new__(Masks)
    vars(masks).update(labels={0: "background", 1: "effusion", 2: "nodule"}, values=values)
    return masks


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_predicting_nothing_scores_the_share_of_empty_images_exactly(present):
    table = np.array(present)
    scores = score_nothing(masks_of(table), range(len(table)))
    truth = Truth("segmentation", LABELLED, table.astype(float), np.arange(len(table)), "m.csv", "vit")
    rows = records([Cell("empty", 1.0, 0, scores, {}, 1, {}, 0, 0.0)], truth, replicates=2)
    for label, name in enumerate(LABELLED):
        assert value_of(rows, metric="dice", label=name) == int((~table[:, label]).sum()) / len(table)
        assert value_of(rows, metric="dice_positives", label=name) == (0.0 if table[:, label].any() else None)


def test_what_is_undefined_is_null_with_a_reason_and_never_nan():
    truth = make_truth()
    cells = make_cells(truth)
    written = [records(cells, truth, replicates=20), summaries(cells, truth, replicates=20)]
    written.append(comparisons(cells, truth, baseline="frozen", replicates=20))
    json.dumps(written, allow_nan=False)
    for rows, name in zip(written, ("value", "value", "difference"), strict=True):
        for metric, words in (("hd95_mm", METRICS["hd95_mm"]), ("surface_dice", METRICS["surface_dice"])):
            found = pick(rows, metric=metric)
            assert found
            for row in found:
                assert row[name] is row["ci_low"] is row["ci_high"] is None
                assert f"undefined in every test image: {words}" in row["reason"]


@pytest.mark.parametrize("with_reason", ["frozen", "adaptor"])
def test_a_label_without_a_training_mask_leaves_the_macro_of_both_arms(with_reason):
    truth, reason = make_truth(), "no training mask of the fraction holds it"
    cells = [
        replace(cell, reasons={"nodule": reason}) if cell.arm == with_reason else cell for cell in make_cells(truth)
    ]
    rows = records(cells, truth, replicates=20)
    (row,) = pick(rows, arm=with_reason, fraction=0.1, seed=0, metric="dice", label="nodule")
    assert (row["value"], row["reason"]) == (None, reason)
    (macro,) = pick(rows, arm=with_reason, fraction=0.1, seed=0, metric="dice", label="macro")
    effusion = value_of(rows, arm=with_reason, fraction=0.1, seed=0, metric="dice", label="effusion")
    assert (macro["value"], macro["reason"]) == (effusion, f"without nodule: {reason}")
    gaps = comparisons(cells, truth, baseline="frozen", replicates=20)
    place = {"fraction": 0.1, "metric": "dice"}
    (alone,), (whole,) = (pick(gaps, label=label, **place) for label in ("effusion", "macro"))
    assert alone["difference"] == whole["difference"]
    assert alone["ci_low"] == whole["ci_low"]
    assert "without nodule" in whole["reason"]
    (gone,) = pick(gaps, label="nodule", **place)
    assert (gone["difference"], gone["reason"]) == (None, reason)


def test_a_cell_that_could_not_be_trained_has_no_macro():
    truth, reason = make_truth(), "no training mask of the fraction holds it"
    cell = make_cell(truth, reasons=dict.fromkeys(LABELLED, reason))
    rows = records([cell], truth, replicates=5)
    assert {row["value"] for row in rows} == {None}
    assert {row["reason"] for row in rows} == {reason}


def test_a_patient_with_many_images_is_drawn_as_one():
    """Patient 0 has fifty images, patients 1 and 2 one each: the interval is that of three draws out of three."""
    patients = np.array([0] * 50 + [1, 2])
    values = np.full((52, 1, len(METRICS)), np.nan)
    values[..., DICE] = np.where(patients == 0, 1.0, 0.0)[:, None]
    truth = Truth("segmentation", ("effusion",), np.ones((52, 1)), patients, "m.csv", "vit")
    cell = Cell("adaptor", 1.0, 0, values, {}, 1, {}, 1, 0.0)
    (row,) = pick(records([cell], truth, replicates=400), metric="dice", label="effusion")
    assert row["value"] == pytest.approx(50 / 52)
    assert (row["ci_low"], row["ci_high"]) == (0.0, 1.0)  # patient 0 is missing from 8 draws of 27
    apart = replace(truth, patients=np.arange(52))
    (row,) = pick(records([cell], apart, replicates=400), metric="dice", label="effusion")
    assert row["ci_low"] > 0.8


def test_the_order_of_cells_changes_nothing():
    truth = make_truth()
    cells = make_cells(truth)
    mixed = [cells[place] for place in np.random.default_rng(3).permutation(len(cells))]

    def facts(rows):
        return sorted(json.dumps(row, sort_keys=True) for row in rows)

    for make in (records, summaries):
        assert facts(make(cells, truth, replicates=20)) == facts(make(mixed, truth, replicates=20))
    one, two = (comparisons(some, truth, baseline="frozen", replicates=20) for some in (cells, mixed))
    assert facts(one) == facts(two)


@pytest.mark.parametrize("shape", [(N, 2), (N, 3, len(METRICS)), (N - 1, 2, len(METRICS)), (N, 2, 3)])
def test_scores_of_another_shape_are_refused(shape):
    truth = make_truth()
    cell = replace(make_cell(truth), values=np.zeros(shape))
    with pytest.raises(InputError, match=rf"scores of adaptor, .*expected shape \({N}, 2, 4\), but got"):
        records([cell], truth, replicates=5)


def test_a_report_tells_masks_from_labels_by_its_rows():
    truth = make_truth()
    assert kind_of(summaries([make_cell(truth)], truth, replicates=5)) is MASKS
    assert kind_of([]) is LABELS
    assert kind_of([{"task": "multilabel"}]) is LABELS
