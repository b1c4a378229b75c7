"""A whole study on a tiny bank: what it writes, resumes, refuses, and that arms share their fractions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from adaptmed import methods
from adaptmed.bank import Bank
from adaptmed.errors import InputError, OverlapError
from adaptmed.study.rows import study_rows
from adaptmed.study.run import StudySettings, fresh_fusion, prepare, run_cells
from adaptmed.study.whole import study
from adaptmed.tasks.pretrain import pretrain
from tests.tiny_bank import write_tiny_bank

SETTINGS = StudySettings(fractions=(0.3, 1.0), seeds=2, replicates=50)
METHOD = replace(methods.adaptor(), width=16, heads=2, schedule=methods.Schedule(epochs=2, batch_size=16))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    bank = write_tiny_bank(folder / "bank", pairs=120)
    pretrain(bank, METHOD, folder / "run", device="cpu")
    results = study([bank], [folder / "run"], folder / "out", settings=SETTINGS)
    return folder, bank, results


def test_it_writes_results_and_a_report(made):
    folder, _, results = made
    assert json.loads((folder / "out" / "results.json").read_text()) == results
    page = (folder / "out" / "report.html").read_text()
    assert "adaptor-untrained" in page
    assert "no zero-shot and no text-informed probe" in page  # the tiny text encoder cannot be loaded
    arms = {record["arm"] for record in results["records"]}
    assert arms == {"frozen", "adaptor-untrained", "adaptor", "adaptor-trained"}
    wanted = {(arm, fraction, seed) for arm in arms for fraction in (0.3, 1.0) for seed in (0, 1)}
    assert {(r["arm"], r["fraction"], r["seed"]) for r in results["records"]} == wanted
    assert {row["baseline"] for row in results["comparisons"]} == {"frozen", "adaptor-untrained"}
    assert {row["direction"] for row in results["retrieval"]} == {"image to text", "text to image"}


def test_a_second_run_computes_nothing_again(made):
    folder, bank, results = made
    cells = sorted((folder / "out" / "cells").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in cells}
    assert study([bank], [folder / "run"], folder / "out", settings=SETTINGS) == results
    assert {path: path.stat().st_mtime_ns for path in cells} == before


def test_a_missing_cell_is_computed_as_before(made):
    folder, bank, results = made
    lost = next((folder / "out" / "cells").rglob("adaptor-trained/0.3-1.safetensors"))
    lost.unlink()
    again = study([bank], [folder / "run"], folder / "out", settings=SETTINGS)
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in again["records"]] == [
        {k: v for k, v in r.items() if k not in drop} for r in results["records"]
    ]


def test_another_configuration_is_refused(made):
    folder, bank, _ = made
    with pytest.raises(InputError, match="seeds: 2 there, 3 now"):
        study([bank], [folder / "run"], folder / "out", settings=replace(SETTINGS, seeds=3))


def test_every_arm_trains_on_the_same_rows_of_a_fraction(made):
    folder, bank, _ = made
    subject = prepare(bank, folder / "run", SETTINGS)
    cells = run_cells(subject, SETTINGS, folder / "out", lambda *_: None)
    for fraction in (0.3, 1.0):
        for seed in (0, 1):
            chosen = [c for c in cells if c.fraction == fraction and c.seed == seed]
            assert len({(c.n_train, tuple(c.n_positive.values())) for c in chosen}) == 1
    small, large = subject.rows.fraction(0.3, 0), subject.rows.fraction(0.6, 0)
    assert set(small) < set(large)
    assert not set(subject.rows.patients) & set(subject.rows.truth.patients)


def test_untrained_weights_differ_by_seed_and_not_from_the_start_of_training(made):
    folder, bank, _ = made
    subject = prepare(bank, folder / "run", SETTINGS)
    first, again, other = (fresh_fusion(subject, seed).image_project.weight for seed in (0, 0, 1))
    assert np.array_equal(first.detach(), again.detach())
    assert not np.array_equal(first.detach(), other.detach())


def test_test_patients_that_a_run_has_seen_are_refused_unless_allowed(made, tmp_path):
    folder, bank, _ = made
    swapped = Bank.open(bank.folder)
    test, train = swapped.rows["split"] == "test", swapped.rows["split"] == "train"
    swapped.rows.loc[test, "split"], swapped.rows.loc[train, "split"] = "train", "test"
    with pytest.raises(OverlapError, match="test patients that no training has seen, but got 48 that were seen"):
        prepare(swapped, folder / "run", SETTINGS)
    allowed = replace(SETTINGS, allow_overlap=True, seeds=1, fractions=(1.0,), arms=("frozen",))
    study([swapped], [folder / "run"], tmp_path / "out", settings=allowed)
    assert "48 test patients were seen in training" in (tmp_path / "out" / "report.html").read_text()


def test_a_bank_of_other_encoders_is_refused(made):
    folder, bank, _ = made
    foreign = Bank.open(bank.folder)
    foreign.info = replace(foreign.info, images=replace(foreign.info.images, fingerprint="cc" * 32))
    with pytest.raises(InputError, match=r"Tokens of fake:image \(aaaa.*cccc"):
        prepare(foreign, folder / "run", SETTINGS)


def test_unknown_arms_are_refused(made, tmp_path):
    folder, bank, _ = made
    with pytest.raises(InputError, match=r"names among frozen.*but got magic"):
        study([bank], [folder / "run"], tmp_path / "out", settings=replace(SETTINGS, arms=("magic",)))


def test_one_run_per_bank(made, tmp_path):
    _, bank, _ = made
    with pytest.raises(InputError, match="1 runs, one per bank, but got 0"):
        study([bank], [], tmp_path / "out", settings=SETTINGS)


def test_classes_are_studied_too(made, tmp_path):
    folder, bank, _ = made
    several = Bank.open(bank.folder)
    several.rows["class"] = several.rows["a"].astype(int) + several.rows["b"].fillna(0).astype(int)
    several.info = replace(several.info, class_column="class", classes=("none", "one", "both"))
    results = study(
        [several], [folder / "run"], tmp_path / "out", settings=replace(SETTINGS, fractions=(1.0,), seeds=1)
    )
    metrics = {record["metric"] for record in results["records"]}
    assert {"accuracy", "balanced_accuracy", "auroc", "ece"} <= metrics


def test_a_bank_without_labels_is_refused(made):
    _, bank, _ = made
    bare = Bank.open(bank.folder)
    bare.info = replace(bare.info, labels=())
    with pytest.raises(InputError, match="label columns or a class column, but got neither"):
        study_rows(bare)
