"""A study of labels without an adaptor: its arms, what they cost, what is refused, and the same arms beside one."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.bank import Bank
from adaptmed.errors import InputError
from adaptmed.study.classification import again, lora_tuned
from adaptmed.study.classification.settings import ARMS, NEED_ADAPTOR, WITHOUT_ADAPTOR, StudySettings
from adaptmed.study.classification.study import study
from tests.images_alone import save_images_alone
from tests.labelled_pictures import make_labelled_bank
from tests.tiny_bank import write_tiny_bank

SETTINGS = StudySettings(fractions=(0.5, 1.0), seeds=1, replicates=20, precision="fp32")
FEW = replace(SETTINGS, fractions=(1.0,))
SHORT = {name: replace(each, epochs=1) for name, each in again.SETTINGS.items()}
SHORT["lora-tuned"] = replace(SHORT["lora-tuned"], least_steps=2, most_steps=2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Tune for two steps at most."""
    monkeypatch.setattr(again, "SETTINGS", SHORT)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_labelled_bank(tmp_path_factory.mktemp("pictures"), holds_texts=False)


@pytest.fixture(scope="module")
def made(bank, tmp_path_factory):
    patch, out, said = pytest.MonkeyPatch(), tmp_path_factory.mktemp("study") / "out", []
    with patch.context() as short:
        short.setattr(again, "SETTINGS", SHORT)
        results = study([bank], [], out, settings=SETTINGS, announce=said.extend)
    return out, results, said


def no_encoder(_: FrozenEncoders) -> None:
    pytest.fail("the image encoder was loaded")


def gaps(results: dict, arm: str, baseline: str) -> list[dict]:
    rows = [row for row in results["comparisons"] if (row["arm"], row["baseline"]) == (arm, baseline)]
    return [row for row in rows if (row["metric"], row["label"]) == ("auroc", "macro")]


def test_a_bank_of_an_image_encoder_alone_has_two_arms_and_their_difference(made):
    out, results, _ = made
    assert {record["arm"] for record in results["records"]} == {*WITHOUT_ADAPTOR}
    assert [row["fraction"] for row in gaps(results, "lora-tuned", "frozen")] == [0.5, 1.0]
    assert all(row["ci_low"] <= row["difference"] <= row["ci_high"] for row in gaps(results, "lora-tuned", "frozen"))
    assert (results["retrieval"], results["zero_shot"]) == ([], [])
    assert json.loads((out / "results.json").read_text()) == results
    parameters = {row["trainable_parameters"] for row in results["records"] if row["arm"] == "lora-tuned"}
    assert len(parameters) <= 2  # the head reads one token or two
    assert max(parameters) < 5000


def test_the_report_speaks_of_the_arms_that_there_are(made):
    page = (made[0] / "report.html").read_text()
    assert "labels the arm lora-tuned reaches" in page
    assert "lora-tuned − frozen<" in page
    assert "no retrieval, no zero-shot and no text-informed probe, because the study has no adaptor." in page
    assert "The frozen probe is the honest yardstick" in page
    assert "5 epochs, at least 120 steps, at most 1,000" in page
    for absent in ("adaptor-untrained", "which patients the adaptor", "of the fusion", "Test embeddings", "Retrieval"):
        assert absent not in page


def test_what_the_cells_cost_is_said_before_they_start(made):
    _, _, said = made
    assert said == [
        "lora-tuned at 50\u00a0% of the labels, 1 cell: 2 steps on 18 images in each; 36 images go through the encoder "
        "forward and back, 12 test images forward.",
        "lora-tuned at 100\u00a0% of the labels, 1 cell: 2 steps on 36 images in each; 36 images go through the "
        "encoder forward and back, 12 test images forward.",
        "96 images through the image encoder in all, hf:" + said[-1].partition("hf:")[2],
    ]


def test_a_second_run_loads_no_encoder_and_says_nothing(made, bank, monkeypatch):
    out, results, _ = made
    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.safetensors")}
    said: list[str] = []
    monkeypatch.setattr(FrozenEncoders, "load_image", no_encoder)
    assert study([bank], [], out, settings=SETTINGS, announce=said.extend) == results
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.safetensors")} == cells
    assert said == []


def test_a_lost_cell_comes_back_as_it_was_and_alone_is_paid_for(made, bank):
    out, results, _ = made
    next((out / "cells").rglob("lora-tuned/0.5-0.safetensors")).unlink()
    said: list[str] = []
    again_ = study([bank], [], out, settings=SETTINGS, announce=said.extend)
    assert [row["value"] for row in again_["records"]] == [row["value"] for row in results["records"]]
    assert [line.partition(" of")[0] for line in said[:-1]] == ["lora-tuned at 50\u00a0%"]
    assert said[-1].startswith("48 images")


def test_cells_of_another_length_are_not_taken(made, bank, monkeypatch):
    monkeypatch.setattr(lora_tuned, "LORA_TUNED", replace(lora_tuned.LORA_TUNED, least_steps=7))
    with pytest.raises(InputError, match=r"lora_tuned: .*'least_steps': 120.* there, .*'least_steps': 7"):
        study([bank], [], made[0], settings=SETTINGS)


def test_texts_of_the_bank_change_nothing(bank, tmp_path):
    pairs = make_labelled_bank(tmp_path)
    alone, beside = (study([each], [], tmp_path / f"out-{n}", settings=FEW) for n, each in enumerate((bank, pairs)))
    assert [row["value"] for row in alone["records"]] == [row["value"] for row in beside["records"]]
    assert "text encoder fingerprint" not in (tmp_path / "out-1" / "report.html").read_text()


def test_classes_are_studied_too(bank, tmp_path):
    several = Bank.open(bank.folder)
    several.rows["class"] = np.arange(len(several)) % 3
    several.info = replace(several.info, labels=(), class_column="class", classes=("none", "one", "two"))
    results = study([several], [], tmp_path / "out", settings=FEW)
    values = [row["value"] for row in results["records"] if row["arm"] == "lora-tuned" and row["metric"] == "accuracy"]
    assert len(values) == 1
    assert 0 <= values[0] <= 1


def test_beside_an_adaptor_they_come_on_request(bank, tmp_path):
    run = save_images_alone(bank, tmp_path / "run")
    asked = replace(FEW, arms=("frozen", "adaptor", "lora-tuned", "full"))
    results = study([bank], [run], tmp_path / "out", settings=asked)
    assert {record["arm"] for record in results["records"]} == {*asked.arms}
    for arm, baseline in (("lora-tuned", "frozen"), ("lora-tuned", "adaptor"), ("full", "frozen")):
        assert len(gaps(results, arm, baseline)) == 1
    plainly = study([bank], [], tmp_path / "alone", settings=replace(asked, arms=("frozen", "lora-tuned", "full")))
    ours, theirs = ([r["value"] for r in found["records"] if r["arm"] != "adaptor"] for found in (results, plainly))
    assert ours == theirs


def test_what_runs_by_default():
    assert SETTINGS.chosen(adaptor=False, tuned=False) == ("frozen", "lora-tuned")
    assert SETTINGS.chosen(adaptor=True, tuned=False) == ARMS
    assert SETTINGS.chosen(adaptor=False, tuned=True) == ("frozen", "lora-tuned", "lora", "adaptor+lora")
    assert not {"lora-tuned", "full"} & {*ARMS}


@pytest.mark.parametrize("arm", NEED_ADAPTOR)
def test_arms_that_need_an_adaptor_are_refused_without_one(bank, tmp_path, arm):
    said = rf"`arms`: expected arms that the banks can serve, but got {arm} without an adaptor\. Pass --adaptor RUN"
    with pytest.raises(InputError, match=said):
        study([bank], [], tmp_path / "out", settings=replace(FEW, arms=("frozen", arm)))
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_cannot_be_loaded_is_refused_where_it_is_needed(tmp_path):
    foreign = write_tiny_bank(tmp_path / "bank", pairs=90, holds_texts=False)
    said = r"expected the image encoder fake:image for lora-tuned, but got none .*--arms frozen\."
    with pytest.raises(InputError, match=said):
        study([foreign], [], tmp_path / "out", settings=FEW)
    assert not (tmp_path / "out").exists()
    results = study([foreign], [], tmp_path / "out", settings=replace(FEW, arms=("frozen",)))
    assert {record["arm"] for record in results["records"]} == {"frozen"}


def test_another_encoder_under_the_same_name_is_refused(tmp_path):
    changed = make_labelled_bank(tmp_path, holds_texts=False)
    file = next((tmp_path / "vit").glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"expected the image encoder hf:.*with fingerprint [0-9a-f]{64}, but got wei"):
        study([changed], [], tmp_path / "out", settings=FEW)
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_gone_is_refused_before_anything_is_computed(tmp_path):
    moved = make_labelled_bank(tmp_path, holds_texts=False)
    (tmp_path / "m.csv").rename(tmp_path / "n.csv")
    with pytest.raises(InputError, match=r"m\.csv`: expected the table the bank was made of, but got nothing there"):
        study([moved], [], tmp_path / "out", settings=FEW)
    assert not (tmp_path / "out").exists()


def test_tokens_of_a_tuned_encoder_need_its_run(tmp_path):
    tuned = write_tiny_bank(tmp_path / "bank", pairs=90, image_lora="cc" * 32)
    said = r"Tokens of an encoder without LoRA, where there is no adaptor, but got LoRA cccc.*Pass its run as --adaptor"
    with pytest.raises(InputError, match=said):
        study([tuned], [], tmp_path / "out", settings=FEW)
