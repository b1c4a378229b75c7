import json
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics

from adaptmed.errors import InputError
from adaptmed.files import write_json
from adaptmed.study.statistics import Cell, Truth, comparisons, judge, records, retrieval_records, summaries

NAMES = ("effusion", "nodule", "opacity")
FACTS = {"arm", "task", "dataset", "encoder", "label", "fraction", "seed", "n_train", "n_test", "n_positive", "seconds"}
KEYS = FACTS | {"trainable_parameters", "metric", "value", "ci_low", "ci_high", "reason"}
N = 240


def multilabel(*, strength=(("frozen", 0.8), ("adaptor", 1.6)), seeds=3, fractions=(0.1, 1.0)):
    random = np.random.default_rng(0)
    labels = (random.random((N, 3)) < [0.3, 0.2, 0.4]).astype(float)
    labels[:20, 1] = np.nan
    truth = Truth("multilabel", NAMES, labels, np.arange(N) // 2, "phantom", "image + text")
    noise = random.normal(size=(N, 3))
    return [
        cell(arm, fraction, seed, sigmoid(power * np.nan_to_num(labels) + noise + 0.3 * random.normal(size=(N, 3)) - 1))
        for arm, power in strength
        for fraction in fractions
        for seed in range(seeds)
    ], truth


def multiclass(seeds=2):
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, N)
    labels[:5] = -1
    truth = Truth("multiclass", NAMES, labels, np.arange(N), "planes", "image + text")
    cells = []
    for arm, power in (("frozen", 0.5), ("adaptor", 1.5)):
        for seed in range(seeds):
            scores = np.exp(power * np.eye(3)[labels] + random.normal(size=(N, 3)))
            cells.append(cell(arm, 1.0, seed, scores / scores.sum(1, keepdims=True)))
    return cells, truth


def cell(arm, fraction, seed, probabilities):
    positives = {"effusion": 12, "nodule": 8, "opacity": 16}
    return Cell(arm, fraction, seed, probabilities, {}, int(100 * fraction), positives, 771, 1.5)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def pick(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_records_hold_the_schema_and_the_oracle_values():
    cells, truth = multilabel()
    rows = records(cells, truth, replicates=60)
    assert len(rows) == 12 * 3 * 4
    assert all(set(row) == KEYS for row in rows)
    assert all(row["reason"] is None and row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows)
    known = ~np.isnan(truth.labels[:, 1])
    row = pick(rows, arm="adaptor", fraction=0.1, seed=2, metric="auroc", label="nodule")[0]
    said = pick_cell(cells, "adaptor", 0.1, 2).values[known, 1]
    assert row["value"] == pytest.approx(sklearn.metrics.roc_auc_score(truth.labels[known, 1], said))
    assert (row["n_test"], row["n_positive"], row["n_train"]) == (N - 20, 8, 10)
    parts = [pick(rows, arm="adaptor", fraction=0.1, seed=2, metric="auroc", label=name)[0]["value"] for name in NAMES]
    whole = pick(rows, arm="adaptor", fraction=0.1, seed=2, metric="auroc", label="macro")[0]
    assert whole["value"] == pytest.approx(np.mean(parts))
    assert (whole["n_test"], whole["n_positive"]) == (N, None)


def pick_cell(cells, arm, fraction, seed):
    return next(item for item in cells if (item.arm, item.fraction, item.seed) == (arm, fraction, seed))


def test_multiclass_records():
    cells, truth = multiclass()
    rows = records(cells, truth, replicates=60)
    assert {(row["metric"], row["label"]) for row in rows} == {
        (metric, "all") for metric in ("accuracy", "balanced_accuracy", "auroc", "ece")
    }
    assert all(set(row) == KEYS and row["n_test"] == N - 5 for row in rows)
    known, said = truth.labels >= 0, cells[0].values
    expected = sklearn.metrics.roc_auc_score(truth.labels[known], said[known], multi_class="ovr")
    assert rows[2]["value"] == pytest.approx(expected)


def test_order_of_test_items_and_cells_does_not_matter():
    cells, truth = multilabel(seeds=1)
    truth = replace(truth, patients=np.arange(N))
    order = np.random.default_rng(3).permutation(N)
    turned = [replace(item, values=item.values[order]) for item in cells[::-1]]
    moved = replace(truth, labels=truth.labels[order], patients=truth.patients[order])
    ours, theirs = (
        {(r["arm"], r["fraction"], r["metric"], r["label"]): (r["value"], r["ci_low"]) for r in rows}
        for rows in (summaries(cells, truth, replicates=50), summaries(turned, moved, replicates=50))
    )
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        assert values == pytest.approx(theirs[key])


def test_undefined_is_none_with_a_reason_and_never_nan(tmp_path):
    cells, truth = multilabel(fractions=(0.1,), seeds=2)
    cells[0] = replace(cells[0], reasons={"nodule": "no positive in the fraction"})
    cells[0].values[:, 1] = np.nan
    truth.labels[:, 2] = np.where(truth.labels[:, 2] == 1, np.nan, truth.labels[:, 2])
    judged = judge(cells, truth, replicates=40)
    rows = judged.records()
    undefined = pick(rows, arm="frozen", seed=0, label="nodule")
    assert {row["reason"] for row in undefined} == {"no positive in the fraction"}
    assert all(row["value"] is row["ci_low"] is row["ci_high"] is None for row in undefined)
    assert {row["reason"] for row in pick(rows, metric="auroc", label="opacity")} == {"no positive in the test split"}
    assert all(row["value"] is not None for row in pick(rows, metric="ece", label="opacity"))
    whole = pick(rows, arm="frozen", seed=0, metric="auroc", label="macro")[0]
    alone = pick(rows, arm="frozen", seed=0, metric="auroc", label="effusion")[0]
    assert whole["value"] == pytest.approx(alone["value"])
    assert "without nodule: no positive in the fraction" in whole["reason"]
    half = pick(judged.summaries(), arm="frozen", metric="auroc", label="nodule")[0]
    assert half["n_seeds"] == 1
    assert half["reason"].startswith("undefined in 1 of 2 seeds; no positive in the fraction")
    everything = {"records": rows, "summaries": judged.summaries(), "comparisons": judged.comparisons("frozen")}
    write_json(tmp_path / "results.json", everything)
    assert json.loads((tmp_path / "results.json").read_text()) == everything


def test_a_rare_label_has_a_value_but_no_interval():
    cells, truth = multilabel(fractions=(1.0,), seeds=1)
    truth.labels[:, 0] = np.where(truth.patients == 3, 1, np.where(truth.patients == 9, 0, np.nan))
    row = pick(records(cells, truth), arm="adaptor", metric="auroc", label="effusion")[0]
    assert row["value"] is not None  # two patients are labelled, and 40 % of the draws hold them both
    assert (row["ci_low"], row["ci_high"], row["n_test"]) == (None, None, 4)
    assert row["reason"] == "no interval: fewer than half of the bootstrap replicates are defined"


def test_summaries_are_means_over_seeds():
    cells, truth = multilabel()
    judged = judge(cells, truth, replicates=60)
    rows, single = judged.summaries(), judged.records()
    assert len(rows) == 4 * 12
    assert all(set(row) == KEYS - {"seed"} | {"n_seeds"} and row["n_seeds"] == 3 for row in rows)
    for row in rows:
        same = pick(single, **{key: row[key] for key in ("arm", "fraction", "metric", "label")})
        assert row["value"] == pytest.approx(np.mean([item["value"] for item in same]))


def test_comparisons_find_a_true_difference_and_are_antisymmetric():
    cells, truth = multilabel()
    judged = judge(cells, truth, replicates=200)
    ours, theirs = judged.comparisons("frozen"), judged.comparisons("adaptor")
    for one, two in zip(ours, theirs, strict=True):
        assert one["difference"] == pytest.approx(-two["difference"])
        assert one["ci_low"] == pytest.approx(-two["ci_high"])
    row = pick(ours, metric="auroc", label="macro", fraction=1.0)[0]
    assert row["ci_low"] > 0
    assert row["p_value"] < 0.05
    arms = {s["arm"]: s for s in pick(judged.summaries(), metric="auroc", label="macro", fraction=1.0)}
    assert row["difference"] == pytest.approx(arms["adaptor"]["value"] - arms["frozen"]["value"])
    widths = [s["ci_high"] - s["ci_low"] for s in arms.values()]
    assert row["ci_high"] - row["ci_low"] < sum(widths)


def test_an_arm_does_not_differ_from_itself():
    cells, truth = multilabel(strength=(("frozen", 1.0),))
    twins = cells + [replace(item, arm="twin") for item in cells]
    for row in comparisons(twins, truth, baseline="frozen", replicates=40):
        assert (row["difference"], row["ci_low"], row["ci_high"], row["p_value"]) == (0, 0, 0, 1)


def test_no_difference_is_claimed_at_the_stated_rate():
    random, claims = np.random.default_rng(5), 0
    labels = (random.random((N, 1)) < 0.4).astype(float)
    for trial in range(60):
        labels = (random.random((N, 1)) < 0.4).astype(float)
        truth = Truth("multilabel", ("x",), labels, np.arange(N), "d", "e")
        cells = [cell(arm, 1.0, 0, sigmoid(labels + random.normal(size=(N, 1)))) for arm in ("a", "b")]
        row = pick(comparisons(cells, truth, baseline="a", replicates=200, seed=trial), metric="auroc", label="x")[0]
        claims += row["ci_low"] > 0 or row["ci_high"] < 0
    assert claims <= 9  # 3 expected


def test_a_macro_is_compared_over_the_labels_of_both_arms():
    cells, truth = multilabel(fractions=(0.1,), seeds=1)
    cells[0] = replace(cells[0], reasons={"nodule": "no positive in the fraction"})
    judged = judge(cells, truth, replicates=40)
    values = {(r["arm"], r["label"]): r["value"] for r in pick(judged.records(), metric="auroc")}
    row = pick(judged.comparisons("frozen"), metric="auroc", label="macro")[0]
    gaps = [values["adaptor", name] - values["frozen", name] for name in ("effusion", "opacity")]
    assert row["difference"] == pytest.approx(np.mean(gaps))
    assert "without nodule" in row["reason"]
    lost = pick(judged.comparisons("frozen"), metric="auroc", label="nodule")[0]
    assert (lost["difference"], lost["p_value"], lost["reason"]) == (None, None, "no positive in the fraction")


def test_only_shared_seeds_are_compared():
    cells, truth = multilabel(fractions=(1.0,))
    rows = comparisons([c for c in cells if (c.arm, c.seed) != ("frozen", 0)], truth, baseline="frozen", replicates=20)
    assert {row["n_seeds"] for row in rows} == {2}


def test_multiclass_comparison_leaves_a_class_out_of_the_auroc():
    cells, truth = multiclass(seeds=1)
    cells[0] = replace(cells[0], reasons={"nodule": "no example in the fraction"})
    rows = comparisons(cells, truth, baseline="frozen", replicates=40)
    assert "without nodule" in pick(rows, metric="auroc")[0]["reason"]
    assert pick(rows, metric="accuracy")[0]["reason"] is None


def test_calibration_stands_inside_its_interval():
    random = np.random.default_rng(0)
    said = random.random((N, 1))
    truth = Truth("multilabel", ("x",), (random.random((N, 1)) < said) * 1.0, np.arange(N), "d", "e")
    row = pick(records([cell("a", 1.0, 0, said)], truth, replicates=300), metric="ece", label="x")[0]
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_retrieval_records():
    ranks = np.array([1, 1, 2, 7, -1, 30])
    rows = retrieval_records(ranks, np.arange(6), arm="adaptor", direction="image to text", n_gallery=40, replicates=80)
    assert {row["metric"]: row["value"] for row in rows} == {"R@1": 0.4, "R@5": 0.6, "R@10": 0.8, "median_rank": 2}
    assert all((row["n_queries"], row["n_gallery"]) == (5, 40) for row in rows)
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows)
    lost = retrieval_records(np.array([-1]), np.arange(1), arm="a", direction="d", n_gallery=3, replicates=5)
    assert {(row["value"], row["reason"]) for row in lost} == {(None, "no query has a positive in the gallery")}


def test_bad_cells_are_refused():
    cells, truth = multilabel(seeds=1, fractions=(1.0,))
    with pytest.raises(InputError, match="each arm, fraction and seed once"):
        judge([cells[0], cells[0]], truth)
    with pytest.raises(InputError, match=r"probabilities of frozen.*shape \(240, 3\)"):
        judge([replace(cells[0], values=cells[0].values[:9])], truth)
    with pytest.raises(InputError, match=r"numbers in \[0, 1\], but got 720 others.*sigmoid"):
        judge([replace(cells[0], values=cells[0].values + 2)], truth)
    with pytest.raises(InputError, match=r"one of \['frozen', 'adaptor'\], but got oracle"):
        comparisons(cells, truth, baseline="oracle", replicates=2)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]
