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
from adaptmed.model import trainable_parameters
from adaptmed.study.segmentation import arms as contenders
from adaptmed.study.segmentation.arms import arms_of
from adaptmed.study.segmentation.settings import ARMS, KNOWN, TUNED, SegmentationStudy
from adaptmed.study.segmentation.subject import open_subject, prepare
from adaptmed.study.segmentation.whole import study_segmentation
from adaptmed.study.tuned import lora_parameters
from adaptmed.tasks.run_folder import write_seen
from tests.study.masked_pictures import (
    NAMES,
    PLACES,
    STUDY,
    embed_pictures,
    pretrain_one_epoch,
    write_masked_table,
)

EVERY = replace(STUDY, arms=KNOWN)
SMALL = replace(STUDY, arms=("empty", "frozen"), fractions=(1.0,), seeds=1)
NONE_SHOWN = np.array([], dtype=np.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    table = write_masked_table(folder / "data")
    pretrain_one_epoch(embed_pictures(table, folder / "bank"), folder / "run")
    pretrain_one_epoch(embed_pictures(table, folder / "bank-l", tuned=True), folder / "run-l")
    return folder


def run_all(folder, out, **options):
    """Every arm on the pictures."""
    return study_segmentation(
        [Bank.open(folder / "bank")],
        [folder / "run"],
        out,
        settings=EVERY,
        tuned=[(Bank.open(folder / "bank-l"), folder / "run-l")],
        device="cpu",
        **options,
    )


def run_small(folder, out, settings=SMALL, **options):
    """No adaptor."""
    return study_segmentation([Bank.open(folder / "bank")], [], out, settings=settings, device="cpu", **options)


@pytest.fixture(scope="module")
def made(folder):
    return run_all(folder, folder / "out")


@pytest.fixture
def subject(folder, tmp_path):
    bank, tuned = Bank.open(folder / "bank"), (Bank.open(folder / "bank-l"), folder / "run-l")
    return prepare(open_subject(bank, folder / "run", EVERY, tuned=tuned), tmp_path / "masks", EVERY)


def without_seconds(path):
    """The bytes of a results file, seconds apart."""
    return "\n".join(line for line in path.read_text().splitlines() if '"seconds"' not in line)


def cells_in(out):
    return {path.relative_to(out): path for path in sorted((out / "cells").rglob("*.safetensors"))}


def test_it_writes_records_of_every_arm(folder, made):
    assert json.loads((folder / "out" / "results.json").read_text()) == made
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


def test_the_empty_arm_stands_at_the_share_of_empty_images(folder, made):
    test = Bank.open(folder / "bank").rows.query("split == 'test'")["mask"]
    values = [np.unique(np.asarray(Image.open(folder / "data" / name))) for name in test]
    for value, name in ((1, "high"), (2, "low")):
        share = sum(value not in found for found in values) / len(values)
        rows = [row for row in made["summaries"] if (row["arm"], row["label"]) == ("empty", name)]
        assert {row["value"] for row in rows if row["metric"] == "dice"} == {share}
        assert {row["value"] for row in rows if row["metric"] == "dice_positives"} == {0.0}


def test_everything_that_was_trained_is_counted(made, subject):
    counts = {row["arm"]: row["trainable_parameters"] for row in made["summaries"]}
    assert counts["empty"] == 0
    tuned = lora_parameters(subject.tuned[1])
    assert tuned > 0
    assert counts[TUNED] == counts["adaptor"] + tuned
    fusion = trainable_parameters(subject.adaptor.fusion)
    assert counts["adaptor"] == counts["adaptor-untrained"] + fusion
    assert counts["adaptor-untrained"] < counts["adaptor-trained"] <= counts["adaptor"]


def test_again_it_computes_nothing(folder, made, monkeypatch):
    monkeypatch.setattr(contenders, "train", lambda *_, **__: pytest.fail("an arm was trained again"))
    monkeypatch.setattr(contenders, "score_model", lambda *_, **__: pytest.fail("an arm was scored again"))
    before = {path: path.stat().st_mtime_ns for path in cells_in(folder / "out").values()}
    assert run_all(folder, folder / "out") == made
    assert {path: path.stat().st_mtime_ns for path in cells_in(folder / "out").values()} == before


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("after", [1, 9])
def test_interrupted_and_resumed_it_is_the_same_byte_for_byte(folder, tmp_path, after):
    def stop(what, done, total):
        if "seed" in what and (done, total) == (after, 28):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_all(folder, out, progress=stop)
    assert not (out / "results.json").exists()
    assert len(cells_in(out)) == after
    run_all(folder, out)
    assert without_seconds(out / "results.json") == without_seconds(folder / "out" / "results.json")
    whole = cells_in(folder / "out")
    assert cells_in(out).keys() == whole.keys()
    for place, path in cells_in(out).items():
        shown = path.with_suffix(".npy").read_bytes()
        assert shown == whole[place].with_suffix(".npy").read_bytes()


def test_all_arms_see_the_same_rows(subject, monkeypatch):
    trained, judged = [], []
    real_train, real_score = contenders.train, contenders.score_model

    def train(model, examples, training, *, seed, device):
        trained.append((tuple(examples.rows.tolist()), training.steps, seed))
        real_train(model, examples, training, seed=seed, device=device)

    def score(model, reader, masks, rows, training, *, device):
        judged.append(tuple(rows))
        return real_score(model, reader, masks, rows, training, device=device)

    monkeypatch.setattr(contenders, "train", train)
    monkeypatch.setattr(contenders, "score_model", score)
    places = subject.fraction(0.25, 1)
    for arm in arms_of(subject, EVERY, NONE_SHOWN, device="cpu").values():
        arm(places, 1)
    assert set(trained) == {(tuple(subject.train[places].tolist()), EVERY.training.steps, 1)}
    assert set(judged) == {tuple(subject.test.tolist())}
    assert len(trained) == len(judged) == len(KNOWN) - 1


@pytest.mark.parametrize("seed", [0, 1])
def test_fractions_are_nested_stratified_and_of_whole_patients(subject, seed):
    chosen = {share: set(subject.fraction(share, seed).tolist()) for share in (0.25, 0.5, 1.0)}
    assert chosen[0.25] < chosen[0.5] < chosen[1.0] == set(range(len(subject.train)))
    for places in chosen.values():
        patients = set(subject.patients[list(places)])
        assert places == {place for place, patient in enumerate(subject.patients) if patient in patients}
    assert subject.present[list(chosen[0.25])].any(axis=0).all()  # three patients, and both labels among them
    assert not set(subject.patients) & set(subject.truth.patients)


@pytest.mark.usefixtures("made")
def test_another_configuration_is_refused(folder):
    bank = Bank.open(folder / "bank")
    for change, words in (
        ({"seeds": 3}, "seeds: 2 there, 3 now"),
        ({"learning_rates": (0.1,)}, r"learning_rates: \[0.01\] there, \[0.1\] now"),
        ({"training": replace(EVERY.training, steps=3)}, "training: .*'steps': 2.* there, .*'steps': 3.* now"),
    ):
        settings = replace(EVERY, **change)
        tuned = [(Bank.open(folder / "bank-l"), folder / "run-l")]
        with pytest.raises(InputError, match=words):
            study_segmentation([bank], [folder / "run"], folder / "out", settings=settings, tuned=tuned)
    with pytest.raises(InputError, match="subjects: "):
        study_segmentation([bank], [folder / "run"], folder / "out", settings=replace(EVERY, arms=ARMS))


@pytest.fixture
def leaking(folder, tmp_path):
    """The run, as if it had read one of the test patients."""
    shutil.copytree(folder / "run", tmp_path / "run")
    patient = Bank.open(folder / "bank").rows.query("split == 'test'")["patient"].iloc[0]
    write_seen(tmp_path / "run", patient_digest([patient]))
    return tmp_path / "run"


def test_test_patients_that_a_run_has_seen_are_refused_or_marked(folder, leaking, tmp_path):
    bank, out = Bank.open(folder / "bank"), tmp_path / "out"
    with pytest.raises(OverlapError, match="test patients that no training has seen, but got 1 that were seen"):
        study_segmentation([bank], [leaking], out, settings=SMALL, device="cpu")
    allowed = replace(SMALL, allow_overlap=True)
    results = study_segmentation([bank], [leaking], out, settings=allowed, device="cpu")
    assert results["settings"]["overlapping_test_patients"] == 1
    page = (out / "report.html").read_text()
    assert "Mean Dice on positives (1 test patients were seen in training)" in page
    assert "1 test patients were seen in training; the numbers are too good" in page


def test_without_an_adaptor_its_arms_are_left_out(folder, tmp_path):
    results = run_small(folder, tmp_path / "out", replace(SMALL, arms=None))
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
def test_an_arm_that_cannot_run_is_refused_and_leaves_the_folder_free(folder, tmp_path, arm, adaptor, words):
    settings, runs = replace(SMALL, arms=("empty", arm)), [folder / "run"] * adaptor
    with pytest.raises(InputError, match=words):
        study_segmentation([Bank.open(folder / "bank")], runs, tmp_path / "out", settings=settings)
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


RATES = replace(EVERY, learning_rates=(1e-4, 0.03, 0.3), fractions=(0.5,), seeds=1)


def outcomes(subject, seed=0):
    places = subject.fraction(0.5, seed)
    return {name: arm(places, seed) for name, arm in arms_of(subject, RATES, NONE_SHOWN, device="cpu").items()}


def test_every_trained_arm_tries_each_rate_once_and_then_the_whole_fraction(subject, monkeypatch):
    real, seen = contenders.train, []
    places = subject.fraction(0.5, 0)

    def train(model, examples, training, *, seed, device):
        seen.append((training.learning_rate, set(examples.rows.tolist())))
        real(model, examples, training, seed=seed, device=device)

    monkeypatch.setattr(contenders, "train", train)
    for name, arm in arms_of(subject, RATES, NONE_SHOWN, device="cpu").items():
        seen.clear()
        found = arm(places, 0)
        if name == "empty":
            assert (seen, found.learning_rate) == ([], None)
            continue
        *tried, (rate, rows) = seen
        assert [rate for rate, _ in tried] == list(RATES.learning_rates)
        assert rows == set(subject.train[places].tolist())
        assert all(part < rows for _, part in tried)
        assert rate == found.learning_rate


def test_masks_outside_the_fraction_choose_nothing(folder, subject, tmp_path):
    """The same labels elsewhere in every training picture outside the fraction: nothing about the arms changes."""
    before = outcomes(subject)
    assert len({outcome.learning_rate for outcome in before.values()}) > 1
    inside = set(subject.train[subject.fraction(0.5, 0)].tolist())
    outside = [row for row in subject.train.tolist() if row not in inside]
    paths = {path: path.read_bytes() for path in map(subject.masks.files.mask, outside)}
    try:
        for path in paths:
            Image.fromarray(np.asarray(Image.open(path))[::-1].copy()).save(path)
        bank, tuned = Bank.open(folder / "bank"), (Bank.open(folder / "bank-l"), folder / "run-l")
        changed = prepare(open_subject(bank, folder / "run", EVERY, tuned=tuned), tmp_path / "others", EVERY)
        assert not np.array_equal(changed.masks.laid, subject.masks.laid)
        after = outcomes(changed)
    finally:
        for path, held in paths.items():
            path.write_bytes(held)
    for name, outcome in before.items():
        assert outcome.learning_rate == after[name].learning_rate
        np.testing.assert_array_equal(outcome.scores, after[name].scores)


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


def test_a_decoder_that_the_bank_cannot_feed_is_refused(folder, tmp_path):
    for decoder, words in (("dpt", "taps"), ("unet", "taps|CNN")):
        settings = replace(SMALL, training=replace(SMALL.training, decoder=decoder))
        with pytest.raises(InputError, match=words):
            run_small(folder, tmp_path / "out", settings)
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


def test_a_label_named_like_a_mean_is_refused(folder, tmp_path):
    for name in ("macro", "all"):
        settings = replace(SMALL, labels={**NAMES, 1: name})
        with pytest.raises(InputError, match=rf"other label names than macro and all.*but got {name}"):
            prepare(open_subject(Bank.open(folder / "bank"), None, settings), tmp_path / name, settings)


def test_one_run_and_one_tuned_bank_per_bank(folder, tmp_path):
    bank, pair = Bank.open(folder / "bank"), (Bank.open(folder / "bank-l"), folder / "run-l")
    with pytest.raises(InputError, match=r"`adaptor`: expected one per bank \(1\).*but got 2"):
        study_segmentation([bank], [folder / "run"] * 2, tmp_path / "out", settings=SMALL)
    with pytest.raises(InputError, match=r"`tuned`: expected one per bank \(1\).*but got 2"):
        study_segmentation([bank], [folder / "run"], tmp_path / "out", settings=SMALL, tuned=[pair, pair])
    assert not (tmp_path / "out").exists()


def test_two_banks_of_the_same_table_and_encoders_are_refused(folder, tmp_path):
    bank = Bank.open(folder / "bank")
    with pytest.raises(InputError, match=r"other data or other encoders each, but got m\.csv with .* twice"):
        study_segmentation([bank, bank], [], tmp_path / "out", settings=SMALL)
    assert not (tmp_path / "out").exists()


def test_a_tuned_bank_of_other_rows_is_refused(folder, tmp_path):
    other = embed_pictures(write_masked_table(tmp_path / "data", pictures=30), tmp_path / "bank", tuned=True)
    with pytest.raises(InputError, match="expected the rows of"):
        open_subject(Bank.open(folder / "bank"), folder / "run", EVERY, tuned=(other, folder / "run-l"))
