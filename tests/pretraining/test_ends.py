"""What ends a training run: early stopping, losses, gradients and weights that are not finite."""

import shutil
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed.bank import Bank
from adaptmed.cohort.rows import pairs_of
from adaptmed.errors import NonFiniteLossError
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import LAST, read_metrics
from tests.short_training import METHOD, StopAfter, drop_seconds, weights
from tests.tiny_bank import write_tiny_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("tiny") / "bank")


@pytest.fixture(scope="module")
def whole(bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1)
    return out


def test_a_loss_that_is_not_finite_names_the_items_and_keeps_the_checkpoint(bank, tmp_path, monkeypatch):
    poisoned = Bank.open(bank.folder)
    bad = pairs_of(bank, "train")[3]
    read = Bank.image_tokens

    def image_tokens(self, rows, dtype=None):
        tokens = read(self, rows, dtype)
        late = (tmp_path / "run" / LAST).exists()
        values = tokens.values.clone()
        values[torch.from_numpy(rows == bad) & late] = float("nan")
        return replace(tokens, values=values)

    monkeypatch.setattr(Bank, "image_tokens", image_tokens)
    with pytest.raises(NonFiniteLossError, match=rf"got nan on the items .*\br{bad}\b"):
        pretrain(poisoned, METHOD, tmp_path / "run", device="cpu", checkpoint_every=1)
    assert (tmp_path / "run" / LAST).exists()
    assert not (tmp_path / "run" / "adaptor").exists()


SOON = replace(METHOD, schedule=replace(METHOD.schedule, epochs=20, patience=2, learning_rate=1e-2))


@pytest.fixture(scope="module")
def stopped_early(bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "early"
    pretrain(bank, SOON, out, device="cpu", checkpoint_every=50)
    return out


def test_it_stops_when_validation_gets_no_better(stopped_early):
    losses = [line["validate/loss"] for line in read_metrics(stopped_early)]
    assert len(losses) < 20
    assert min(range(len(losses)), key=losses.__getitem__) == len(losses) - 3


@pytest.mark.parametrize("back", [0, 1, 4, 9, 13])
def test_a_resumed_run_stops_early_where_the_whole_one_does(bank, stopped_early, tmp_path, back):
    last = read_metrics(stopped_early)[-1]["step"]
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(bank, SOON, out, device="cpu", checkpoint_every=3, callbacks=(StopAfter(last - back),))
    pretrain(bank, SOON, out, device="cpu", checkpoint_every=3)
    assert drop_seconds(out) == drop_seconds(stopped_early)
    for name, value in weights(stopped_early).items():
        assert torch.equal(value, weights(out)[name]), name


def test_a_run_that_had_ended_before_its_adaptor_was_saved_does_not_train_on(bank, stopped_early, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped_early, out)
    shutil.rmtree(out / "adaptor")
    pretrain(bank, SOON, out, device="cpu", checkpoint_every=50)
    assert drop_seconds(out) == drop_seconds(stopped_early)
    for name, value in weights(stopped_early).items():
        assert torch.equal(value, weights(out)[name]), name


class Poison(Callback):
    """Makes one gradient NaN after the backward pass of a step."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 5:
            pl_module.fusion.norm.weight.grad.fill_(float("nan"))


def test_a_gradient_that_is_not_finite_updates_nothing_and_the_run_goes_on_later(bank, whole, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"`gradient at step 5`: .* got nan on the items r\d+"):
        pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1, callbacks=(Poison(),))
    pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(out)[name]), name


class Explode(Callback):
    """Leaves finite weights behind that no loss survives, as a learning rate far too large does."""

    def on_before_zero_grad(self, trainer, pl_module, *_):
        if trainer.global_step == 7:
            for parameter in pl_module.parameters():
                parameter.data.fill_(1e30)


def test_a_checkpoint_of_broken_weights_is_taken_back(bank, whole, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"`(loss|gradient) at step 7`"):
        pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1, callbacks=(Explode(),))
    pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(out)[name]), name


def test_a_validation_loss_that_is_not_finite_names_the_items(bank, tmp_path, monkeypatch):
    read, bad = Bank.image_tokens, pairs_of(bank, "validate")[0]

    def image_tokens(self, rows, dtype=None):
        tokens = read(self, rows, dtype)
        values = tokens.values.clone()
        values[torch.from_numpy(rows == bad)] = float("nan")
        return replace(tokens, values=values)

    monkeypatch.setattr(Bank, "image_tokens", image_tokens)
    with pytest.raises(NonFiniteLossError, match=rf"`validation loss at step \d+`: .* the items .*\br{bad}\b"):
        pretrain(bank, METHOD, tmp_path / "run", device="cpu")
