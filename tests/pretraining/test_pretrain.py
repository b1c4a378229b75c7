"""Pre-training: what moves, what stops it, and that a stopped run resumed is the run that was not stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed import methods
from adaptmed.bank import Bank
from adaptmed.cohort.rows import pairs_of
from adaptmed.data.splits import patient_digest
from adaptmed.errors import InputError, OverlapError
from adaptmed.fusion.config import MAX_LOG_SCALE
from adaptmed.pretraining.job import fresh_adaptor
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import BEST, LAST, read_metrics, read_seen
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


def test_it_writes_a_whole_run_folder(whole):
    assert {path.name for path in whole.iterdir()} == {
        "adaptor", "checkpoints", "config.json", "metrics.jsonl", "patients_seen.json", "pretext.safetensors",
    }  # fmt: skip
    lines = read_metrics(whole)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[-1]["validate/loss"] < lines[0]["train/loss"]
    assert json.loads((whole / "config.json").read_text())["method"]["fusion"]["width"] == 16


def test_every_trainable_parameter_has_moved(bank, whole):
    fresh = fresh_adaptor(bank, METHOD, pairs_of(bank, "train"), seed=0).fusion
    trained = weights(whole)
    still = [name for name, p in fresh.named_parameters() if torch.equal(p, trained[name])]
    assert still == []
    torch.testing.assert_close(fresh.image_standardise.mean, trained["image_standardise.mean"])


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 11])  # epochs end at 4, 8, 12
def test_stop_and_resume_equals_an_uninterrupted_run(bank, whole, tmp_path, step):
    out = tmp_path / "run"
    try:
        pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1, callbacks=(StopAfter(step),))
    except KeyboardInterrupt:
        assert not (out / "adaptor").exists()
    pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(out)[name]), name
    assert drop_seconds(out) == drop_seconds(whole)


def test_checkpoints_hold_no_pickle(whole):
    for path in (whole / LAST, whole / BEST):
        head = path.read_bytes()[:9]
        assert int.from_bytes(head[:8], "little") < 10_000_000
        assert head[8:] == b"{"  # safetensors: length of the header, then JSON


def test_a_finished_run_is_returned_as_it_is(bank, whole):
    before = (whole / "adaptor" / "adaptor.safetensors").stat().st_mtime_ns
    pretrain(bank, METHOD, whole, device="cpu", checkpoint_every=1)
    assert (whole / "adaptor" / "adaptor.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_refused(bank, whole):
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        pretrain(bank, METHOD, whole, seed=1, device="cpu")


def test_the_seed_decides_everything(bank, whole, tmp_path):
    pretrain(bank, METHOD, tmp_path / "other", seed=1, device="cpu")
    assert not torch.equal(weights(whole)["norm.weight"], weights(tmp_path / "other")["norm.weight"])


def test_the_patients_it_has_seen_are_written_as_digests(bank, whole):
    seen = read_seen(whole)
    split = bank.rows.groupby("split")["patient"].unique()
    assert seen == set(patient_digest(sorted({*split["train"], *split["validate"]})))
    assert not seen & set(patient_digest(sorted(split["test"])))
    assert "p1" not in (whole / "patients_seen.json").read_text().split('"')


def test_a_patient_on_two_sides_is_refused(bank, tmp_path):
    leaking = Bank.open(bank.folder)
    leaking.rows.loc[leaking.rows["split"] == "test", "patient"] = "p2"
    with pytest.raises(OverlapError, match="got 1 such patients"):
        pretrain(leaking, METHOD, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_patient_in_train_and_validate_is_refused(bank, tmp_path):
    leaking = Bank.open(bank.folder)
    leaking.rows.loc[leaking.rows["split"] == "validate", "patient"] = "p2"
    with pytest.raises(OverlapError, match="no patient in two of train, validate and test, but got 1"):
        pretrain(leaking, METHOD, tmp_path / "run", device="cpu")


def test_test_rows_are_never_read(bank, tmp_path, monkeypatch):
    touched = set()
    read = Bank.image_tokens

    def spy(self, rows, dtype=None):
        touched.update(self.rows["split"].iloc[rows])
        return read(self, rows, dtype)

    monkeypatch.setattr(Bank, "image_tokens", spy)
    pretrain(bank, METHOD, tmp_path / "run", device="cpu")
    assert touched == {"train", "validate"}


def test_metrics_are_those_of_the_saved_epoch_when_nothing_is_validated(bank, tmp_path):
    alone = Bank.open(bank.folder)
    alone.rows.loc[alone.rows["split"] == "validate", "split"] = "test"
    pretrain(alone, METHOD, tmp_path / "run", device="cpu")
    saved = json.loads((tmp_path / "run" / "adaptor" / "metrics.json").read_text())
    assert saved["epoch"] == 2
    assert saved["train/loss"] == read_metrics(tmp_path / "run")[-1]["train/loss"]


def test_a_temperature_at_its_limit_can_come_back(bank, tmp_path):
    class Overshoot(Callback):
        def on_train_start(self, _, pl_module):
            pl_module.fusion.log_scale.data.fill_(5.0)

    adaptor = pretrain(bank, METHOD, tmp_path / "run", device="cpu", callbacks=(Overshoot(),))
    assert adaptor.fusion.log_scale < MAX_LOG_SCALE
    adaptor.fusion.train().scale().backward()
    assert adaptor.fusion.log_scale.grad > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "`epochs`: expected at least 1, but got 0"),
        ({"batch_size": 1}, "`batch_size`: expected at least 2, but got 1"),
        ({"learning_rate": -1.0}, "`learning_rate`: expected above 0, but got -1"),
        ({"learning_rate": float("nan")}, "`learning_rate`"),
        ({"weight_decay": -0.1}, "`weight_decay`"),
        ({"warmup_share": 2.0}, r"`warmup_share`: expected a share in \[0, 1\]"),
    ],
)
def test_a_schedule_that_trains_nothing_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        methods.Schedule(**wrong)


def test_too_few_pairs_are_refused(bank, tmp_path):
    empty = Bank.open(bank.folder)
    empty.rows["split"] = "test"
    with pytest.raises(InputError, match="at least 2 image-text pairs in the split train, but got 0"):
        pretrain(empty, METHOD, tmp_path / "run", device="cpu")


def test_training_learns_what_pairs_share(tmp_path):
    bank = write_tiny_bank(tmp_path / "bank", pairs=300)
    schedule = replace(METHOD.schedule, epochs=20, batch_size=32, learning_rate=3e-3)
    pretrain(bank, replace(METHOD, schedule=schedule), tmp_path / "run", device="cpu")
    lines = read_metrics(tmp_path / "run")
    assert lines[-1]["validate/contrastive"] < lines[0]["validate/contrastive"] - 0.3
    assert min(line["validate/matching"] for line in lines) < 0.68  # log 2 = 0.693 is chance


def test_released_arrangement_trains(bank, tmp_path):
    method = replace(methods.adaptor(faithful=True), schedule=METHOD.schedule)
    adaptor = pretrain(bank, method, tmp_path / "run", device="cpu")
    assert "validate/matching" not in read_metrics(tmp_path / "run")[0]
    assert sum(p.numel() for p in adaptor.fusion.parameters()) == 11_027_969 + 768 * (12 + 10)


def test_kill_9_and_resume_equals_an_uninterrupted_run(bank, tmp_path):
    method = replace(METHOD, schedule=replace(METHOD.schedule, epochs=12))
    out = tmp_path / "killed"
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from tests.short_training import METHOD; from adaptmed.bank import Bank\n"
        "from adaptmed.pretraining.pretrain import pretrain\n"
        "method = replace(METHOD, schedule=replace(METHOD.schedule, epochs=12))\n"
        f"pretrain(Bank.open({str(bank.folder)!r}), method, Path({str(out)!r}), device='cpu', checkpoint_every=2)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=root, start_new_session=True)
    while process.poll() is None and not (out / LAST).exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (out / LAST).exists()
    pretrain(bank, method, out, device="cpu", checkpoint_every=2)
    pretrain(bank, method, tmp_path / "whole", device="cpu", checkpoint_every=2)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(out)[name]), name
