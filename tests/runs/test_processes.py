"""Two processes equal one: gathered values, losses, gradients, banks; and what happens when one of them dies."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptmed.bank import Bank
from adaptmed.errors import InputError, LostProcessError
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.processes import Processes, together
from tests.online_bank import write_online_bank
from tests.runs.worker import PLAIN, SCENARIOS, embed_tiny
from tests.short_training import drop_seconds, weights
from tests.tiny_bank import write_tiny_bank
from tests.tiny_encoders import PatchEncoder, make_manifest
from tests.volume_files import make_volumes

ROOT = Path(__file__).parents[2]
TRAINED = ("still", "clipped", "lora", "moving")


def start_two(folder, *scenarios):
    """Run scenarios under torchrun with two processes and gloo."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.runs.worker", str(folder), *scenarios]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tiny_bank(folder / "bank", pairs=57)
    write_tiny_bank(folder / "bank-55", pairs=55)
    (folder / "online").mkdir()
    write_online_bank(folder / "online")
    make_manifest(folder / "pictures")
    make_manifest(folder / "volumes", make_volumes(folder / "volumes"))
    return folder


@pytest.fixture(scope="module")
def two(data):
    found = start_two(data, "exchange", *TRAINED, "mixed", "embed", "embed-volumes", "embed-masked")
    assert found.returncode == 0, found.stderr[-4000:]
    return data


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for scenario in ("exchange", *TRAINED, "mixed"):
        (folder / scenario).mkdir()
        SCENARIOS[scenario](folder / scenario, data)
    return folder


def found_by(folder, scenario, rank=0):
    return load_file(folder / scenario / f"found-{rank}.safetensors")


def test_gathered_values_fetched_tokens_and_gradients(one, two):
    whole = found_by(one, "exchange")
    parts = [found_by(two, "exchange", rank) for rank in (0, 1)]
    for name, value in whole.items():
        if name.endswith("gradient"):
            together = torch.empty_like(value)
            together[::2], together[1::2] = parts[0][name], parts[1][name]
            torch.testing.assert_close(together, value)
        else:
            for part in parts:
                torch.testing.assert_close(part[name], value)


@pytest.mark.parametrize("scenario", TRAINED)
def test_losses_and_gradients_of_two_processes_are_those_of_one(one, two, scenario):
    alone, together = found_by(one, scenario), found_by(two, scenario)
    assert alone.keys() == together.keys()
    assert {name.split()[0] for name in alone} == {"loss", "gradient", "weight"}
    for name, value in alone.items():
        kind, step, *_ = name.split()
        if kind == "loss":
            assert together[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-6), name
        elif kind == "gradient" and scenario != "moving":  # after the first update rounding has gone its own way
            largest = max(other.abs().max() for key, other in alone.items() if key.startswith(f"gradient {step} "))
            assert (together[name] - value).abs().max() <= 1e-6 * largest, name


def test_mixed_precision_on_float16_tokens_is_shared_too(one, two):
    alone, together = found_by(one, "mixed"), found_by(two, "mixed")
    losses = {name for name in alone if name.startswith("loss")}
    assert {name for name in together if name.startswith("loss")} == losses
    for name in losses:
        assert together[name].item() == pytest.approx(alone[name].item(), rel=2e-2, abs=1e-3), name


@pytest.mark.parametrize("scenario", TRAINED)
def test_replicas_are_bit_equal(two, scenario):
    first, second = (found_by(two, scenario, rank) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_processes_write_the_run_of_one(one, two):
    for scenario in TRAINED:
        alone, together = (drop_seconds(folder / scenario / "run") for folder in (one, two))
        assert len(alone) == len(together)
        for left, right in zip(alone, together, strict=True):
            assert right == pytest.approx(left, rel=1e-5)
    for name, value in weights(one / "moving" / "run").items():
        if not name.endswith("key_value.bias"):  # no loss depends on a key's bias: its gradient is rounding alone
            torch.testing.assert_close(weights(two / "moving" / "run")[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scenario", ["embed", "embed-volumes", "embed-masked"])
def test_two_processes_write_the_bank_of_one(data, two, tmp_path, scenario):
    SCENARIOS[scenario](tmp_path, data)
    alone = {path.name: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    together = {path.name: path.read_bytes() for path in (two / scenario / "b").rglob("*") if path.is_file()}
    assert together == alone
    assert len(alone) > 7


def test_a_process_that_dies_ends_the_others_with_its_reason_and_the_run_goes_on(data, one, two):
    ended = start_two(data, "dies")
    assert ended.returncode != 0
    assert "the disk of this process is full" in ended.stderr
    out = data / "dies" / "run"
    assert (out / "checkpoints" / "last.safetensors").exists()
    assert not (out / "adaptor").exists()
    shutil.copytree(data / "dies", data / "goes-on")
    again = start_two(data, "goes-on")
    assert again.returncode == 0, again.stderr[-4000:]
    uninterrupted = weights(two / "moving" / "run")
    assert all(torch.equal(value, uninterrupted[name]) for name, value in weights(data / "goes-on" / "run").items())
    pretrain(Bank.open(data / "bank"), PLAIN, out, device="cpu", checkpoint_every=1)
    for left, right in zip(drop_seconds(one / "moving" / "run"), drop_seconds(out), strict=True):
        assert right == pytest.approx(left, rel=1e-5)


def test_a_process_that_dies_leaves_a_bank_that_goes_on(data, tmp_path):
    ended = start_two(data, "embed-dies")
    assert ended.returncode != 0
    assert "the device of this process is gone" in ended.stderr
    out = data / "embed-dies"
    assert not (out / "b" / "bank.json").exists()
    embed_tiny(out, data, PatchEncoder())
    embed_tiny(tmp_path, data, PatchEncoder())
    assert Bank.open(out / "b").info == Bank.open(tmp_path / "b").info


def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(InputError, match=r"multiple of the 3 processes, but got 256. Pass 255"):
        Processes(0, 3).shared_batch(256, 1000)
    with pytest.raises(InputError, match=r"a training pair for each of the 4 processes, but got 3. Start fewer"):
        Processes(0, 4).shared_batch(256, 3)
    assert Processes(0, 4).shared_batch(256, 1000) == 256
    assert Processes(0, 4).shared_batch(256, 33) == 33


def test_only_a_lost_process_is_called_one():
    two = Processes(0, 2)
    with pytest.raises(LostProcessError, match=r"process 0 of 2.*Its own message"), together(two):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3")
    with pytest.raises(RuntimeError, match="shape"), together(two):
        raise RuntimeError("a shape does not fit")
    with pytest.raises(RuntimeError, match="gloo"), together(Processes()):
        raise RuntimeError("gloo")
