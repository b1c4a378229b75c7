"""Masked pre-training and calibration are killed at any moment and go on with their teacher as if nothing had been."""

import multiprocessing
import random
import signal

import pytest
import torch

from adaptmed.bank import Bank
from adaptmed.pretraining.calibrate import calibrate
from adaptmed.pretraining.pretrain import pretrain
from tests.masked_bank import SCHEDULE, UMD, assert_equal, tensors_of, write_masked_banks
from tests.runs.test_killed import MOMENTS, SendAt
from tests.short_training import drop_seconds


def train(kind, folder, out, *callbacks):
    """Run six steps."""
    bank, how = Bank.open(folder / kind), {"device": "cpu", "checkpoint_every": 2, "callbacks": callbacks}
    if kind == "plain":
        pretrain(bank, UMD, out, **how)
    else:
        calibrate(bank, folder / "run", out, schedule=SCHEDULE, **how)


def train_until_killed(kind, folder, out, step, moment):
    """What the killed process runs."""
    torch.set_num_threads(1)
    train(kind, folder, out, SendAt(step, moment))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    write_masked_banks(folder)
    train("plain", folder, folder / "run")
    return folder


@pytest.mark.parametrize("kind", ["plain", "views"], ids=["umd", "calibrate"])
def test_kill_9_at_random_steps(folder, tmp_path, kind):
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload([__name__])
    draw = random.Random(5)
    out, whole = tmp_path / "run", folder / "run"
    if kind == "views":
        train(kind, folder, whole := tmp_path / "whole")
    for step in (2, 4):
        process = start.Process(target=train_until_killed, args=(kind, folder, out, step, draw.choice(MOMENTS)))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "adaptor").exists()
    train(kind, folder, out)
    assert_equal(tensors_of(out), tensors_of(whole))
    assert drop_seconds(out) == drop_seconds(whole)
