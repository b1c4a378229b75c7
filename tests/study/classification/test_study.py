"""A whole study on a tiny bank: what it writes, resumes, refuses, and that arms share their fractions."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptmed import methods
from adaptmed.bank import Bank
from adaptmed.cohort.rows import pairs_of
from adaptmed.errors import InputError, OverlapError
from adaptmed.pretraining.job import fresh_adaptor
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.classification.arms import untrained_fusion
from adaptmed.study.classification.rows import study_rows
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import arms_of, cells_of_subject, study
from adaptmed.study.classification.subject import prepare
from tests.tiny_bank import write_tiny_bank

SETTINGS = StudySettings(fractions=(0.3, 1.0), seeds=2, replicates=50, precision="fp32")
METHOD = replace(
    methods.changed(methods.adaptor(), {"fusion": {"width": 16, "heads": 2}}),
    schedule=methods.Schedule(epochs=2, batch_size=16),
)


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


def test_cells_of_another_adaptor_in_the_same_place_are_not_taken(made, tmp_path):
    folder, bank, _ = made
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    few = replace(SETTINGS, seeds=1, fractions=(1.0,), arms=("frozen",))
    study([bank], [run], tmp_path / "out", settings=few)
    tensors = load_file(run / "adaptor" / "adaptor.safetensors")
    save_file(
        {name: np.asarray(2 * tensor) for name, tensor in tensors.items()}, run / "adaptor" / "adaptor.safetensors"
    )
    with pytest.raises(InputError, match="subjects: "):
        study([bank], [run], tmp_path / "out", settings=few)


def test_the_report_says_when_the_patients_of_the_training_are_not_known(made, tmp_path):
    folder, bank, _ = made
    few = replace(SETTINGS, seeds=1, fractions=(1.0,), arms=("frozen",))
    shutil.copytree(folder / "run" / "adaptor", tmp_path / "alone")
    for run, known in ((folder / "run" / "adaptor", True), (tmp_path / "alone", False)):
        study([bank], [run], tmp_path / f"out-{known}", settings=few)
        page = (tmp_path / f"out-{known}" / "report.html").read_text()
        assert ("which patients the adaptor was trained on is not known" in page) is not known


def test_every_arm_trains_on_the_same_rows_of_a_fraction(made):
    folder, bank, _ = made
    subject = prepare(bank, folder / "run", SETTINGS)
    cells = cells_of_subject(subject, SETTINGS, folder / "out", arms_of(subject, SETTINGS), lambda *_: None)
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
    first, again, other = (untrained_fusion(subject.adaptor, bank, seed).image_project.weight for seed in (0, 0, 1))
    assert np.array_equal(first.detach(), again.detach())
    assert not np.array_equal(first.detach(), other.detach())
    start = fresh_adaptor(bank, METHOD, pairs_of(bank, "train"), seed=0).fusion.image_project.weight
    assert np.array_equal(first.detach(), start.detach())


def test_test_patients_that_a_run_has_seen_are_refused_unless_allowed(made, tmp_path):
    folder, bank, _ = made
    swapped = Bank.open(bank.folder)
    test, train = swapped.rows["split"] == "test", swapped.rows["split"] == "train"
    swapped.rows.loc[test, "split"], swapped.rows.loc[train, "split"] = "train", "test"
    with pytest.raises(OverlapError, match="test patients that no training has seen, but got 48 that were seen"):
        prepare(swapped, folder / "run", SETTINGS)
    allowed = replace(SETTINGS, allow_overlap=True, seeds=1, fractions=(1.0,), arms=("frozen",))
    study([swapped], [folder / "run"], tmp_path / "out", settings=allowed)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "48 test patients were seen in training; the numbers are too good" in page
    assert "Mean AUROC (48 test patients were seen in training)" in page
    assert "mean AUROC (48 test patients were seen in training)" in page  # the axis of the curve
    written = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert (written["allow_overlap"], written["overlapping_test_patients"]) == (True, 48)


def test_a_bank_of_other_encoders_is_refused(made):
    folder, bank, _ = made
    foreign = Bank.open(bank.folder)
    foreign.info = replace(foreign.info, images=replace(foreign.info.images, fingerprint="cc" * 32))
    with pytest.raises(InputError, match=r"Tokens of fake:image \(aaaa.*cccc"):
        prepare(foreign, folder / "run", SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arms": ("magic",)}, r"names among frozen.*but got magic"),
        ({"arms": ()}, r"`arms`.*but got none"),
        ({"arms": ("frozen", "frozen")}, r"distinct names among"),
        ({"fractions": (0.1, 0.1)}, r"`fractions`: expected distinct shares in \(0, 1\]"),
        ({"fractions": (0.0, 1.0)}, r"`fractions`"),
        ({"fractions": ()}, r"`fractions`"),
        ({"seeds": 0}, r"`seeds`: expected at least 1, but got 0"),
        ({"replicates": 0}, r"`replicates`"),
    ],
)
def test_settings_that_make_no_study_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **wrong)


def test_an_arm_that_cannot_run_leaves_the_folder_free_for_another_try(made, tmp_path):
    folder, bank, _ = made
    alone = replace(SETTINGS, arms=("text-informed probe",))
    with pytest.raises(InputError, match="an arm that can run, but got only arms that need prompts"):
        study([bank], [folder / "run"], tmp_path / "out", settings=alone)
    assert not (tmp_path / "out").exists()


def test_two_datasets_of_the_same_encoders_keep_their_own_cells(made, tmp_path):
    folder, bank, _ = made
    few = replace(SETTINGS, seeds=1, fractions=(1.0,), arms=("frozen",))
    other = write_tiny_bank(tmp_path / "bank", pairs=120, seed=5)
    pretrain(other, METHOD, tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match=r"other data or other encoders each, but got m.csv with .* twice"):
        study([bank, other], [folder / "run", tmp_path / "run"], tmp_path / "out", settings=few)
    other.info = replace(other.info, manifest="n.csv")
    both = study([bank, other], [folder / "run", tmp_path / "run"], tmp_path / "both", settings=few)
    alone = study([other], [tmp_path / "run"], tmp_path / "alone", settings=few)
    second = {(r["metric"], r["label"]): r["value"] for r in both["records"] if r["dataset"] == "n.csv"}
    assert second == {(r["metric"], r["label"]): r["value"] for r in alone["records"]}
    assert second != {(r["metric"], r["label"]): r["value"] for r in both["records"] if r["dataset"] == "m.csv"}


def test_retrieval_needs_no_labels(made, tmp_path):
    folder, bank, results = made
    unlabelled = Bank.open(bank.folder)
    test = unlabelled.rows.index[unlabelled.rows["split"] == "test"]
    unlabelled.rows.loc[test[8:], ["a", "b"]] = np.nan
    few = replace(SETTINGS, seeds=1, fractions=(1.0,), arms=("frozen",))
    found = study([unlabelled], [folder / "run"], tmp_path / "out", settings=few)["retrieval"]
    assert {row["n_queries"] for row in found} == {row["n_queries"] for row in results["retrieval"]} == {len(test)}


@pytest.mark.parametrize("name", ["macro", "all"])
def test_labels_named_like_a_mean_are_refused(made, name):
    _, bank, _ = made
    taken = Bank.open(bank.folder)
    taken.rows[name] = taken.rows["a"]
    taken.info = replace(taken.info, labels=("b", name))
    with pytest.raises(InputError, match=rf"other label names than macro and all.*but got {name}"):
        study_rows(taken)


def test_one_run_per_bank_or_none(made, tmp_path):
    folder, bank, _ = made
    with pytest.raises(
        InputError, match=r"`adaptor`: expected one per bank \(2\), in the same order, or none, but got 1"
    ):
        study([bank, bank], [folder / "run"], tmp_path / "out", settings=SETTINGS)
    with pytest.raises(InputError, match=r"`adaptor`: expected one per bank \(0\)"):
        study([], [], tmp_path / "out", settings=SETTINGS)


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


@pytest.mark.parametrize("arm", ["frozen", "adaptor-trained"])
def test_a_fraction_of_one_class_is_undefined_with_its_reason(made, tmp_path, arm):
    folder, bank, _ = made
    several = Bank.open(bank.folder)
    several.rows["class"] = np.where(several.rows["split"] == "train", 0, several.rows["a"].astype(int))
    several.info = replace(several.info, class_column="class", classes=("none", "one"))
    few = replace(SETTINGS, fractions=(0.3,), seeds=1, arms=(arm,))
    records = study([several], [folder / "run"], tmp_path / "out", settings=few)["records"]
    assert records
    assert {row["value"] for row in records} == {None}
    assert all("fewer than two classes" in row["reason"] for row in records)


def test_a_bank_without_labels_is_refused(made):
    _, bank, _ = made
    bare = Bank.open(bank.folder)
    bare.info = replace(bare.info, labels=())
    with pytest.raises(InputError, match="label columns or a class column, but got neither"):
        study_rows(bare)
