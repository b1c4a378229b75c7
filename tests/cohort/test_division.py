"""Whom a fine-tuning reads and whom it is judged by: fractions, patients that were seen, and what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed import Manifest
from adaptmed.adaptor.features import image_features
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort import division
from adaptmed.cohort.division import Share, divide_labelled
from adaptmed.data.splits import patient_digest
from adaptmed.embedding.embed import embed
from adaptmed.errors import InputError, OverlapError
from adaptmed.lora import LoRA
from adaptmed.runs.folder import read_seen
from adaptmed.runs.processes import Processes
from adaptmed.study.classification.rows import study_rows
from adaptmed.study.statistics import Cell, records
from adaptmed.tasks.classification.head_file import load_label_head
from tests.labelled_pictures import EXACT, make_labelled_bank, pretrain_shortly
from tests.short_tuning import SHORT, TUNED, same, tune


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_labelled_bank(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(bank, tmp_path_factory):
    return pretrain_shortly(bank, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def whole(bank, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    tune(bank, run, out, **TUNED)
    return out


def other_labels(bank, rows):
    """A copy of the bank in which the labels of some rows are the opposite."""
    changed = Bank.open(bank.folder)
    for name in bank.info.labels:
        changed.rows.loc[rows, name] = 1 - changed.rows.loc[rows, name]
    return changed


def test_the_saved_head_and_adaptor_give_the_judged_predictions(bank, run, tmp_path):
    result = tune(bank, run, tmp_path / "out", **TUNED)
    adaptor = Adaptor.from_pretrained(tmp_path / "out")
    head, facts = load_label_head(tmp_path / "out")
    rows = study_rows(bank)
    names = [bank.folder.parent / name for name in bank.rows["image"].iloc[rows.test]]
    with torch.no_grad():
        tokens = adaptor.encoders.image_tokens(names, torch.device("cpu"))
        said = head(image_features(adaptor.fusion, tokens, facts.variant)).sigmoid().double().numpy()
    cell = Cell("tuned", 1.0, 0, said, {}, 0, {}, 0, 0.0)
    found = {(row["metric"], row["label"]): row for row in records([cell], rows.truth)}
    judged = result["test"]["tuned"]
    for name, entry in {**judged["auroc"]["labels"], "macro": judged["auroc"]["macro"]}.items():
        assert entry == {key: found["auroc", name][key] for key in entry}
    assert judged["ece"] == pytest.approx(found["ece", "macro"]["value"], abs=1e-5)


def test_the_fraction_is_that_of_a_study_and_labels_outside_it_decide_nothing(bank, run, tmp_path, monkeypatch):
    chosen = divide_labelled(bank, Share(fraction=0.5, seed=3), before=())
    rows = study_rows(bank)
    assert np.array_equal(chosen.train, rows.train[rows.fraction(0.5, 3)])
    tune(bank, run, tmp_path / "one", fraction=0.5, seed=3, **TUNED)
    inside = np.isin(rows.train, chosen.train)
    monkeypatch.setattr(division, "fraction_rows", lambda *_, **__: inside)
    changed = other_labels(bank, np.concatenate([rows.train[~inside], rows.test]))
    result = tune(changed, run, tmp_path / "other", fraction=0.5, seed=3, **TUNED)
    assert same(tmp_path / "one", tmp_path / "other")
    assert result["train_images"] == inside.sum() < len(rows.train)
    assert result["test"] != json.loads((tmp_path / "one" / "metrics.json").read_text())["test"]


def test_the_patients_it_has_seen_are_those_it_read_and_those_of_the_run(bank, run, tmp_path):
    half = replace(SHORT, epochs=1)
    tune(bank, run, tmp_path / "out", fraction=0.5, settings=half)
    rows = divide_labelled(bank, Share(fraction=0.5), before=())
    read = set(patient_digest(bank.rows["patient"].iloc[[*rows.train, *rows.validate]]))
    assert read < read_seen(run)
    assert read_seen(tmp_path / "out") == read_seen(run)
    shutil.copytree(run / "adaptor", tmp_path / "alone")
    result = tune(bank, tmp_path / "alone", tmp_path / "unknown", fraction=0.5, settings=half)
    assert read_seen(tmp_path / "unknown") == read
    assert not result["patients_of_pretraining_known"]


def swapped(bank):
    """The splits train and test exchanged."""
    other = Bank.open(bank.folder)
    other.rows["split"] = other.rows["split"].replace({"train": "test", "test": "train"})
    return other


def test_test_patients_that_the_run_has_seen_are_refused_unless_allowed(bank, run, tmp_path):
    with pytest.raises(OverlapError, match="test patients that no training has seen, but got 18 that were seen"):
        tune(swapped(bank), run, tmp_path / "out", settings=SHORT)
    assert not (tmp_path / "out").exists()
    result = tune(swapped(bank), run, tmp_path / "out", settings=SHORT, allow_overlap=True)
    assert result["test"]["patients_seen_in_training"] == 18
    card = (tmp_path / "out" / "adaptor" / "README.md").read_text()
    assert "| test patients seen in training (the numbers are too good) | 18 |" in card


def test_a_patient_in_train_and_validate_is_refused(bank, run, tmp_path):
    leaking = Bank.open(bank.folder)
    leaking.rows.loc[leaking.rows["split"] == "validate", "patient"] = leaking.rows["patient"].iloc[0]
    with pytest.raises(OverlapError, match="no patient in both train and validate, but got 1 such"):
        tune(leaking, run, tmp_path / "out", settings=SHORT)


def test_lora_beside_lora_is_refused_and_a_tuned_bank_is_tuned_from(bank, whole, tmp_path):
    with pytest.raises(InputError, match=r"Tokens of hf:.* LoRA [0-9a-f]{64}\), which .* but got Tokens of hf:"):
        tune(bank, whole, tmp_path / "out", settings=SHORT)
    encoders = Adaptor.from_pretrained(whole).encoders
    table = Manifest.read(bank.info.manifest)
    tuned = embed(table, encoders.image, encoders.text, tmp_path / "bank", options=EXACT)
    with pytest.raises(InputError, match=r"an image encoder without LoRA, but got LoRA inside it\. Leave --lora out"):
        tune(tuned, whole, tmp_path / "out", settings=SHORT, lora=LoRA())
    tune(tuned, whole, tmp_path / "out", settings=SHORT)
    both = (out / "adaptor" / "image_lora" / "adapter_model.safetensors" for out in (whole, tmp_path / "out"))
    assert len({path.read_bytes() for path in both}) == 1
    Adaptor.from_pretrained(tmp_path / "out")


def test_a_bank_without_images_is_refused(bank, run, tmp_path):
    bare = Bank.open(bank.folder)
    bare.info = replace(bare.info, images=None)
    with pytest.raises(InputError, match=r"expected Tokens of hf:.*, but got none\."):
        tune(bare, run, tmp_path / "out")


def test_texts_are_not_needed(bank, run, tmp_path):
    alone = Bank.open(bank.folder)
    alone.info = replace(alone.info, texts=None)
    tune(alone, run, tmp_path / "out", settings=replace(SHORT, epochs=1))
    assert Adaptor.from_pretrained(tmp_path / "out").encoders.text is not None


def test_a_run_that_labels_have_trained_is_tuned_on_all_of_them_only(bank, run, tmp_path):
    short = replace(SHORT, epochs=1)
    tune(bank, run, tmp_path / "first", settings=short)
    with pytest.raises(InputError, match="a run that no label has trained, but got one that has read labels at"):
        tune(bank, tmp_path / "first", tmp_path / "half", settings=short, fraction=0.5)
    tune(bank, tmp_path / "first", tmp_path / "second", settings=short)


def test_a_fraction_that_teaches_nothing_is_refused_before_anything_is_written(bank, run, tmp_path):
    flat = Bank.open(bank.folder)
    flat.rows["high"], flat.rows["low"] = 0.0, np.nan
    with pytest.raises(InputError, match="a label with a positive and a negative, or two classes, but got none in"):
        tune(flat, run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(bank, run, tmp_path, monkeypatch):
    monkeypatch.setattr("adaptmed.tasks.finetune.join", lambda _: Processes(0, 2))
    with pytest.raises(InputError, match="`processes`: expected one, but got 2"):
        tune(bank, run, tmp_path / "out")


def test_without_labelled_test_images_nothing_is_judged(bank, run, tmp_path):
    untested = Bank.open(bank.folder)
    untested.rows.loc[untested.rows["split"] == "test", list(bank.info.labels)] = np.nan
    assert tune(untested, run, tmp_path / "out", settings=SHORT)["test"] is None
    assert (tmp_path / "out" / "head.safetensors").is_file()


def test_classes_are_learnt_too_and_one_that_is_missing_in_the_fraction_is_left_out(bank, run, tmp_path):
    several = Bank.open(bank.folder)
    rows = several.rows
    rows["class"] = rows["high"].fillna(0).astype(int)
    rows.loc[(rows["split"] != "train") & (rows.index % 5 == 0), "class"] = 2
    rows.loc[rows.index % 7 == 0, "class"] = -1
    several.info = replace(several.info, class_column="class", classes=("none", "square", "unheard"))
    result = tune(several, run, tmp_path / "out", settings=SHORT)["test"]["tuned"]
    assert load_label_head(tmp_path / "out")[1].names == ("none", "square")
    assert result["auroc"]["labels"]["unheard"]["reason"] == "no row of this class in the fraction"
    defined = [entry["value"] for entry in result["auroc"]["labels"].values() if entry["value"] is not None]
    assert result["auroc"]["macro"]["value"] == pytest.approx(np.mean(defined))
    assert len(defined) == 2
    assert 0 <= result["ece"] <= 1
