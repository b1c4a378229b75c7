"""Fine-tuning on labels: what moves, what is kept, and that it resumes exactly."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.errors import InputError
from adaptmed.lora import LoRA
from adaptmed.runs.folder import BEST, LAST, read_metrics
from adaptmed.tasks.classification.head_file import load_label_head
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.settings import FinetuneSettings
from tests.labelled_pictures import make_labelled_bank, pretrain_shortly
from tests.short_training import StopAfter, drop_seconds
from tests.short_tuning import SHORT, TUNED, same, tensors, tune


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_labelled_bank(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(bank, tmp_path_factory):
    return pretrain_shortly(bank, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def whole(bank, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    tune(bank, run, out, **TUNED)
    return out


def test_it_writes_a_whole_run_folder(whole):
    assert {path.name for path in whole.iterdir()} == {
        "adaptor", "checkpoints", "config.json", "head.json", "head.safetensors", "metrics.json", "metrics.jsonl",
        "patients_seen.json",
    }  # fmt: skip
    config = json.loads((whole / "config.json").read_text())
    assert (config["command"], config["task"], config["fraction"], config["seed"]) == (
        "finetune",
        "classification",
        1,
        0,
    )
    assert [line["epoch"] for line in read_metrics(whole)] == [0, 1]
    result = json.loads((whole / "metrics.json").read_text())
    assert set(result["test"]["tuned"]["auroc"]["labels"]) == {"high", "low"}
    assert result["test"]["images"] == 12
    assert result["train_patients"] == 18
    card = (whole / "adaptor" / "README.md").read_text()
    assert f"| test AUROC, tuned | {result['test']['tuned']['auroc']['macro']['value']} |" in card
    assert "seen in training" not in card


def test_a_finished_run_is_returned_as_it_is(bank, run, whole):
    before = (whole / "head.safetensors").stat().st_mtime_ns
    assert tune(bank, run, whole, **TUNED) == json.loads((whole / "metrics.json").read_text())
    assert (whole / "head.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_refused(bank, run, whole):
    with pytest.raises(InputError, match=r"fraction: 1.0 there, 0.5 now"):
        tune(bank, run, whole, fraction=0.5, **TUNED)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_it_learns(bank, run, tmp_path, lora):
    rates = {"fusion_learning_rate": 3e-3, "encoder_learning_rate": 3e-3}
    settings = replace(SHORT, epochs=8, accumulate=1, augment=False, **rates)
    result = tune(bank, run, tmp_path / "out", settings=settings, lora=lora)
    lines = read_metrics(tmp_path / "out")
    assert lines[-1]["train/loss"] < 0.8 * lines[0]["train/loss"]
    assert result["kept"]["validate/loss"] == min(line["validate/loss"] for line in lines)


class Watch(Callback):
    """Keeps what the trained encoder was at the end, and on the way the seeds, and whether the fusion had dropout."""

    def on_train_start(self, *_):
        self.seeds = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        del trainer
        self.seeds.append(torch.initial_seed())
        self.dropout = pl_module.model.fusion.training

    def on_train_end(self, trainer, pl_module):
        del trainer
        self.fingerprint = pl_module.model.encoder.fingerprint()
        self.trained = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("train_fusion", [True, False])
def test_lora_head_and_asked_for_the_image_side_of_the_fusion_move_and_nothing_else(bank, run, tmp_path, train_fusion):
    watch, out = Watch(), tmp_path / "out"
    result = tune(bank, run, out, train_fusion=train_fusion, callbacks=(watch,), **TUNED)
    before = Adaptor.from_pretrained(run, load_encoders=False).fusion.state_dict()
    after = Adaptor.from_pretrained(out, load_encoders=False).fusion.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    text = {"text_project.weight", "text_project.bias", "text_out.weight", "text_out.bias", "log_scale"}
    still = text | {name for name in after if "standardise" in name}
    assert moved == (set(after) - still if train_fusion else set())
    assert watch.fingerprint == bank.info.images.fingerprint
    assert len(set(watch.seeds)) == 18
    assert watch.dropout is train_fusion
    named = {name.removeprefix("model.").split(".")[0] for name in watch.trained}
    assert named == ({"encoder", "fusion", "head"} if train_fusion else {"encoder", "head"})
    assert all("lora_" in name for name in watch.trained if ".encoder." in name)
    assert [name for name, value in tensors(out).items() if "lora_B" in name and not value.any()] == []
    sizes = sum(value.numel() for name, value in after.items() if name in moved)
    lora = sum(value.numel() for name, value in tensors(out).items() if "lora_" in name)
    head = sum(value.numel() for name, value in tensors(out).items() if ": linear." in name)
    assert result["trainable_parameters"] == sizes + lora + head


@pytest.mark.parametrize("step", [1, 3, 4])  # three steps an epoch
def test_a_stopped_run_resumes_exactly(bank, run, whole, tmp_path, step):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tune(bank, run, out, callbacks=(StopAfter(step),), **TUNED)
    tune(bank, run, out, **TUNED)
    assert drop_seconds(out) == drop_seconds(whole)
    assert same(whole, out)
    assert (out / "metrics.json").read_text() == (whole / "metrics.json").read_text()


def test_a_run_that_had_ended_before_its_result_was_written_does_not_train_on(bank, run, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "metrics.json").unlink()
    (out / "head.json").unlink()
    shutil.rmtree(out / "adaptor")
    tune(bank, run, out, callbacks=(StopAfterBatch(1),), **TUNED)
    assert same(whole, out)
    assert (out / "metrics.json").read_text() == (whole / "metrics.json").read_text()


class StopAfterBatch(Callback):
    """Ends training like a crash would, after a number of batches: in the midst of a step, too."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("batches", [2, 5, 11])  # nine batches an epoch
def test_a_run_stopped_within_a_step_makes_that_step_again(bank, run, whole, tmp_path, batches):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tune(bank, run, out, callbacks=(StopAfterBatch(batches),), **TUNED)
    tune(bank, run, out, **TUNED)
    assert drop_seconds(out) == drop_seconds(whole)
    assert same(whole, out)


def test_the_loss_in_the_metrics_is_that_of_a_batch_however_many_make_a_step(bank, run, tmp_path):
    still = replace(SHORT, epochs=1, learning_rate=0.0, fusion_learning_rate=0.0)
    for accumulate in (1, 3):
        tune(bank, run, tmp_path / str(accumulate), settings=replace(still, accumulate=accumulate))
    one, three = (read_metrics(tmp_path / name)[0] for name in ("1", "3"))
    assert (one["step"], three["step"]) == (9, 3)
    assert three["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)


def test_activations_computed_again_give_the_same(bank, run, whole, tmp_path):
    tune(bank, run, tmp_path / "out", **{**TUNED, "settings": replace(SHORT, checkpointing=True)})
    found = tensors(tmp_path / "out")
    for name, value in tensors(whole).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_checkpoints_hold_no_pretrained_weight(whole):
    for path in (whole / LAST, whole / BEST):
        state = SafetensorsCheckpointIO().load_checkpoint(path)["state_dict"]
        assert all("lora_" in name for name in state if ".encoder." in name)
        assert {name.split(".")[1] for name in state} == {"encoder", "fusion", "head"}


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_without_a_step_it_is_the_probe_from_the_bank_or_through_the_encoder(bank, run, tmp_path, lora):
    rates = dict.fromkeys(("learning_rate", "fusion_learning_rate", "encoder_learning_rate"), 0.0)
    result = tune(bank, run, tmp_path / "out", settings=replace(SHORT, epochs=1, **rates), lora=lora)["test"]
    assert result["tuned"]["auroc"] == result["probe"]["auroc"]
    assert result["tuned"]["ece"] == pytest.approx(result["probe"]["ece"], abs=1e-5)


def test_with_everything_frozen_the_probe_is_the_result(bank, run, tmp_path):
    result = tune(bank, run, tmp_path / "out", train_fusion=False)
    assert result["test"]["tuned"]["auroc"] == result["test"]["probe"]["auroc"]
    assert result["kept"] == {}
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert load_label_head(tmp_path / "out")[1].names == ("high", "low")


def test_the_best_validated_epoch_is_kept_else_the_last(bank, run, tmp_path):
    wild = replace(SHORT, epochs=4, accumulate=1, fusion_learning_rate=1e-2)
    kept = tune(bank, run, tmp_path / "judged", settings=wild)["kept"]
    losses = [line["validate/loss"] for line in read_metrics(tmp_path / "judged")]
    assert kept["epoch"] == int(np.argmin(losses)) < 3
    best = SafetensorsCheckpointIO().load_checkpoint(tmp_path / "judged" / BEST)["state_dict"]
    saved = load_file(tmp_path / "judged" / "head.safetensors")
    assert torch.equal(saved["linear.weight"], best["model.head.linear.weight"])
    alone = Bank.open(bank.folder)
    alone.rows.loc[alone.rows["split"] == "validate", list(bank.info.labels)] = np.nan
    assert tune(alone, run, tmp_path / "alone", settings=wild)["kept"]["epoch"] == 3
    assert "validate/loss" not in read_metrics(tmp_path / "alone")[0]


def test_the_papers_head_is_tuned_and_read_again(bank, run, tmp_path):
    settings = replace(SHORT, hidden=12, epochs=1)
    tune(bank, run, tmp_path / "out", settings=settings, train_fusion=False)
    head, facts = load_label_head(tmp_path / "out")
    assert (facts.hidden, facts.variant) == (12, "embedding")
    assert head(torch.zeros(2, facts.width)).shape == (2, 2)
    with pytest.raises(InputError, match=r"a head in head\.json, but got none"):
        load_label_head(run)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "`epochs`: expected at least 1, but got 0"),
        ({"accumulate": 0}, "`accumulate`: expected at least 1"),
        ({"learning_rate": -1.0}, "`learning_rate`: expected a finite number, 0 or more"),
        ({"encoder_learning_rate": float("nan")}, "`encoder_learning_rate`"),
    ],
)
def test_settings_that_train_nothing_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        FinetuneSettings(**wrong)
