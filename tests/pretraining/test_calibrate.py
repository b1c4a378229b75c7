"""Calibration goes on with a masked run without a label, leaves alone what only matching trains, and can be chained."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed import methods
from adaptmed.bank import Bank
from adaptmed.errors import InputError, OverlapError
from adaptmed.pretraining.calibrate import FEATURES, calibrate, calibration_method, calibration_schedule
from adaptmed.pretraining.pretext import PRETEXT, load_matching
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import read_config, read_seen, write_seen
from adaptmed.runs.lineage import Lineage
from tests.masked_bank import (
    M3AE,
    SCHEDULE,
    UMD,
    Watch,
    assert_equal,
    copy_with_rows,
    tensors_of,
    tiny,
    write_masked_banks,
)
from tests.short_training import METHOD, StopAfter, drop_seconds
from tests.tiny_bank import write_tiny_bank

SHORT = replace(SCHEDULE, learning_rate=1e-2)
RUNS = {"umd": UMD, "m3ae": M3AE, "umd-faithful": tiny(methods.umd(faithful=True))}


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    return write_masked_banks(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def runs(banks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, method in RUNS.items():
        pretrain(banks["views"], method, folder / name, device="cpu")
    return folder


@pytest.fixture(scope="module")
def whole(banks, runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated") / "run"
    calibrate(banks["views"], runs / "umd", out, schedule=SHORT, device="cpu", checkpoint_every=1)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_the_matching_head_and_the_poolers_stay_and_all_else_moves(banks, runs, tmp_path, name):
    watch = Watch()
    calibrate(banks["plain"], runs / name, tmp_path / "run", schedule=SHORT, device="cpu", callbacks=(watch,))
    assert [name for name, gradient in watch.gradients.items() if gradient is None or not gradient.any()] == []
    assert "matching" not in watch.module.pretext
    before, after = tensors_of(runs / name), tensors_of(tmp_path / "run")
    assert before.keys() == after.keys()
    stays = ("image_pool.", "text_pool.", "matching.", "image_standardise.", "text_standardise.", "log_scale")
    unread = ("image_layers.2.",) if name == "m3ae" else ()  # patches are decoded from layer 2 of 3
    for key, value in before.items():
        assert torch.equal(value, after[key]) == key.startswith((*stays, *unread)), key
    assert sum(key.startswith("matching.") for key in before) == 6


def test_it_starts_from_the_run_and_its_teacher_is_a_fresh_copy(banks, runs, tmp_path):
    watch = Watch()
    calibrate(banks["views"], runs / "umd", tmp_path / "run", schedule=SHORT, device="cpu", callbacks=(watch,))
    for key, value in tensors_of(runs / "umd").items():
        for prefix in ("fusion.", "teacher.model.fusion.", "pretext."):
            if prefix + key in watch.before:
                assert torch.equal(watch.before[prefix + key], value), prefix + key
    assert "teacher.model.fusion.image_project.weight" in watch.before


def poison(monkeypatch):
    def read(*_):
        raise AssertionError("a label was read")

    for name in ("labels", "class_numbers"):
        monkeypatch.setattr(Bank, name, read)
    monkeypatch.setattr(Bank, "classes", property(read))


def test_no_label_and_no_answer_is_read(banks, runs, whole, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    other = {"a": draw.integers(0, 2, 40).astype(float), "answer": [f"answer {number}" for number in range(40)]}
    bank = copy_with_rows(banks["views"], tmp_path / "bank", other)
    assert not np.array_equal(bank.rows["a"], banks["views"].rows["a"])
    poison(monkeypatch)
    with pytest.raises(AssertionError, match="a label was read"):
        bank.labels(np.array([0]))
    calibrate(bank, runs / "umd", tmp_path / "run", schedule=SHORT, device="cpu")
    assert_equal(tensors_of(tmp_path / "run"), tensors_of(whole))
    assert drop_seconds(tmp_path / "run") == drop_seconds(whole)
    assert Lineage.of_run(tmp_path / "run").labels is None


@pytest.mark.parametrize("step", [2, 3])
def test_a_stopped_calibration_resumes_exactly(banks, runs, whole, tmp_path, step):
    out = tmp_path / "run"
    options = {"schedule": SHORT, "device": "cpu", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        calibrate(banks["views"], runs / "umd", out, callbacks=(StopAfter(step),), **options)
    calibrate(banks["views"], runs / "umd", out, **options)
    assert_equal(tensors_of(out), tensors_of(whole))
    assert drop_seconds(out) == drop_seconds(whole)


def test_a_calibrated_run_is_calibrated_again_and_keeps_the_matching_head(banks, runs, whole, tmp_path):
    write_seen(shutil.copytree(whole, tmp_path / "first"), before := sorted([*read_seen(whole), "d" * 64]))
    watch = Watch()
    calibrate(banks["plain"], tmp_path / "first", tmp_path / "run", schedule=SHORT, device="cpu", callbacks=(watch,))
    assert sorted(read_seen(tmp_path / "run")) == before
    assert read_config(tmp_path / "run")["command"] == "calibrate"
    assert torch.equal(watch.before["pretext.words.bias"], tensors_of(whole)["words.bias"])
    heads = [load_matching(run, 32).state_dict() for run in (runs / "umd", whole, tmp_path / "run")]
    assert_equal(heads[1], heads[0])
    assert_equal(heads[2], heads[0])
    assert not torch.equal(tensors_of(tmp_path / "run")["words.bias"], tensors_of(whole)["words.bias"])


def test_the_weights_of_calibration(runs):
    method = calibration_method(runs / "umd")
    weights = {"words": 1.0, "patches": 1.0}
    assert method.weights == weights | {"text_features": FEATURES, "image_features": FEATURES}
    assert method.schedule == calibration_schedule(method)
    assert calibration_method(runs / "m3ae", SHORT).weights == weights
    assert calibration_method(runs / "m3ae", SHORT).schedule == SHORT
    assert calibration_schedule(methods.umd(size="paper")).learning_rate == 2.5e-5


def test_a_run_that_hid_nothing_no_run_and_an_unfinished_one_are_refused(banks, runs, tmp_path):
    pretrain(banks["views"], METHOD, tmp_path / "plain", device="cpu")
    with pytest.raises(InputError, match=r"with --method umd or m3ae, but got a run of the method adaptor"):
        calibrate(banks["views"], tmp_path / "plain", tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match=r"a finished run folder .*, but got none"):
        calibrate(banks["views"], tmp_path / "nothing", tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match=r"name its run folder, not the adaptor inside"):
        calibrate(banks["views"], runs / "umd" / "adaptor", tmp_path / "run", device="cpu")
    shutil.copytree(runs / "umd", tmp_path / "unfinished")
    (tmp_path / "unfinished" / PRETEXT).unlink()
    with pytest.raises(InputError, match="a finished run folder"):
        calibrate(banks["views"], tmp_path / "unfinished", tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_bank_of_other_encoders_is_refused(runs, tmp_path):
    bank = write_tiny_bank(tmp_path / "bank")
    with pytest.raises(InputError, match=r"Tokens of .*was trained on, but got Tokens of"):
        calibrate(bank, runs / "umd", tmp_path / "run", device="cpu")


def test_pretext_modules_of_other_sizes_are_refused(banks, runs, tmp_path):
    run = shutil.copytree(runs / "umd", tmp_path / "other")
    config = json.loads((run / "config.json").read_text())
    config["method"]["terms"]["patches"]["decoder_width"] = 16
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"pretext modules of this method and bank, but got \d+ others, patches"):
        calibrate(banks["views"], run, tmp_path / "run", schedule=SHORT, device="cpu")


def test_a_patient_in_two_splits_is_refused(banks, runs, tmp_path):
    patients = [str(number if number != 30 else 3) for number in range(40)]  # 3 is trained on, 30 validates
    bank = copy_with_rows(banks["views"], tmp_path / "bank", {"patient": patients})
    with pytest.raises(OverlapError, match="no patient in two of train, validate and test, but got 1 such"):
        calibrate(bank, runs / "umd", tmp_path / "run", device="cpu")


def test_it_runs_without_a_validate_split(banks, runs, tmp_path):
    splits = ["train" if number < 34 else "test" for number in range(40)]
    bank = copy_with_rows(banks["views"], tmp_path / "bank", {"split": splits})
    calibrate(bank, runs / "umd", tmp_path / "run", schedule=SHORT, device="cpu")
    assert not any("validate/loss" in line for line in drop_seconds(tmp_path / "run"))
