"""The moving average of trained weights: its values, what is kept, and that it resumes."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from adaptmed.errors import InputError
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import BEST
from adaptmed.training.average import WeightAverage
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from tests.short_training import METHOD, StopAfter, drop_seconds, weights
from tests.tiny_bank import write_tiny_bank

AVERAGED = replace(METHOD, schedule=replace(METHOD.schedule, ema=0.8))


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("average") / "bank")


def test_the_average_by_hand():
    parameters = [nn.Parameter(torch.tensor([1.0, 2.0]))]
    average = WeightAverage(parameters, decay=0.5)
    parameters[0].data = torch.tensor([3.0, 0.0])
    average.follow(parameters, step=1)  # moves by 1 - 1/10
    torch.testing.assert_close(average.values[0], torch.tensor([2.8, 0.2]))
    average.follow(parameters, step=100)  # moves by 1 - 0.5
    torch.testing.assert_close(average.values[0], torch.tensor([2.9, 0.1]))


def test_swapping_twice_changes_nothing():
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 2))]
    before = [parameter.clone() for parameter in parameters]
    average = WeightAverage([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))], decay=0.9)
    average.swap(parameters)
    assert all((parameter == 0).all() for parameter in parameters)
    average.swap(parameters)
    assert all(torch.equal(*pair) for pair in zip(parameters, before, strict=True))


class Follow(Callback):
    """Averages the weights of every step as the definition says, one by one."""

    def on_train_start(self, _trainer, module):
        self.found = {name: value.detach().clone() for name, value in module.fusion.named_parameters()}

    def on_train_batch_end(self, trainer, module, *_):
        share = 1 - min(0.8, trainer.global_step / (trainer.global_step + 9))
        for name, value in module.fusion.named_parameters():
            self.found[name] += share * (value.detach() - self.found[name])


def test_the_average_is_kept_and_training_goes_on_from_the_weights(bank, tmp_path):
    single = replace(AVERAGED, schedule=replace(AVERAGED.schedule, epochs=1))
    follow = Follow()
    pretrain(bank, single, tmp_path / "averaged", device="cpu", callbacks=(follow,))
    pretrain(bank, replace(single, schedule=replace(single.schedule, ema=0.0)), tmp_path / "plain", device="cpu")
    kept, plain = weights(tmp_path / "averaged"), weights(tmp_path / "plain")
    for name, value in follow.found.items():
        torch.testing.assert_close(kept[name], value)
    assert not torch.allclose(kept["text_project.weight"], plain["text_project.weight"], atol=1e-5)
    state = SafetensorsCheckpointIO().load_checkpoint(tmp_path / "averaged" / BEST)["state_dict"]
    for name, value in plain.items():
        assert torch.equal(state[f"fusion.{name}"], value), name


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_a_stopped_run_resumes_exactly_with_its_average(bank, tmp_path, step):
    pretrain(bank, AVERAGED, tmp_path / "whole", device="cpu", checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        pretrain(bank, AVERAGED, tmp_path / "run", device="cpu", checkpoint_every=1, callbacks=(StopAfter(step),))
    pretrain(bank, AVERAGED, tmp_path / "run", device="cpu", checkpoint_every=1)
    assert drop_seconds(tmp_path / "run") == drop_seconds(tmp_path / "whole")
    found = weights(tmp_path / "run")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, found[name]), name


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(InputError, match=r"`ema`: expected a decay in \[0, 1\), but got 1"):
        replace(METHOD.schedule, ema=1.0)
