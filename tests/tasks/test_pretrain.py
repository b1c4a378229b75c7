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
from adaptmed.data.splits import patient_digest
from adaptmed.errors import InputError, NonFiniteLossError, OverlapError
from adaptmed.model import Adaptor
from adaptmed.tasks.pretrain import fresh_adaptor, pairs_of, pretrain
from adaptmed.tasks.run_folder import BEST, LAST, read_metrics, read_seen
from tests.tiny_bank import write_tiny_bank

METHOD = replace(
    methods.adaptor(),
    width=16,
    heads=2,
    schedule=methods.Schedule(epochs=3, batch_size=8, learning_rate=1e-3, warmup_share=0.0),
)


class StopAfter(Callback):
    """Ends the process's training like a crash would, after a given step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("tiny") / "bank")


@pytest.fixture(scope="module")
def whole(bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(bank, METHOD, out, device="cpu", checkpoint_every=1)
    return out


def weights(out):
    return Adaptor.from_pretrained(out, load_encoders=False).fusion.state_dict()


def test_it_writes_a_whole_run_folder(whole):
    assert {path.name for path in whole.iterdir()} == {
        "adaptor", "checkpoints", "config.json", "metrics.jsonl", "patients_seen.json",
    }  # fmt: skip
    lines = read_metrics(whole)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[-1]["validate/loss"] < lines[0]["train/loss"]
    assert json.loads((whole / "config.json").read_text())["method"]["width"] == 16


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
    drop = {"seconds"}
    assert [{k: v for k, v in line.items() if k not in drop} for line in read_metrics(out)] == [
        {k: v for k, v in line.items() if k not in drop} for line in read_metrics(whole)
    ]


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


def test_test_rows_are_never_read(bank, tmp_path, monkeypatch):
    touched = set()
    read = Bank.image_tokens

    def spy(self, rows, dtype=None):
        touched.update(self.rows["split"].iloc[rows])
        return read(self, rows, dtype)

    monkeypatch.setattr(Bank, "image_tokens", spy)
    pretrain(bank, METHOD, tmp_path / "run", device="cpu")
    assert touched == {"train", "validate"}


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
        "from tests.tasks.test_pretrain import METHOD; from adaptmed.bank import Bank\n"
        "from adaptmed.tasks.pretrain import pretrain\n"
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
