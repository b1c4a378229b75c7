"""The command line of pairs: answers and classes are tuned, judged again, and options of other tasks refused."""

import json
from dataclasses import replace

import pytest

from adaptmed.cli import main
from adaptmed.tasks.classification.task import Classification
from adaptmed.tasks.finetune import finetune
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import RunOptions
from tests.labelled_pictures import make_labelled_bank, pretrain_shortly
from tests.tasks.pairs.asked import save_adaptor, with_answers, write_asked_bank


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def flat(text):
    return " ".join(text.split())


def test_answers_are_tuned_printed_and_judged_again(tmp_path, capsys):
    bank = write_asked_bank(tmp_path / "bank", blank=2)
    adaptor, out = save_adaptor(bank, tmp_path / "run"), tmp_path / "out"
    words = ("--task", "answering", "--coordinate-gradients", "--no-gradient-noise", "--unimodal-scores", "last-linear")
    more = ("--epochs", 1, "--batch-size", 16, "--loss", "cross-entropy", "--answers-from", "all", "--device", "cpu")
    assert run("finetune", adaptor, bank.folder, "--out", out, *words, *more) == 0
    said = flat(capsys.readouterr().out)
    for text in (
        "2 rows are no whole pairs; rejects.jsonl says why.",
        "1 questions are longer than the text encoder reads and were cut.",
        "Answers of validate and test were offered to the model",
        "Which patients the adaptor was pre-trained on is not known",
        "Accuracy on 32 test pairs of 4 patients",
        "overall",
        "closed",
    ):
        assert text in said, text
    config = json.loads((out / "config.json").read_text())
    assert config["coordination"] == {"noise": False, "scores": "last-linear", "alpha": 0.1}
    assert (config["loss"], config["answers_from"], config["settings"]["epochs"]) == ("cross-entropy", "all", 1)
    assert (out / "coordination.jsonl").exists()
    assert run("evaluate", out, bank.folder, "--device", "cpu") == 0
    said = flat(capsys.readouterr().out)
    assert "Accuracy on 32 test pairs" in said
    assert f"Written: {out}/evaluation-bank.json" in said.replace("\n", "")


def test_classes_of_pairs_have_defaults_of_their_own(tmp_path, capsys):
    bank = write_asked_bank(tmp_path / "bank", classes=True)
    adaptor, out = save_adaptor(bank, tmp_path / "run"), tmp_path / "out"
    words = ("--task", "image-text-classification", "--class-weights", "balanced", "--precision", "fp32")
    assert run("finetune", adaptor, bank.folder, "--out", out, *words, "--device", "cpu", "--no-train-fusion") == 0
    said = flat(capsys.readouterr().out)
    assert "AUROC on" in said
    assert "macro F1 of" in said
    config = json.loads((out / "config.json").read_text())
    assert (config["settings"]["epochs"], config["train_fusion"], config["coordination"]) == (20, False, None)


def test_answers_that_training_never_gives_are_said(tmp_path, capsys):
    from adaptmed.cli.show import print_pairs
    from tests.tasks.pairs.asked import SETTINGS, tune

    bank = write_asked_bank(tmp_path / "bank")
    changed = with_answers(bank, bank.subset("test")[:3], "Plutonium")
    adaptor = save_adaptor(bank, tmp_path / "run")
    print_pairs(tune(changed, adaptor, tmp_path / "out", settings=replace(SETTINGS, epochs=1)))
    assert "3 test questions have an answer that training never gives" in flat(capsys.readouterr().out)


def test_a_run_on_images_alone_is_judged_again(tmp_path, capsys):
    bank = make_labelled_bank(tmp_path)
    trained = pretrain_shortly(bank, tmp_path / "run")
    settings = FinetuneSettings(epochs=1, precision="fp32")
    result = finetune(bank, trained, tmp_path / "out", Classification(settings=settings), RunOptions(device="cpu"))
    assert run("evaluate", tmp_path / "out", bank.folder, "--device", "cpu") == 0
    assert "AUROC on 12 test images of 6 patients" in flat(capsys.readouterr().out)
    again = json.loads((tmp_path / "out" / "evaluation-bank.json").read_text())
    for name, entry in result["test"]["tuned"]["auroc"]["labels"].items():
        assert again["test"]["tuned"]["auroc"]["labels"][name] == pytest.approx(entry)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--coordinate-gradients",), "`coordinate_gradients`: expected an option that --task"),
        (("--text-lora", "rank=2"), "`text_lora`: expected an option that --task"),
        (("--decoder", "unet"), "`decoder`: expected an option that --task"),
        (("--loss", "paper"), "`loss`: expected an option that --task"),
        (("--task", "segmentation", "--answers-from", "all"), "`answers_from`: expected an option that --task"),
        (("--task", "segmentation", "--loss", "binary"), "`loss`: expected one of dice-cross-entropy, dice-focal"),
        (("--task", "answering", "--steps", 3), "`steps`: expected an option that --task"),
        (("--task", "answering", "--mask-labels", "1=a"), "`mask_labels`: expected an option that --task"),
        (("--task", "answering", "--class-weights", "balanced"), "`class_weights`: expected an option that --task"),
        (("--task", "answering", "--loss", "paper"), "`loss`: expected one of binary, cross-entropy"),
        (("--task", "answering", "--no-gradient-noise"), "--coordinate-gradients beside its options, but got none"),
    ],
)
def test_options_of_other_tasks_are_refused(tmp_path, capsys, words, message):
    assert run("finetune", tmp_path, tmp_path, "--out", tmp_path / "out", *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
