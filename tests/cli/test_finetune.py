"""The command line of fine-tuning: tune, embed through the tuned encoder, study the tuned bank."""

import json

import pytest

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cli import main
from tests.labelled_pictures import make_labelled_bank, pretrain_shortly


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_labelled_bank(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained(bank, tmp_path_factory):
    return pretrain_shortly(bank, tmp_path_factory.mktemp("runs") / "run")


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_tune_embed_and_study(bank, trained, tmp_path, capsys):
    out, tuned = tmp_path / "tuned", tmp_path / "tuned-bank"
    words = ("--lora", "rank=2,roles=attention+mlp", "--epochs", 1, "--batch-size", 6, "--fraction", 1.0, "--seed", 3)
    more = ("--lora-learning-rate", 1e-3, "--no-augment", "--accumulate", 2, "--checkpointing", "--device", "cpu")
    assert run("finetune", trained, bank.folder, "--out", out, *words, *more) == 0
    said = capsys.readouterr().out
    assert "AUROC on 12 test images of 6 patients" in said
    assert f"Next: adaptmed embed {bank.info.manifest} --adaptor {out} --out {out}-bank" in said.replace("\n", "")
    config = json.loads((out / "config.json").read_text())
    assert (config["fraction"], config["seed"], config["lora"]["rank"]) == (1.0, 3, 2)
    chosen = {"epochs": 1, "batch_size": 6, "accumulate": 2, "encoder_learning_rate": 1e-3, "augment": False}
    assert {name: config["settings"][name] for name in chosen} == chosen
    assert config["settings"]["checkpointing"]

    assert run("embed", bank.info.manifest, "--adaptor", out, "--out", tuned, "--device", "cpu") == 0
    digest = Adaptor.from_pretrained(out).encoders.image.lora.digest()
    assert Bank.open(tuned).info.images.lora == digest
    judged = ("--fractions", 1, "--seeds", 1, "--replicates", 20, "--arms", "frozen", "adaptor", "--no-examples")
    assert run("study", tuned, "--adaptor", out, "--out", tmp_path / "study", *judged) == 0
    assert run("study", bank.folder, "--adaptor", out, "--out", tmp_path / "other", *judged) == 1


def test_without_lora_everything_comes_from_the_bank(bank, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adaptmed.training.batches.PixelReader", lambda *_, **__: pytest.fail("images were read"))
    words = ("--no-train-fusion", "--precision", "fp32", "--device", "cpu")
    assert run("finetune", trained, bank.folder, "--out", tmp_path / "head", *words) == 0
    assert run("finetune", trained, bank.folder, "--out", tmp_path / "fusion", *words[1:]) == 0
    said = capsys.readouterr().out
    assert "Next: adaptmed embed" not in said
    assert "undefined" not in said


def test_what_was_not_checked_is_said(bank, trained, tmp_path, capsys):
    alone = tmp_path / "alone"
    (trained / "adaptor").rename(alone)
    try:
        assert run("finetune", alone, bank.folder, "--out", tmp_path / "out", "--epochs", 1, "--device", "cpu") == 0
    finally:
        alone.rename(trained / "adaptor")
    assert "Which patients the adaptor was pre-trained on is not known" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--checkpointing",), ("--lora-learning-rate", 1e-3)])
def test_options_of_lora_without_lora_are_refused(tmp_path, capsys, words):
    assert run("finetune", tmp_path, tmp_path, "--out", tmp_path / "out", *words) == 1
    assert "`lora`: expected what is trained inside the encoder, but got none" in capsys.readouterr().err
