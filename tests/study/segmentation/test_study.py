"""A whole study of masks: what it writes and resumes, what arms share, what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adaptmed.bank import Bank
from adaptmed.data.splits import patient_digest
from adaptmed.errors import InputError, OverlapError
from adaptmed.metrics.segmentation import METRICS
from adaptmed.runs.folder import write_seen
from adaptmed.study.segmentation import contender as contenders
from adaptmed.study.segmentation.settings import ARMS, KNOWN, TUNED, SegmentationStudy
from adaptmed.study.segmentation.study import study_segmentation
from adaptmed.study.segmentation.subject import open_subject, prepare
from tests.masked_pictures import (
    EVERY,
    NAMES,
    PLACES,
    STUDY,
    embed_pictures,
    write_masked_table,
)

SMALL = replace(STUDY, arms=("empty", "frozen"), fractions=(1.0,), seeds=1)


def run_all(masked, out, **options):
    """Every arm on the pictures."""
    return study_segmentation(
        [Bank.open(masked / "bank")],
        [masked / "run"],
        out,
        settings=EVERY,
        tuned=[(Bank.open(masked / "bank-l"), masked / "run-l")],
        device="cpu",
        **options,
    )


def run_small(masked, out, settings=SMALL, **options):
    """No adaptor."""
    return study_segmentation([Bank.open(masked / "bank")], [], out, settings=settings, device="cpu", **options)


@pytest.fixture(scope="module")
def made(masked):
    return run_all(masked, masked / "out")


def without_seconds(path):
    """The bytes of a results file, seconds apart."""
    return "\n".join(line for line in path.read_text().splitlines() if '"seconds"' not in line)


def cells_in(out):
    return {path.relative_to(out): path for path in sorted((out / "cells").rglob("*.safetensors"))}


def test_it_writes_records_of_every_arm(masked, made):
    assert json.loads((masked / "out" / "results.json").read_text()) == made
    wanted = {(arm, fraction, seed) for arm in KNOWN for fraction in (0.25, 1.0) for seed in (0, 1)}
    assert {(row["arm"], row["fraction"], row["seed"]) for row in made["records"]} == wanted
    assert {row["label"] for row in made["records"]} == {"high", "low", "macro"}
    assert {row["metric"] for row in made["records"]} == set(METRICS)
    pairs = {(row["arm"], row["baseline"]) for row in made["comparisons"]}
    assert {baseline for _, baseline in pairs} == {"frozen", "unet", "empty", "adaptor"}
    assert {arm for arm, baseline in pairs if baseline == "adaptor"} == {TUNED}
    assert made["rejects"] == []
    assert made["settings"]["task"] == "segmentation"
    json.dumps(made, allow_nan=False)


def test_the_empty_arm_stands_at_the_share_of_empty_images(masked, made):
    test = Bank.open(masked / "bank").rows.query("split == 'test'")["mask"]
    values = [np.unique(np.asarray(Image.open(masked / "data" / name))) for name in test]
    for value, name in ((1, "high"), (2, "low")):
        share = sum(value not in found for found in values) / len(values)
        rows = [row for row in made["summaries"] if (row["arm"], row["label"]) == ("empty", name)]
        assert {row["value"] for row in rows if row["metric"] == "dice"} == {share}
        assert {row["value"] for row in rows if row["metric"] == "dice_positives"} == {0.0}


def test_again_it_computes_nothing(masked, made, monkeypatch):
    monkeypatch.setattr(contenders, "fit", lambda *_, **__: pytest.fail("an arm was trained again"))
    monkeypatch.setattr(contenders, "score_model", lambda *_, **__: pytest.fail("an arm was scored again"))
    before = {path: path.stat().st_mtime_ns for path in cells_in(masked / "out").values()}
    assert run_all(masked, masked / "out") == made
    assert {path: path.stat().st_mtime_ns for path in cells_in(masked / "out").values()} == before


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("after", [1, 9])
def test_interrupted_and_resumed_it_is_the_same_byte_for_byte(masked, tmp_path, after):
    def stop(what, done, total):
        if "seed" in what and (done, total) == (after, 28):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_all(masked, out, progress=stop)
    assert not (out / "results.json").exists()
    assert len(cells_in(out)) == after
    run_all(masked, out)
    assert without_seconds(out / "results.json") == without_seconds(masked / "out" / "results.json")
    whole = cells_in(masked / "out")
    assert cells_in(out).keys() == whole.keys()
    for place, path in cells_in(out).items():
        shown = path.with_suffix(".npy").read_bytes()
        assert shown == whole[place].with_suffix(".npy").read_bytes()


@pytest.mark.usefixtures("made")
def test_another_configuration_is_refused(masked):
    bank = Bank.open(masked / "bank")
    for change, words in (
        ({"seeds": 3}, "seeds: 2 there, 3 now"),
        ({"learning_rates": (0.1,)}, r"learning_rates: \[0.01\] there, \[0.1\] now"),
        ({"training": replace(EVERY.training, steps=3)}, "training: .*'steps': 2.* there, .*'steps': 3.* now"),
    ):
        settings = replace(EVERY, **change)
        tuned = [(Bank.open(masked / "bank-l"), masked / "run-l")]
        with pytest.raises(InputError, match=words):
            study_segmentation([bank], [masked / "run"], masked / "out", settings=settings, tuned=tuned)
    with pytest.raises(InputError, match="subjects: "):
        study_segmentation([bank], [masked / "run"], masked / "out", settings=replace(EVERY, arms=ARMS))


@pytest.fixture
def leaking(masked, tmp_path):
    """The run, as if it had read one of the test patients."""
    shutil.copytree(masked / "run", tmp_path / "run")
    patient = Bank.open(masked / "bank").rows.query("split == 'test'")["patient"].iloc[0]
    write_seen(tmp_path / "run", patient_digest([patient]))
    return tmp_path / "run"


def test_test_patients_that_a_run_has_seen_are_refused_or_marked(masked, leaking, tmp_path):
    bank, out = Bank.open(masked / "bank"), tmp_path / "out"
    with pytest.raises(OverlapError, match="test patients that no training has seen, but got 1 that were seen"):
        study_segmentation([bank], [leaking], out, settings=SMALL, device="cpu")
    allowed = replace(SMALL, allow_overlap=True)
    results = study_segmentation([bank], [leaking], out, settings=allowed, device="cpu")
    assert results["settings"]["overlapping_test_patients"] == 1
    page = (out / "report.html").read_text()
    assert "Mean Dice on positives (1 test patients were seen in training)" in page
    assert "1 test patients were seen in training; the numbers are too good" in page


def test_the_report_says_when_the_patients_of_the_training_are_not_known(masked, tmp_path):
    shutil.copytree(masked / "run" / "adaptor", tmp_path / "alone")
    for run, known in ((masked / "run" / "adaptor", True), (tmp_path / "alone", False)):
        out = tmp_path / f"out-{known}"
        study_segmentation([Bank.open(masked / "bank")], [run], out, settings=SMALL, device="cpu")
        said = "which patients the adaptor was trained on is not known" in (out / "report.html").read_text()
        assert said is not known


def test_the_rate_that_decides_nothing_is_not_among_the_settings(masked, tmp_path):
    results = run_small(masked, tmp_path / "out", replace(SMALL, arms=("empty",), learning_rates=(0.5,)))
    assert results["settings"]["learning_rates"] == [0.5]
    assert "learning_rate" not in results["settings"]["training"]


def test_without_an_adaptor_its_arms_are_left_out(masked, tmp_path):
    results = run_small(masked, tmp_path / "out", replace(SMALL, arms=None))
    assert list(dict.fromkeys(row["arm"] for row in results["summaries"])) == ["empty", "unet", "frozen"]


@pytest.mark.parametrize(
    ("arm", "adaptor", "words"),
    [
        ("adaptor", False, "got adaptor without an adaptor. Pass --adaptor RUN"),
        ("adaptor-untrained", False, "got adaptor-untrained without an adaptor"),
        (TUNED, False, r"got adaptor\+lora without an adaptor"),
        (TUNED, True, r"got adaptor\+lora without a tuned bank. Pass --adaptor RUN, and --tuned-bank"),
    ],
)
def test_an_arm_that_cannot_run_is_refused_and_leaves_the_folder_free(masked, tmp_path, arm, adaptor, words):
    settings, runs = replace(SMALL, arms=("empty", arm)), [masked / "run"] * adaptor
    with pytest.raises(InputError, match=words):
        study_segmentation([Bank.open(masked / "bank")], runs, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"arms": ("magic",)}, "distinct names among empty, .*but got magic"),
        ({"arms": ("frozen", "frozen")}, "distinct names among"),
        ({"fractions": (0.1, 0.1)}, r"`fractions`: expected distinct shares in \(0, 1\]"),
        ({"fractions": ()}, "`fractions`"),
        ({"fractions": (0.0,)}, "`fractions`"),
        ({"seeds": 0}, "`seeds`: expected at least 1, but got 0"),
        ({"replicates": 0}, "`replicates`"),
        ({"learning_rates": ()}, "`learning_rates`: expected distinct rates above 0"),
        ({"learning_rates": (0.1, 0.1)}, "`learning_rates`"),
        ({"learning_rates": (0.0,)}, "`learning_rates`"),
        ({"arms": ()}, "`arms`"),
    ],
)
def test_settings_that_make_no_study_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        replace(SegmentationStudy(), **wrong)


def test_a_label_that_the_fraction_lacks_is_null_with_its_reason(tmp_path):
    """One training patient alone has the label low, and a tenth of the patients is one."""
    table = write_masked_table(tmp_path / "data")
    bank = embed_pictures(table, tmp_path / "bank")
    for number, row in enumerate(bank.subset("train").tolist()):
        path = tmp_path / "data" / f"m{row}.png"
        mask = np.where(np.asarray(Image.open(path)) == 1, 1, 0).astype(np.uint8)
        if number < 2:
            mask[PLACES[2]] = 2
        Image.fromarray(mask).save(path)
    settings = replace(STUDY, arms=("frozen", "unet"), fractions=(0.1, 1.0), seeds=3)
    results = study_segmentation([bank], [], tmp_path / "out", settings=settings, device="cpu")
    rows = [row for row in results["records"] if row["metric"] == "dice_positives" and row["label"] == "low"]
    lacking = [row for row in rows if row["n_positive"] == 0]
    assert {row["fraction"] for row in lacking} == {0.1}
    assert {(row["value"], row["reason"]) for row in lacking} == {(None, "no training mask of the fraction holds it")}
    assert {row["arm"] for row in lacking} == {"frozen", "unet"}
    assert all(row["value"] is not None for row in rows if row["fraction"] == 1.0)
    assert "without low: no training mask" in (tmp_path / "out" / "report.html").read_text()


def test_a_decoder_that_the_bank_cannot_feed_is_refused(masked, tmp_path):
    for decoder, words in (("dpt", "taps"), ("unet", "taps|CNN")):
        settings = replace(SMALL, training=replace(SMALL.training, decoder=decoder))
        with pytest.raises(InputError, match=words):
            run_small(masked, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_a_rejected_mask_costs_its_row_and_is_named(tmp_path):
    table = write_masked_table(tmp_path / "data")
    bank = embed_pictures(table, tmp_path / "bank")
    bad = [int(bank.rows.query("split == @split").index[0]) for split in ("train", "test")]
    for row in bad:
        Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(tmp_path / "data" / f"m{row}.png")
    results = study_segmentation([bank], [], tmp_path / "out", settings=SMALL, device="cpu")
    assert [reject["mask"] for reject in results["rejects"]] == [f"m{row}.png" for row in sorted(bad)]
    assert {row["n_test"] for row in results["records"]} == {7}
    assert {row["n_train"] for row in results["records"]} == {23}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 rows were left out because their mask cannot be used" in page


def test_a_label_named_like_a_mean_is_refused(masked, tmp_path):
    for name in ("macro", "all"):
        settings = replace(SMALL, labels={**NAMES, 1: name})
        with pytest.raises(InputError, match=rf"other label names than macro and all.*but got {name}"):
            prepare(open_subject(Bank.open(masked / "bank"), None, settings), tmp_path / name, settings)


def test_one_run_and_one_tuned_bank_per_bank(masked, tmp_path):
    bank, pair = Bank.open(masked / "bank"), (Bank.open(masked / "bank-l"), masked / "run-l")
    with pytest.raises(InputError, match=r"`adaptor`: expected one per bank \(1\).*but got 2"):
        study_segmentation([bank], [masked / "run"] * 2, tmp_path / "out", settings=SMALL)
    with pytest.raises(InputError, match=r"`tuned`: expected one per bank \(1\).*but got 2"):
        study_segmentation([bank], [masked / "run"], tmp_path / "out", settings=SMALL, tuned=[pair, pair])
    assert not (tmp_path / "out").exists()


def test_two_banks_of_the_same_table_and_encoders_are_refused(masked, tmp_path):
    bank = Bank.open(masked / "bank")
    with pytest.raises(InputError, match=r"other data or other encoders each, but got m\.csv with .* twice"):
        study_segmentation([bank, bank], [], tmp_path / "out", settings=SMALL)
    assert not (tmp_path / "out").exists()


def test_a_tuned_bank_of_other_rows_is_refused(masked, tmp_path):
    other = embed_pictures(write_masked_table(tmp_path / "data", pictures=30), tmp_path / "bank", tuned=True)
    with pytest.raises(InputError, match="expected the rows of"):
        open_subject(Bank.open(masked / "bank"), masked / "run", EVERY, tuned=(other, masked / "run-l"))
