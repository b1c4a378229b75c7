"""What a9ebcfc had stopped goes on to the same tensors, and every step of a training has the same losses."""

import pytest
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from adaptmed.errors import InputError
from tests.written_at_a9ebcfc import calls
from tests.written_at_a9ebcfc.held import PARTS, assert_same, read

STOPPED = ("adaptor", "adaptor-ema", "m3ae", "umd", "calibrated", "labels")
FRESH = ("adaptor", "adaptor-ema", "m3ae", "umd", "umd-faithful", "lora", "calibrated")


class Watch(Callback):
    """Keeps the step a training starts at, and what every step returns."""

    def __init__(self):
        self.first, self.steps = None, {}

    def on_train_batch_start(self, trainer, *_):
        self.first = trainer.global_step if self.first is None else self.first

    def on_train_batch_end(self, _trainer, _module, outputs, *_):
        for key, value in outputs.items():
            self.steps.setdefault(key, []).append(float(value))


def trained(run):
    """Read the tensors of a finished run, named by file and tensor."""
    there = [part for part in PARTS if (run / part).exists()]
    return {f"{part}:{key}": value for part in there for key, value in load_file(run / part).items()}


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_goes_on_to_the_same_tensors(here, name):
    whole = load_file(here / "expected" / "trained.safetensors")
    watch = Watch()
    calls.train(here, name, here / "stopped" / name, watch)
    assert watch.first == (3 if name == "labels" else 4)  # its last checkpoint is that of its first epoch
    expected = {key.removeprefix(f"{name}/"): value for key, value in whole.items() if key.startswith(f"{name}/")}
    assert expected
    assert_same(here, trained(here / "stopped" / name), expected)


@pytest.mark.parametrize(
    ("name", "what"),
    [("answers", r"dropout: None there, 0\.6 now"), ("masks", r"settings: .* there, .*'augment': True.* now")],
)
def test_a_stopped_run_of_other_defaults_says_why_it_cannot_go_on(here, name, what):
    with pytest.raises(InputError, match=f"the same configuration, to resume, but got {what}"):
        calls.train(here, name, here / "stopped" / name, Watch())


@pytest.mark.parametrize("name", FRESH)
def test_every_step_has_the_same_losses(here, tmp_path, name):
    watch = Watch()
    calls.train(here, name, tmp_path / name, watch)
    assert_same(here, watch.steps, read(here / "expected" / "numbers.json")["steps"][name])
