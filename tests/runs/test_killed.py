"""A run with LoRA in the loop is killed at any moment, or asked to end, and goes on as if nothing had happened."""

import multiprocessing
import os
import random
import signal
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from adaptmed.bank import Bank
from adaptmed.cli import main
from adaptmed.errors import TerminatedError
from adaptmed.lora import LoRA
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import LAST
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.encoders import Online
from tests.online_bank import write_online_bank
from tests.short_training import METHOD, drop_seconds

LONG = replace(METHOD, schedule=replace(METHOD.schedule, epochs=4, batch_size=6))  # 16 steps
ONLINE = Online(image_lora=LoRA(rank=2), text_lora=LoRA(rank=2), workers=1)
MOMENTS = ("on_train_batch_start", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end")
PARTS = ("adaptor.safetensors", "image_lora/adapter_model.safetensors", "text_lora/adapter_model.safetensors")


class SendAt(Callback):
    """Sends this process a signal at one moment of one step."""

    def __init__(self, step, moment, sent=signal.SIGKILL):
        self.step, self.sent = step, sent
        setattr(self, moment, self.send)

    def send(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.sent)


def train(bank, out, *callbacks, every=2):
    pretrain(bank, LONG, out, device="cpu", checkpoint_every=every, online=ONLINE, callbacks=callbacks)


def train_until_killed(folder, out, step, moment):
    """What the killed process runs."""
    torch.set_num_threads(1)
    train(Bank.open(folder), out, SendAt(step, moment))


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_online_bank(tmp_path_factory.mktemp("online"))


@pytest.fixture(scope="module")
def whole(bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    train(bank, out)
    return out


def assert_same_run(out, whole):
    assert drop_seconds(out) == drop_seconds(whole)
    for part in PARTS:
        found = load_file(out / "adaptor" / part)
        for name, value in load_file(whole / "adaptor" / part).items():
            assert torch.equal(value, found[name]), name


def test_kill_9_at_ten_random_steps(bank, whole, tmp_path):
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload([__name__])
    draw = random.Random(5)
    out, threads = tmp_path / "run", torch.get_num_threads()
    for step in sorted(draw.sample(range(1, 16), 10)):
        process = start.Process(target=train_until_killed, args=(bank.folder, out, step, draw.choice(MOMENTS)))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "adaptor").exists()
    torch.set_num_threads(1)
    train(bank, out)
    torch.set_num_threads(threads)
    assert_same_run(out, whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_writes_a_checkpoint_of_the_step(bank, whole, tmp_path, moment):
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError):
        train(bank, out, SendAt(6, moment, signal.SIGTERM), every=1000)
    assert signal.getsignal(signal.SIGTERM) is before
    stopped = SafetensorsCheckpointIO().load_checkpoint(out / LAST)["global_step"]
    assert stopped == (6 if moment == "on_train_batch_end" else 7)
    train(bank, out)
    assert_same_run(out, whole)


def test_sigterm_at_an_epochs_end_waits_for_its_checkpoint(bank, whole, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(TerminatedError):
        train(bank, out, SendAt(4, "on_validation_start", signal.SIGTERM), every=1000)
    assert SafetensorsCheckpointIO().load_checkpoint(out / LAST)["global_step"] == 4
    train(bank, out)
    assert_same_run(out, whole)


def test_sigterm_with_gathered_gradients_waits_for_the_step(bank, tmp_path):
    online = replace(ONLINE, accumulate=2)
    stop = SendAt(3, "on_train_batch_start", signal.SIGTERM)
    pretrain(bank, LONG, tmp_path / "whole", device="cpu", online=online)
    with pytest.raises(TerminatedError):
        pretrain(bank, LONG, tmp_path / "run", device="cpu", online=online, callbacks=(stop,))
    pretrain(bank, LONG, tmp_path / "run", device="cpu", online=online)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_command_says_so_and_ends_with_143(bank, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "adaptmed.pretraining.pretrain.pretrain", lambda *_, **__: (_ for _ in ()).throw(TerminatedError)
    )
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(bank.folder), "--out", str(tmp_path / "run")])
    assert ended.value.code == 143
    assert "with a checkpoint" in capsys.readouterr().err
