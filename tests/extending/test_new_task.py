"""A new task: a file and one line in two others; it is tuned, resumed, judged again and printed like the others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from adaptmed import tasks
from adaptmed.adaptor.features import embed_rows
from adaptmed.cli import finetune as command
from adaptmed.cli import main
from adaptmed.cohort.division import Share, divide_labelled
from adaptmed.cohort.rows import labelled_rows, labels_of
from adaptmed.files import write_json
from adaptmed.pretraining.pretrain import pretrain
from tests.short_training import METHOD
from tests.tiny_bank import write_tiny_bank


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Says of an image what its nearest training image says; nothing is trained."""

    task: ClassVar[str] = "nearest"
    noun: ClassVar[str] = "images"
    reads_texts: ClassVar[bool] = False
    shares_batches: ClassVar[bool] = False
    loras: ClassVar[Mapping] = {}
    fraction: float = 1.0
    seed: int = 0
    allow_overlap: bool = False

    def config(self):
        """Its choices."""
        return {"task": self.task, "fraction": self.fraction, "seed": self.seed}

    def job(self, bank, adaptor, before):
        """Divide the labelled images."""
        share = Share(fraction=self.fraction, seed=self.seed, allow_overlap=self.allow_overlap)
        return NearestJob(bank, adaptor, divide_labelled(bank, share, before=before.seen))

    @staticmethod
    def card(test):
        """Its accuracy."""
        return {"test accuracy": test["tuned"]["accuracy"]}

    @staticmethod
    def test_rows(bank, name):
        """Labelled test images."""
        del name
        return labelled_rows(bank, "test")

    @staticmethod
    def judge_run(run, adaptor, bank, rows, _how):
        """Read what the run remembers, and judge it."""
        held = json.loads((run / "nearest.json").read_text())
        return {"tuned": accuracy(adaptor, bank, rows, np.array(held["rows"]), np.array(held["labels"]))}


def accuracy(adaptor, bank, rows, train, labels):
    """Share of labels that the nearest training image has too."""
    known, asked = (embed_rows(adaptor.fusion.eval(), bank, some, modality="image") for some in (train, rows))
    nearest = labels[(np.asarray(asked) @ np.asarray(known).T).argmax(1)]
    return {"accuracy": float((nearest == np.nan_to_num(labels_of(bank, rows))).mean())}


class NearestJob:
    """Remembers the training images."""

    rejects = None

    def __init__(self, bank, adaptor, rows):
        self.bank, self.adaptor, self._rows = bank, adaptor, rows
        self.labels = np.nan_to_num(labels_of(bank, rows.train))

    def division(self):
        """Its rows."""
        return self._rows

    def label_names(self):
        """All labels."""
        return self.bank.info.labels

    def open(self, out, reading):
        """Nothing is read before rows are known."""

    def work(self, log_folder):
        """Nothing is trained."""

    def network(self):
        """Nothing is trained."""
        return nn.Identity()

    def judge(self, _out, _device):
        """Judge the test rows."""
        return {"tuned": accuracy(self.adaptor, self.bank, self._rows.test, self._rows.train, self.labels)}

    def facts(self):
        """Nothing else."""
        return {"task": "nearest"}

    def save_head(self, out):
        """Write what it remembers."""
        write_json(out / "nearest.json", {"rows": self._rows.train.tolist(), "labels": self.labels.tolist()})


@pytest.fixture
def registered(monkeypatch):
    """The two files that change: TASKS of the tasks, and the choices of the command."""
    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, "nearest": f"{__name__}:Nearest"})
    monkeypatch.setattr("adaptmed.tasks.evaluate.TASKS", tasks.TASKS)
    chosen = {**command._CHOICES, "nearest": lambda _task, _given, held: Nearest(**held)}
    monkeypatch.setattr(command, "_CHOICES", chosen)


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


@pytest.mark.usefixtures("registered")
def test_it_is_tuned_judged_again_and_printed(tmp_path, capsys):
    torch.manual_seed(0)
    bank = write_tiny_bank(tmp_path / "bank")
    pretrain(bank, METHOD, tmp_path / "run", device="cpu")
    words = ("finetune", tmp_path / "run", bank.folder, "--task", "nearest", "--out", tmp_path / "tuned")
    assert run(*words, "--allow-overlap") == 0
    assert run(*words, "--allow-overlap") == 0  # finished: nothing is done again
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert str(result["test"]["tuned"]["accuracy"])[:5] in said
    assert run("evaluate", tmp_path / "tuned", bank.folder, "--allow-overlap") == 0
    again = json.loads((tmp_path / "tuned" / "evaluation-bank.json").read_text())
    assert again["test"]["tuned"] == result["test"]["tuned"]
    assert run("finetune", tmp_path / "run", bank.folder, "--task", "nearset", "--out", tmp_path / "no") == 1
    assert "Did you mean nearest?" in capsys.readouterr().err
