"""An image encoder alone: trained by a term that reads images only, stopped and resumed, saved, loaded and studied."""

from dataclasses import replace

import pytest
import torch

from adaptmed import Manifest, load_image_encoder, methods
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.embedding.embed import embed
from adaptmed.errors import InputError
from adaptmed.methods import changed
from adaptmed.pretraining.calibrate import calibrate
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import read_metrics
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import study
from adaptmed.tasks.classification.task import Classification
from adaptmed.tasks.finetune import finetune
from adaptmed.training.settings import FinetuneSettings
from tests.masked_bank import M3AE, OPTIONS, SCHEDULE, Watch, assert_equal, tensors_of, write_masked_banks
from tests.short_training import StopAfter, drop_seconds

SETTINGS = StudySettings(fractions=(1.0,), seeds=1, replicates=50, precision="fp32")
LEFT_OUT = {name: {"weight": 0.0} for name in ("matching", "words")}
IMAGES = changed(M3AE, {**LEFT_OUT, "patches": {"beside": "none", "layer": None}})
METHODS = {"images": IMAGES, "early": changed(IMAGES, {"patches": {"layer": 1}})}


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    """The pairs, with and without masked views, and the same images embedded without any text encoder."""
    folder = tmp_path_factory.mktemp("masked")
    banks = write_masked_banks(folder)
    image = load_image_encoder(f"hf:{folder / 'vit'}")
    options = replace(OPTIONS, masked_views=2)
    return banks | {"alone": embed(Manifest.read(folder / "m.csv"), image, None, folder / "alone", options=options)}


@pytest.fixture(scope="module")
def run(banks, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    pretrain(banks["alone"], IMAGES, out, device="cpu", checkpoint_every=1)
    return out


@pytest.mark.parametrize("name", METHODS)
def test_all_that_trains_moves_and_there_is_no_text_part(banks, tmp_path, name):
    watch = Watch()
    pretrain(banks["plain"], METHODS[name], tmp_path / "run", device="cpu", callbacks=(watch,))
    trained = {key for key, value in watch.module.named_parameters() if value.requires_grad}
    assert [key for key, gradient in watch.gradients.items() if gradient is None or not gradient.any()] == []
    assert {key for key in trained if torch.equal(watch.before[key], watch.after[key])} == set()
    fusion = [key for key in watch.before if key.startswith("fusion.")]
    assert not any(part in key for key in fusion for part in ("text", "pool", "cross"))
    frozen = {key.split(".")[2] for key in watch.before if key.startswith("fusion.image_layers.")} - {
        key.split(".")[2] for key in trained if key.startswith("fusion.image_layers.")
    }
    assert frozen == (set() if name == "images" else {"1", "2"})  # layers behind the one that is read


def test_texts_of_a_bank_that_no_term_reads_change_nothing(banks, run, tmp_path):
    pretrain(banks["views"], IMAGES, tmp_path / "run", device="cpu")
    assert_equal(tensors_of(tmp_path / "run"), tensors_of(run))
    assert drop_seconds(tmp_path / "run") == drop_seconds(run)


def test_it_learns_and_a_stopped_run_resumes_exactly(banks, run, tmp_path):
    lines = read_metrics(run)
    assert lines[-1]["validate/patches"] < lines[0]["validate/patches"]
    with pytest.raises(KeyboardInterrupt):
        pretrain(banks["alone"], IMAGES, tmp_path / "run", device="cpu", checkpoint_every=1, callbacks=(StopAfter(2),))
    pretrain(banks["alone"], IMAGES, tmp_path / "run", device="cpu", checkpoint_every=1)
    assert_equal(tensors_of(tmp_path / "run"), tensors_of(run))


def test_it_is_saved_loaded_calibrated_tuned_and_studied(banks, run, tmp_path):
    bank = banks["alone"]
    adaptor = Adaptor.from_pretrained(run)
    picture = next(bank.folder.parent.glob("*.png"))
    assert adaptor.embed_images([picture]).shape == (1, 16)
    with pytest.raises(InputError, match="text"):
        adaptor.embed_texts(["no effusion"])
    calibrate(bank, run, tmp_path / "calibrated", schedule=SCHEDULE, device="cpu")
    results = study([bank], [run], tmp_path / "study", settings=SETTINGS)
    assert {"frozen", "adaptor", "adaptor-untrained"} <= {record["arm"] for record in results["records"]}
    tuned = Classification(settings=FinetuneSettings(epochs=1, precision="fp32"))
    assert finetune(bank, run, tmp_path / "tuned", tuned)["test"]["tuned"]


def test_a_term_that_reads_texts_refuses_a_bank_without_them(banks, tmp_path):
    message = "texts, which matching, words, patches of the method m3ae read, but got images alone. Embed with --text-e"
    with pytest.raises(InputError, match=message):
        pretrain(banks["alone"], M3AE, tmp_path / "run", device="cpu")
    beside = changed(IMAGES, {"patches": {"beside": "whole"}})
    with pytest.raises(InputError, match="texts, which patches of the method m3ae read"):
        pretrain(banks["alone"], beside, tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="texts, which contrastive of the method adaptor read"):
        pretrain(banks["alone"], methods.adaptor(faithful=True), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_too_few_images_are_refused(banks, tmp_path):
    empty = Bank.open(banks["alone"].folder)
    empty.rows["split"] = "test"
    with pytest.raises(InputError, match="at least 2 images in the split train, but got 0"):
        pretrain(empty, IMAGES, tmp_path / "run", device="cpu")
