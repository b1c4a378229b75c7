"""Two processes equal one in masked pre-training: hidden words, hidden patches, and the teacher's features."""

import pytest
import torch

from adaptmed.methods import changed
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import LAST
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from tests.masked_bank import UMD, assert_equal, copy_with_rows, tensors_of, write_masked_banks
from tests.runs.test_processes import found_by, start_two
from tests.runs.worker import SCENARIOS
from tests.short_training import drop_seconds

STILL = ("umd", "umd-uneven", "umd-one", "umd-faithful", "umd-lora", "m3ae", "calibrate")
EVERY = (*STILL, "umd-moving")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "masked").mkdir()
    splits = ["train" if number < 25 else "validate" if number < 32 else "test" for number in range(40)]
    for name, bank in write_masked_banks(folder / "masked").items():  # a last batch of one leaves a process none
        uneven = copy_with_rows(bank, folder / "masked" / f"uneven-{name}", {"split": splits})
    pretrain(uneven, changed(UMD, {"fusion": {"dropout": 0.0}}), folder / "masked" / "still", device="cpu")
    return folder


@pytest.fixture(scope="module")
def two(data):
    found = start_two(data, *EVERY)
    assert found.returncode == 0, found.stderr[-4000:]
    return data


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for scenario in EVERY:
        (folder / scenario).mkdir()
        SCENARIOS[scenario](folder / scenario, data)
    return folder


@pytest.mark.parametrize("scenario", STILL)
def test_losses_and_gradients_of_two_processes_are_those_of_one(one, two, scenario):
    alone, together = found_by(one, scenario), found_by(two, scenario)
    assert alone.keys() == together.keys()
    losses = {name.split()[-1] for name in alone if name.startswith("loss")}
    features = set() if scenario == "m3ae" else {"text_features", "image_features"}
    assert losses >= {"loss", "words", "patches", "word_accuracy", *features}
    assert ("matching" in losses) == (scenario != "calibrate")
    for name, value in alone.items():
        kind, step, *_ = name.split()
        if kind == "loss":
            assert together[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
        elif kind == "gradient":
            largest = max(other.abs().max() for key, other in alone.items() if key.startswith(f"gradient {step} "))
            assert (together[name] - value).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("scenario", EVERY)
def test_replicas_are_bit_equal(two, scenario):
    assert_equal(*(found_by(two, scenario, rank) for rank in (1, 0)))


def test_two_processes_write_the_run_of_one_with_its_teacher(one, two):
    runs = [folder / "umd-moving" / "run" for folder in (one, two)]
    for left, right in zip(*map(drop_seconds, runs), strict=True):
        assert right == pytest.approx(left, rel=1e-3)
    teachers = [SafetensorsCheckpointIO().load_checkpoint(run / LAST)["state_dict"] for run in runs]
    for alone, together in (map(tensors_of, runs), teachers):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            if not name.endswith("key_value.bias"):  # no loss depends on a key's bias: its gradient is rounding alone
                torch.testing.assert_close(together[name], value, rtol=1e-2, atol=1e-3)
