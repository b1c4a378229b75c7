"""Two processes equal one on pairs: losses, gradients, coordination; replicas stay bit-equal with noise on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptmed.bank import Bank
from adaptmed.errors import InputError
from adaptmed.runs.processes import Processes
from adaptmed.tasks import finetune
from tests.online_bank import write_online_bank
from tests.short_training import drop_seconds
from tests.tasks.pairs.asked import save_adaptor, tune, write_asked_bank
from tests.tasks.pairs.worker import RUNS, STILL, record

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    banks = {"bank": write_asked_bank(folder / "bank", images=18, blank=3)}
    banks["classes"] = write_asked_bank(folder / "classes", images=18, classes=True)
    (folder / "online-files").mkdir()
    banks["online"] = write_online_bank(folder / "online-files")
    banks["online"].folder.rename(folder / "online")
    for name in banks:
        save_adaptor(Bank.open(folder / name), folder / f"{name}-run", dropout=0.0)
    return folder


@pytest.fixture(scope="module")
def two(data):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.tasks.pairs.worker", str(data), *RUNS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return data


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for scenario in RUNS:
        (folder / scenario).mkdir()
        record(folder / scenario, data, scenario)
    return folder


def found_by(folder, scenario, rank=0):
    return load_file(folder / scenario / f"found-{rank}.safetensors")


@pytest.mark.parametrize("scenario", RUNS)
def test_losses_and_gradients_of_two_processes_are_those_of_one(one, two, scenario):
    alone, together = found_by(one, scenario), found_by(two, scenario)
    assert alone.keys() == together.keys()
    assert {name.split()[0] for name in alone} == {"loss", "gradient", "weight"}
    for name, value in alone.items():
        kind, step, *_ = name.split()
        if kind == "loss" and scenario != "moving":
            assert together[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-6), name
        elif kind == "gradient" and (scenario != "moving" or step == "0"):
            largest = max(other.abs().max() for key, other in alone.items() if key.startswith(f"gradient {step} "))
            rounding = 4e-6 if scenario == "lora" else 1e-6  # encoders sum over pixels in blocks of another size
            assert (together[name] - value).abs().max() <= min(1e-6, rounding * largest), name


@pytest.mark.parametrize("scenario", RUNS)
def test_replicas_are_bit_equal(two, scenario):
    first, second = (found_by(two, scenario, rank) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("scenario", ["still", "lora", "moving"])
def test_one_log_of_coordination_is_written_and_is_that_of_one_process(one, two, scenario):
    alone, together = (
        [json.loads(line) for line in (folder / scenario / "run" / "coordination.jsonl").read_text().splitlines()]
        for folder in (one, two)
    )
    assert [line["step"] for line in together] == list(range(1, len(alone) + 1))
    for left, right in zip(alone, together, strict=True):
        assert right == pytest.approx(left, rel=1e-6 if scenario != "moving" else 1e-2)


def test_two_processes_write_the_result_of_one(one, two):
    for scenario in RUNS:
        alone, together = (
            json.loads((folder / scenario / "run" / "metrics.json").read_text()) for folder in (one, two)
        )
        assert together.keys() == alone.keys()
        assert together["test"].keys() == alone["test"].keys()
        if scenario != "moving":
            assert together["test"] == alone["test"]
            for left, right in zip(*(drop_seconds(f / scenario / "run") for f in (one, two)), strict=True):
                assert right == pytest.approx(left, rel=1e-5)


def test_more_processes_than_pairs_in_a_batch_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "join", lambda _: Processes(0, 12))
    with pytest.raises(InputError, match=r"a pair in every batch for each of the 12 processes, but got \d"):
        tune(Bank.open(data / "bank"), data / "bank-run", tmp_path / "out", settings=STILL)
