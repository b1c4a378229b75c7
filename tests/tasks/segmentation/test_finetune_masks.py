"""Fine-tuning on masks: what moves, what is kept, whom it reads, what it refuses, and that it resumes exactly."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import load_file

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cli import main
from adaptmed.data.splits import patient_digest
from adaptmed.errors import BankError, InputError, OverlapError
from adaptmed.lora import LoRA
from adaptmed.runs.folder import BEST, LAST, read_metrics, read_seen
from adaptmed.runs.processes import Processes
from adaptmed.tasks.segmentation.decoder_file import load_decoder
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from tests.masked_images import HIGH, LOW, QUICK, tune, write_pictures, write_volumes
from tests.short_training import StopAfter, drop_seconds

LOOP = {"lora": LoRA(rank=2, dropout=0.1), "train_fusion": True}
PARTS = ("decoder.safetensors", "adaptor/adaptor.safetensors", "adaptor/image_lora/adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(pictures, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    tune(pictures, run, out, **LOOP)
    return out


def tensors(out):
    there = [part for part in PARTS if (out / part).exists()]
    return {f"{part}: {name}": value for part in there for name, value in load_file(out / part).items()}


def assert_same(out, whole):
    assert drop_seconds(out) == drop_seconds(whole)
    found = tensors(out)
    assert found.keys() == tensors(whole).keys()
    assert [name for name, value in tensors(whole).items() if not torch.equal(value, found[name])] == []
    assert (out / "metrics.json").read_text() == (whole / "metrics.json").read_text()


def test_it_writes_a_whole_run_folder(whole, pictures):
    assert {path.name for path in whole.iterdir()} == {
        "adaptor", "checkpoints", "config.json", "decoder.json", "decoder.safetensors", "masks", "metrics.json",
        "metrics.jsonl", "patients_seen.json",
    }  # fmt: skip
    assert {path.name for path in (whole / "masks").iterdir()} == {"masks.json", "masks.npy", "rejects.jsonl"}
    config = json.loads((whole / "config.json").read_text())
    assert (config["command"], config["task"], config["lora"]["rank"]) == ("finetune", "segmentation", 2)
    assert [line["step"] for line in read_metrics(whole)] == [2, 4, 6]
    result = json.loads((whole / "metrics.json").read_text())
    assert (result["labels"], result["train_images"], result["train_patients"]) == (["label 2", "label 5"], 12, 6)
    assert (result["test"]["images"], result["test"]["patients"], result["rejected_masks"]) == (4, 2, 0)
    assert {row["label"] for row in result["test"]["tuned"]} == {"label 2", "label 5", "macro"}
    _, facts = load_decoder(whole)
    assert facts.labels == {0: "background", LOW: "label 2", HIGH: "label 5"}
    assert (facts.settings, facts.plane, facts.taps) == (QUICK, None, 0)
    assert "test dice, tuned" in (whole / "adaptor" / "README.md").read_text()
    read = patient_digest(pictures.rows["patient"].iloc[[*pictures.subset("train"), *pictures.subset("validate")]])
    assert read_seen(whole) == set(read)


def test_a_finished_run_is_returned_as_it_is(pictures, run, whole):
    before = (whole / "decoder.safetensors").stat().st_mtime_ns
    assert tune(pictures, run, whole, **LOOP) == json.loads((whole / "metrics.json").read_text())
    assert (whole / "decoder.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fraction": 0.5}, r"fraction: 1\.0 there, 0\.5 now"),
        ({"seed": 4}, "seed: 0 there, 4 now"),
        ({"labels": {LOW: "grey", HIGH: "bright"}}, r"labels: None there, \{'2': 'grey', '5': 'bright'\} now"),
    ],
)
def test_another_configuration_is_refused(pictures, run, whole, change, words):
    with pytest.raises(InputError, match=words):
        tune(pictures, run, whole, **LOOP, **change)


class Watch(Callback):
    """Keeps what could be trained before and after, and the encoder's fingerprint at the end."""

    def on_train_start(self, _trainer, module):
        self.before = {name: value.detach().clone() for name, value in module.named_parameters()}

    def on_train_end(self, _trainer, module):
        trained = {name for name, value in module.named_parameters() if value.requires_grad}
        moved = {name for name, value in module.named_parameters() if not torch.equal(value, self.before[name])}
        self.trained, self.moved = trained, moved
        self.fingerprint = None if module.model.encoder is None else module.model.encoder.fingerprint()


TEXT_SIDE = {"text_project.weight", "text_project.bias", "text_out.weight", "text_out.bias", "log_scale"}


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
@pytest.mark.parametrize("train_fusion", [False, True])
def test_what_can_be_trained_moves_and_nothing_else(pictures, run, tmp_path, lora, train_fusion):
    watch, out = Watch(), tmp_path / "out"
    result = tune(pictures, run, out, lora=lora, train_fusion=train_fusion, callbacks=(watch,))
    assert watch.moved == watch.trained
    parts = {name.split(".")[1] for name in watch.moved}
    assert parts == {"decoder", *(["encoder"] if lora else []), *(["fusion"] if train_fusion else [])}
    assert all("lora_" in name for name in watch.moved if name.startswith("model.encoder."))
    assert watch.fingerprint in (None, pictures.info.images.fingerprint)
    before = Adaptor.from_pretrained(run, load_encoders=False).fusion.state_dict()
    after = Adaptor.from_pretrained(out, load_encoders=False).fusion.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    fusion = {name.removeprefix("model.fusion.") for name in watch.moved if name.startswith("model.fusion.")}
    assert moved == fusion
    assert not moved & (TEXT_SIDE | {"image_out.weight", "image_out.bias"})  # a decoder reads tokens, no embedding
    assert ("image_project.weight" in moved) == train_fusion
    assert result["trainable_parameters"] == sum(watch.before[name].numel() for name in watch.trained)


def test_texts_say_nothing(pictures, run, tmp_path):
    bare = Bank.open(pictures.folder)
    bare.info = replace(bare.info, texts=None)
    bare.rows["text"], bare.rows["text_index"] = "", -1
    for name, bank in (("with", pictures), ("without", bare)):
        tune(bank, run, tmp_path / name, train_fusion=True)
    assert_same(tmp_path / "without", tmp_path / "with")


def test_a_checkpoint_holds_no_pretrained_weight(whole):
    for path in (whole / LAST, whole / BEST):
        state = SafetensorsCheckpointIO().load_checkpoint(path)["state_dict"]
        assert all("lora_" in name for name in state if ".encoder." in name)
        assert {name.split(".")[1] for name in state} == {"decoder", "encoder", "fusion"}


@pytest.mark.parametrize("step", [1, 2, 5])  # two steps a round
def test_a_stopped_run_resumes_exactly(pictures, run, whole, tmp_path, step):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tune(pictures, run, out, callbacks=(StopAfter(step),), **LOOP)
    tune(pictures, run, out, **LOOP)
    assert_same(out, whole)


def test_a_stopped_run_on_volumes_resumes_exactly(volumes, run, tmp_path):
    tune(volumes, run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(volumes, run, tmp_path / "out", callbacks=(StopAfter(3),))
    tune(volumes, run, tmp_path / "out")
    assert_same(tmp_path / "out", tmp_path / "whole")


class KillAt(Callback):
    """Ends this process at once, in the backward pass of one step."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, _module):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def tune_until_killed(folder, run, out):
    """What the killed process runs."""
    torch.set_num_threads(1)
    tune(Bank.open(folder), run, out, callbacks=(KillAt(3),), **LOOP)


def test_kill_9_within_a_step(pictures, run, tmp_path):
    start = multiprocessing.get_context("spawn")
    out, threads = tmp_path / "out", torch.get_num_threads()
    process = start.Process(target=tune_until_killed, args=(pictures.folder, run, out))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (out / LAST).exists()
    assert not (out / "metrics.json").exists()
    torch.set_num_threads(1)
    for place in (out, tmp_path / "whole"):
        tune(pictures, run, place, **LOOP)
    torch.set_num_threads(threads)
    assert_same(out, tmp_path / "whole")


def test_the_best_validated_round_is_kept_else_the_last(embedded, run, tmp_path):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10))
    for number in (6, 7):  # the opposite of what is learnt, so that every round is worse than the one before
        drawn = np.asarray(Image.open(tmp_path / "data" / f"{number}-mask.png"))
        Image.fromarray(np.where(drawn == 0, HIGH, 0).astype(np.uint8)).save(tmp_path / "data" / f"{number}-mask.png")
    kept = tune(bank, run, tmp_path / "judged")["kept"]
    losses = [line["validate/loss"] for line in read_metrics(tmp_path / "judged")]
    assert kept["epoch"] == int(np.argmin(losses)) < len(losses) - 1
    assert kept["validate/loss"] == min(losses)
    best = SafetensorsCheckpointIO().load_checkpoint(tmp_path / "judged" / BEST)["state_dict"]
    for name, value in load_file(tmp_path / "judged" / "decoder.safetensors").items():
        assert torch.equal(value, best[f"model.decoder.{name}"])
    bank.rows.loc[bank.rows["split"] == "validate", "mask"] = ""
    assert tune(bank, run, tmp_path / "alone")["kept"]["epoch"] == 2
    assert "validate/loss" not in read_metrics(tmp_path / "alone")[0]


def test_without_masks_of_test_nothing_is_judged(pictures, run, tmp_path):
    untested = Bank.open(pictures.folder)
    untested.rows.loc[untested.rows["split"] == "test", "mask"] = ""
    assert tune(untested, run, tmp_path / "out")["test"] is None
    assert (tmp_path / "out" / "decoder.safetensors").is_file()


def test_test_patients_that_the_run_has_seen_are_refused_unless_allowed(pictures, run, tmp_path):
    swapped = Bank.open(pictures.folder)
    swapped.rows["split"] = swapped.rows["split"].replace({"train": "test", "test": "train"})
    with pytest.raises(OverlapError, match="test patients that no training has seen, but got 6 that were seen"):
        tune(swapped, run, tmp_path / "out")
    result = tune(swapped, run, tmp_path / "out", allow_overlap=True)  # the refusal has left it free
    assert result["test"]["patients_seen_in_training"] == 6


def test_the_fraction_counts_patients_and_one_without_a_label_is_refused(pictures, run, tmp_path, monkeypatch):
    assert tune(pictures, run, tmp_path / "half", fraction=0.5)["train_patients"] == 3
    empty = (pictures.rows["image"].iloc[pictures.subset("train")] == "0.png").to_numpy()
    monkeypatch.setattr("adaptmed.cohort.division.fraction_rows", lambda *_, **__: empty)
    words = r"`fraction`: expected a mask that is not empty, but got none among 1 of the fraction 0\.1\. Take a larger"
    with pytest.raises(InputError, match=words):
        tune(pictures, run, tmp_path / "none", fraction=0.1)


def test_a_run_that_labels_have_trained_is_tuned_on_all_of_them_only(pictures, run, whole, tmp_path):
    tune(pictures, run, tmp_path / "first", train_fusion=True)
    with pytest.raises(InputError, match="a run that no label has trained, but got one that has read labels at"):
        tune(pictures, tmp_path / "first", tmp_path / "half", fraction=0.5)
    tune(pictures, tmp_path / "first", tmp_path / "second")
    with pytest.raises(InputError, match=r"Tokens of hf:.* LoRA [0-9a-f]{64}\), which"):
        tune(pictures, whole, tmp_path / "third")


def test_several_processes_are_refused(pictures, run, tmp_path, monkeypatch):
    monkeypatch.setattr("adaptmed.tasks.finetune.join", lambda _: Processes(0, 2))
    with pytest.raises(InputError, match="`processes`: expected one, but got 2"):
        tune(pictures, run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lora_on_volumes_is_refused(volumes, run, tmp_path):
    with pytest.raises(InputError, match="`lora`: expected a bank of pictures, but got volumes"):
        tune(volumes, run, tmp_path / "out", lora=LoRA(rank=2))


@pytest.mark.parametrize("words", [("--epochs", 2), ("--accumulate", 2), ("--checkpointing",)])
def test_options_that_say_nothing_for_masks_are_refused(pictures, run, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "finetune",
                str(run),
                str(pictures.folder),
                "--out",
                str(tmp_path / "out"),
                "--task",
                "segmentation",
                *map(str, words),
            ]
        )
    assert stop.value.code == 1
    name = words[0].removeprefix("--").removeprefix("no-")
    assert f"`{name}`: expected an option that --task segmentation has" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["dpt", "unetr"])
def test_a_decoder_that_reads_taps_needs_a_bank_with_taps(embedded, run, tmp_path, kind):
    bank = embedded(write_pictures(tmp_path / "data", pictures=10), taps=0)
    with pytest.raises(InputError, match=rf"`taps`: expected at least 2 for the decoder {kind}, but got 0"):
        tune(bank, run, tmp_path / "out", settings=replace(QUICK, decoder=kind))


def test_a_u_net_on_a_transformer_is_refused(pictures, run, tmp_path):
    bank = Bank.open(pictures.folder)
    images = bank.info.images
    bank.info = replace(bank.info, images=replace(images, taps=images.taps * 3))
    with pytest.raises(
        InputError, match=r"`decoder`: expected image-concat, dpt or unetr for a transformer .* got unet"
    ):
        tune(bank, run, tmp_path / "out", settings=replace(QUICK, decoder="unet"))


def test_volumes_without_pixels_are_refused_where_the_decoder_reads_them(embedded, run, tmp_path):
    bank = embedded(write_volumes(tmp_path / "data"), pixels=False)
    with pytest.raises((BankError, InputError), match="pixels"):
        tune(bank, run, tmp_path / "out")
    tune(bank, run, tmp_path / "dpt", settings=replace(QUICK, decoder="dpt", steps=1))
