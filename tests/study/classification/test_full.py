"""The arm ``full``: a copy of the encoder is tuned in a study, only when asked, and the encoder stays what it was."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from adaptmed import load_image_encoder, lora
from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.bank import Bank
from adaptmed.lora import LoRA
from adaptmed.study.classification.full import FULL, full_arm
from adaptmed.study.classification.rows import study_rows
from adaptmed.study.classification.settings import ARMS, StudySettings
from adaptmed.study.classification.study import study
from tests.labelled_pictures import make_labelled_bank, pretrain_shortly

EXACT = replace(FULL, precision="fp32", epochs=3, batch_size=6)
SETTINGS = StudySettings(fractions=(0.5, 1.0), seeds=1, replicates=20, arms=("frozen", "full"), precision="fp32")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_labelled_bank(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(bank, tmp_path_factory):
    return pretrain_shortly(bank, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def encoder(bank):
    return load_image_encoder(bank.info.images.name)


def log_loss(outcome, labels):
    known = ~np.isnan(labels)
    p = np.where(labels == 1, outcome.probabilities, 1 - outcome.probabilities)
    return -np.log(p[known]).mean()


def on_train(rows):
    """The same rows, judged on what they were trained on."""
    return replace(rows, test=rows.train, truth=replace(rows.truth, labels=rows.labels, patients=rows.patients))


def test_it_fits_better_than_the_frozen_probe_it_starts_at_and_leaves_the_encoder_alone(bank, encoder):
    rows = on_train(study_rows(bank))
    places = np.arange(len(rows.train))
    before = encoder.fingerprint()
    still = replace(EXACT, epochs=1, augment=False, learning_rate=0.0, encoder_learning_rate=0.0)
    fast = replace(EXACT, epochs=8, augment=False, encoder_learning_rate=3e-4)
    probe, tuned = (
        full_arm(rows, bank, encoder, settings=settings, device="cpu")(places, 0) for settings in (still, fast)
    )
    assert log_loss(tuned, rows.labels) < 0.8 * log_loss(probe, rows.labels)
    assert encoder.fingerprint() == before == bank.info.images.fingerprint
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_without_a_step_it_is_the_frozen_probe(bank, encoder):
    rows = study_rows(bank)
    still = replace(EXACT, epochs=1, learning_rate=0.0, encoder_learning_rate=0.0)
    places = np.arange(len(rows.train))
    from adaptmed.study.classification.arms import frozen_arm

    found = full_arm(rows, bank, encoder, settings=still, device="cpu")(places, 0)
    np.testing.assert_allclose(found.probabilities, frozen_arm(rows, bank)(places, 0).probabilities, atol=1e-4)


def test_it_is_the_same_again_and_depends_on_the_fraction_alone(bank, encoder):
    rows, places = study_rows(bank), np.arange(0, 20)
    first = full_arm(rows, bank, encoder, settings=EXACT, device="cpu")(places, 0)
    other = rows.labels.copy()
    other[20:] = 1 - other[20:]
    again = full_arm(replace(rows, labels=other), bank, encoder, settings=EXACT, device="cpu")(places, 0)
    assert np.array_equal(first.probabilities, again.probabilities)


def test_all_that_the_tokens_depend_on_and_the_head_are_counted(bank, encoder):
    rows = study_rows(bank)
    found = full_arm(rows, bank, encoder, settings=replace(EXACT, epochs=1), device="cpu")(np.arange(20), 0)
    unused = sum(p.numel() for name, p in encoder.module.named_parameters() if "pooler" in name or "mask" in name)
    whole = sum(parameter.numel() for parameter in encoder.module.parameters()) - unused
    assert found.trainable_parameters - whole in (2 * (32 + 1), 2 * (64 + 1))


def test_lora_is_merged_into_the_copy(bank, encoder):
    tuned, rows = copy.deepcopy(encoder), study_rows(bank)
    lora.attach(tuned, LoRA(rank=2))
    places = np.arange(20)
    digest, plain = tuned.lora.digest(), full_arm(rows, bank, encoder, settings=EXACT, device="cpu")(places, 0)
    found = full_arm(rows, bank, tuned, settings=EXACT, device="cpu")(places, 0)
    np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-5)
    assert found.trainable_parameters == plain.trainable_parameters
    assert tuned.lora.digest() == digest
    assert tuned.lora.merged is None


def test_a_fraction_of_one_class_is_undefined(bank, encoder):
    several = Bank.open(bank.folder)
    several.rows["class"] = np.where(several.rows["split"] == "train", 0, np.arange(len(bank)) % 2)
    several.info = replace(several.info, class_column="class", classes=("none", "one"))
    found = full_arm(study_rows(several), several, encoder, settings=EXACT, device="cpu")(np.arange(20), 0)
    assert np.isnan(found.probabilities).all()
    assert found.trainable_parameters == 0


def test_it_works_in_a_study_that_asks_for_it(bank, run, tmp_path):
    results = study([bank], [run], tmp_path / "out", settings=SETTINGS, examples=False)
    found = [row for row in results["summaries"] if row["arm"] == "full" and row["label"] == "macro"]
    assert {row["fraction"] for row in found} == {0.5, 1.0}
    assert all(row["value"] is not None for row in found if row["metric"] == "auroc")


def test_no_encoder_is_loaded_without_it(bank, run, tmp_path, monkeypatch):
    assert "full" not in ARMS
    monkeypatch.setattr(FrozenEncoders, "load_image", lambda _: pytest.fail("the image encoder was loaded"))
    study([bank], [run], tmp_path / "out", settings=replace(SETTINGS, arms=("frozen", "adaptor")), examples=False)
