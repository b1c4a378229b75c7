"""UMD with LoRA in the loop: both encoders learn, the teacher averages their LoRA too, and no frozen weight is kept."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from adaptmed.lora import LoRA
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import BEST, LAST
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.encoders import Online
from tests.masked_bank import UMD, Watch, assert_equal, state_of, tensors_of, write_masked_banks
from tests.short_training import StopAfter, drop_seconds

ONLINE = Online(image_lora=LoRA(rank=2), text_lora=LoRA(rank=2), workers=1)
LORA = 2 * 2 * 4 * 2  # two encoders, two blocks, four layers of attention, A and B
HOW = {"device": "cpu", "checkpoint_every": 1, "online": ONLINE}


class Followed(Watch):
    """Also averages every trained weight of the student by hand, and counts what the encoders are asked for."""

    def on_train_start(self, trainer, module):
        super().on_train_start(trainer, module)
        self.expected = {name: value.detach().double() for name, value in lora_of(module).items()}
        self.asked, self.steps = [], []
        for who, part in (("student", module.online.encoders), ("teacher", module.teacher.model.online.encoders)):
            for side in ("image", "text"):
                getattr(part, side).register_forward_hook(lambda *_, name=(who, side): self.asked.append(name))

    def on_train_batch_start(self, *_):
        self.asked.clear()

    def on_train_batch_end(self, _trainer, module, *_):
        self.steps.append(sorted(self.asked))
        for name, value in lora_of(module).items():
            self.expected[name] = 0.9 * self.expected[name] + 0.1 * value.detach().double()


def lora_of(module):
    return {name: value for name, value in module.named_parameters() if "lora_" in name and name.startswith("online.")}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_masked_banks(tmp_path_factory.mktemp("masked"))["views"]


@pytest.fixture(scope="module")
def whole(bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    watch = Followed()
    pretrain(bank, UMD, out, callbacks=(watch,), **HOW)
    return out, watch


def test_lora_moves_and_frozen_weights_do_not(whole):
    watch = whole[1]
    trained = {name for name, value in watch.module.named_parameters() if value.requires_grad}
    assert sum("lora_" in name for name in trained) == LORA
    assert [name for name, gradient in watch.gradients.items() if gradient is None] == []
    moved = {name for name in watch.before if not torch.equal(watch.before[name], watch.after[name])}
    assert trained - moved == set()
    assert {name for name in moved - trained if not name.startswith("teacher.")} == set()


def test_the_teacher_averages_lora_and_shares_the_frozen_weights(whole):
    watch = whole[1]
    student, teacher = watch.module.online.encoders, watch.module.teacher.model.online.encoders
    theirs = dict(teacher.named_parameters())
    for name, value in student.named_parameters():
        assert (theirs[name] is value) == ("lora_" not in name), name
        if "lora_" in name:
            expected = watch.expected[f"online.encoders.{name}"]
            torch.testing.assert_close(theirs[name].double(), expected, rtol=1e-5, atol=1e-6)
            assert not torch.equal(theirs[name], value)


def test_stored_views_are_not_read_and_each_encoder_pass_is_made_once(whole):
    watch = whole[1]
    assert watch.module.masker.source == "encoder"
    student = [("student", side) for side in ("image", "image", "text", "text")]  # whole, and masked
    assert watch.steps == [[*student, ("teacher", "image"), ("teacher", "text")]] * 6


def test_no_frozen_weight_stands_in_a_checkpoint(whole):
    out, watch = whole
    frozen = {value.data_ptr() for value in watch.module.online.encoders.parameters() if not value.requires_grad}
    names = {name for name, value in watch.module.named_parameters() if value.data_ptr() in frozen}
    assert len(names) > 50
    for path in (LAST, BEST):
        found = SafetensorsCheckpointIO().load_checkpoint(out / path)["state_dict"]
        assert names & found.keys() == set()
        encoders = [name for name in found if ".encoders." in name]
        assert len(encoders) == 2 * LORA  # of the student and of the teacher
        assert all("lora_" in name for name in encoders)


def test_a_stopped_run_resumes_exactly(bank, whole, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(bank, UMD, out, callbacks=(StopAfter(2),), **HOW)
    pretrain(bank, UMD, out, **HOW)
    assert_equal(tensors_of(out), tensors_of(whole[0]))
    for side in ("image", "text"):
        lora = [load_file(run / "adaptor" / f"{side}_lora" / "adapter_model.safetensors") for run in (out, whole[0])]
        assert_equal(*lora)
    teachers = [SafetensorsCheckpointIO().load_checkpoint(run / LAST)["state_dict"] for run in (out, whole[0])]
    assert_equal(*teachers)
    assert drop_seconds(out) == drop_seconds(whole[0])


class Mode(Callback):
    """Keeps the weights after the first step."""

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 1:
            self.found = state_of(module.teacher)


def test_the_teacher_follows_once_per_step_where_gradients_are_gathered(bank, tmp_path):
    mode, watch = Mode(), Watch()
    online = Online(text_lora=LoRA(rank=2), workers=1, accumulate=3)
    pretrain(bank, UMD, tmp_path / "run", device="cpu", online=online, callbacks=(watch, mode))
    before = {name: value for name, value in watch.before.items() if name.startswith("teacher.model.fusion.")}
    assert len(drop_seconds(tmp_path / "run")) == 2
    assert watch.module.global_step == 2  # of three batches each
    moved = [name for name in before if not torch.equal(before[name], mode.found[name.removeprefix("teacher.")])]
    assert len(moved) > 50
