"""`--config` repeats a run of any command that trains or studies, varies it, and refuses what is no such run."""

import json
from pathlib import Path

import pytest

from adaptmed.cli import main
from adaptmed.runs.folder import read_config
from adaptmed.runs.settings import build_settings
from adaptmed.study.segmentation.settings import SegmentationStudy
from adaptmed.tasks.pairs.settings import Coordination, PairChoices
from adaptmed.tasks.segmentation.settings import MaskChoices
from adaptmed.training.settings import FinetuneSettings


class TakenError(Exception):
    """Ends a command at the call that it makes, with what it hands over."""


@pytest.fixture
def handed(monkeypatch, tmp_path):
    """Return what a command hands to the function that does its work."""
    for name in ("tasks.finetune.finetune", "study.classification.study.study", "pretraining.calibrate.calibrate"):

        def take(*given, **named):
            raise TakenError(given, named)

        monkeypatch.setattr(f"adaptmed.{name}", take)
    monkeypatch.setattr("adaptmed.study.segmentation.study.study_segmentation", take)
    monkeypatch.setattr("adaptmed.study.segmentation.study.length_of", lambda *_: "")
    monkeypatch.setattr("adaptmed.bank.Bank.open", lambda path: Path(path))

    def handed(*words):
        with pytest.raises(TakenError) as taken:
            main([*map(str, words), "--out", str(tmp_path / "out")])
        return taken.value.args

    return handed


def write(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


def tuned(handed, *words):
    """What a finetune command tunes, and its bank."""
    (bank, _, _, task, _), _ = handed("finetune", "run", *words)
    return bank, task


TASKS = {
    "classification": ["--epochs", "3", "--lora", "rank=4,roles=mlp", "--no-augment", "--seed", "2"],
    "answering": ["--coordinate-gradients", "--no-gradient-noise", "--loss", "cross-entropy", "--fraction", "0.5"],
    "image-text-classification": ["--class-weights", "balanced", "--text-lora", "rank=2", "--precision", "fp32"],
    "segmentation": ["--steps", "20", "--mask-labels", "1=effusion", "2=nodule", "--decoder", "dpt", "--train-fusion"],
}


@pytest.mark.parametrize("task", TASKS)
def test_a_finetuning_is_repeated_and_varied(handed, tmp_path, task):
    _, first = tuned(handed, "bank", "--task", task, *TASKS[task])
    held = {"command": "finetune", "run": "run", "bank": "there", "adaptor_sha256": "ab", "rows_sha256": "cd"}
    path = write(tmp_path, **held, **first.config())
    bank, again = tuned(handed, "--config", path)
    assert (bank, again.config()) == (Path("there"), first.config())
    bank, varied = tuned(handed, "bank", "--config", path, "--seed", "7", "--batch-size", "5")
    expected = json.loads(json.dumps(first.config()))
    expected["seed"], expected["settings"]["batch_size"] = 7, 5
    assert (bank, json.loads(json.dumps(varied.config()))) == (Path("bank"), expected)


def test_settings_that_have_no_option_are_repeated_too(handed, tmp_path):
    settings = {"weight_decay": 0.5, "hidden": 16}
    path = write(tmp_path, command="finetune", task="classification", settings=settings)
    _, task = tuned(handed, "bank", "--config", path, "--epochs", "9", "--precision", "bf16")
    assert task.settings == FinetuneSettings(weight_decay=0.5, hidden=16, epochs=9)


STUDIES = {
    "classification": ["--seeds", "2", "--arms", "frozen", "adaptor", "--replicates", "9"],
    "segmentation": ["--task", "segmentation", "--steps", "7", "--learning-rates", "0.1", "0.2", "--fractions", "0.5"],
}


@pytest.mark.parametrize("task", STUDIES)
def test_a_study_is_repeated_and_varied(handed, tmp_path, task):
    settings = handed("study", "bank", *STUDIES[task])[1]["settings"]
    facts = settings.as_json() if task == "segmentation" else vars(settings)
    facts = {"fractions": settings.fractions, "seeds": settings.seeds, **facts}
    named = {"task": task} if task == "segmentation" else {}
    path = write(tmp_path, command="study", subjects=["x"], **named, **facts)
    assert handed("study", "bank", "--config", path)[1]["settings"] == settings
    assert handed("study", "bank", "--config", path, "--seeds", "4")[1]["settings"].seeds == 4


@pytest.mark.parametrize(
    ("words", "values", "message"),
    [
        (("finetune", "run"), {"command": "pretrain"}, "of `adaptmed finetune`, but got one of `adaptmed pretrain`"),
        (("study", "bank"), {"command": "finetune"}, "of `adaptmed study`, but got one of `adaptmed finetune`"),
        (("calibrate", "run"), {"command": "pretrain"}, "of `adaptmed calibrate`, but got one of `adaptmed pretrain`"),
        (
            ("finetune", "run", "b", "--task", "segmentation"),
            {"task": "answering"},
            "of --task segmentation, but got an",
        ),
        (("finetune", "run", "bank"), {"task": "classification", "sede": 1}, "but got sede. Did you mean seed?"),
        (
            ("finetune", "run", "bank"),
            {"task": "classification", "seed": "x"},
            "`config.seed`: expected a whole number",
        ),
        (("study", "bank"), {"fractions": 3}, "`config.fractions`: expected several of them, but got 3"),
        (("finetune", "run"), {"task": "classification"}, "`bank`: expected a bank, but got none"),
    ],
)
def test_what_is_no_such_run_is_refused_and_nothing_is_written(tmp_path, capsys, words, values, message):
    path = write(tmp_path, **values)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--config", str(path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_settings_inside_settings_become_their_dataclasses():
    choices = build_settings(PairChoices, "config", {"task": "answering", "coordination": {"noise": False}})
    assert choices.coordination == Coordination(noise=False)
    assert build_settings(MaskChoices, "c", {"settings": {}, "labels": {"2": "nodule"}}).labels == {2: "nodule"}
    assert build_settings(SegmentationStudy, "c", {"learning_rates": [1, 0.5]}).learning_rates == (1.0, 0.5)


def test_the_configuration_of_a_run_on_disk_is_read_as_such(tmp_path):
    path = write(tmp_path, command="study", seeds=1)
    assert read_config(path.parent) == {"command": "study", "seeds": 1}
