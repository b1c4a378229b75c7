"""Fine-tuning of an adaptor of images alone: labels and masks are learnt, what reads texts is refused."""

import json

import pytest

from adaptmed.bank import Bank
from adaptmed.cli import main
from adaptmed.errors import InputError
from adaptmed.lora import LoRA
from adaptmed.tasks.evaluate import evaluate
from adaptmed.tasks.finetune import finetune
from adaptmed.tasks.pairs.settings import PairChoices
from adaptmed.tasks.pairs.task import Pairs
from adaptmed.tasks.retrieval import judging
from adaptmed.tasks.segmentation.settings import MaskChoices
from adaptmed.tasks.segmentation.task import Segmentation
from adaptmed.training.trainer import RunOptions
from tests.images_alone import SIZES, save_images_alone
from tests.labelled_pictures import make_labelled_bank
from tests.masked_pictures import NAMES, TRAINING, embed_pictures, write_masked_table
from tests.short_tuning import SHORT, tune

CPU = RunOptions(device="cpu")
NO_TEXTS = "expected a run that reads images and texts, but got one of images alone. Take a run with a text encoder"


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_labelled_bank(tmp_path_factory.mktemp("pictures"), holds_texts=False)


@pytest.fixture(scope="module", params=SIZES)
def run(bank, request, tmp_path_factory):
    return save_images_alone(bank, tmp_path_factory.mktemp("runs") / "run", request.param)


def test_labels_are_learnt_and_judged_again(bank, run, tmp_path):
    result = tune(bank, run, tmp_path / "out", settings=SHORT)
    assert set(result["test"]["tuned"]["auroc"]["labels"]) == {"high", "low"}
    config = json.loads((tmp_path / "out" / "adaptor" / "adaptmed_config.json").read_text())
    assert config["text"] is None
    again = evaluate(tmp_path / "out", bank)
    assert again["test"]["tuned"]["auroc"] == result["test"]["tuned"]["auroc"]


def test_a_tuned_encoder_embeds_the_table_and_its_bank_is_studied(bank, tmp_path):
    run, out, tuned = save_images_alone(bank, tmp_path / "run"), tmp_path / "out", tmp_path / "tuned"
    tune(bank, run, out, settings=SHORT, lora=LoRA(rank=2))
    words = ("embed", bank.info.manifest, "--adaptor", out, "--out", tuned, "--device", "cpu", "--dtype", "float32")
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in (*words, "--precision", "fp32")])
    assert stop.value.code == 0
    opened = Bank.open(tuned)
    assert opened.images.lora is not None
    assert not opened.holds_texts
    judged = ("study", bank.folder, "--adaptor", run, "--tuned-bank", tuned, "--tuned-adaptor", out)
    few = ("--fractions", 1, "--seeds", 1, "--replicates", 10, "--arms", "adaptor+lora", "--no-examples")
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in (*judged, "--out", tmp_path / "study", *few)])
    assert stop.value.code == 0
    page = (tmp_path / "study" / "report.html").read_text()
    assert "LoRA in the image encoder" in page
    assert "text encoder fingerprint" not in page


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["bank", "lora"])
def test_masks_are_learnt(tmp_path, lora):
    bank = embed_pictures(write_masked_table(tmp_path / "data"), tmp_path / "bank", holds_texts=False)
    choices = MaskChoices(settings=TRAINING, lora=lora, labels=NAMES, train_fusion=True)
    run = save_images_alone(bank, tmp_path / "run")
    result = finetune(bank, run, tmp_path / "out", Segmentation(choices), CPU)
    assert {row["label"] for row in result["test"]["tuned"]} >= {"high", "low"}


@pytest.mark.parametrize("task", ["answering", "image-text-classification"])
def test_tasks_of_pairs_are_refused_before_anything_is_written(bank, run, tmp_path, task):
    with pytest.raises(InputError, match=f"{run}`: {NO_TEXTS}, or a task of images"):
        finetune(bank, run, tmp_path / "out", Pairs(PairChoices(task=task)), CPU)
    assert not (tmp_path / "out").exists()


def test_retrieval_is_refused(bank, run, monkeypatch):
    monkeypatch.setattr(judging, "_method_of", lambda _: ("pretrain", None))
    with pytest.raises(InputError, match=NO_TEXTS):
        judging.judge_retrieval(run, bank)
