"""The arms with LoRA: paired with the plain ones, resumed, refused where they cannot be compared, and reported."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptmed import methods
from adaptmed.adaptor.model import trainable_parameters
from adaptmed.bank import Bank
from adaptmed.data.splits import patient_digest
from adaptmed.errors import InputError, OverlapError
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import write_seen
from adaptmed.study.classification.settings import ARMS, TUNED_ARMS, StudySettings
from adaptmed.study.classification.study import study
from adaptmed.study.classification.subject import prepare
from tests.tiny_bank import write_tiny_bank

LORA = {"base.layer.lora_A.weight": torch.ones(2, 12), "base.layer.lora_B.weight": torch.ones(12, 2)}
SETTINGS = StudySettings(
    precision="fp32",
    fractions=(0.3, 1.0),
    seeds=2,
    replicates=50,
    arms=("frozen", "adaptor-untrained", "adaptor", *TUNED_ARMS),
)
SMALL = methods.changed(methods.adaptor(), {"fusion": {"width": 16, "heads": 2}})
METHOD = replace(SMALL, schedule=methods.Schedule(epochs=2, batch_size=16))


def tuned_tiny_bank(folder, **options):
    """The rows of the plain tiny bank with clearer tokens, as if tuned encoders had written them."""
    bank = write_tiny_bank(folder, pairs=120, **{"noise": 0.2, "image_lora": "cc" * 32, **options})
    (folder / "image_lora").mkdir()
    save_file(LORA, folder / "image_lora" / "adapter_model.safetensors")
    return bank


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    plain, tuned = write_tiny_bank(folder / "bank", pairs=120), tuned_tiny_bank(folder / "bank-l")
    pretrain(plain, METHOD, folder / "run", device="cpu")
    pretrain(tuned, METHOD, folder / "run-l", device="cpu")
    results = study([plain], [folder / "run"], folder / "out", settings=SETTINGS, tuned=[(tuned, folder / "run-l")])
    return folder, plain, tuned, results


def values(results, arm, **facts):
    rows = [row for row in results["summaries"] if row["arm"] == arm]
    return [row for row in rows if all(row[name] == value for name, value in facts.items())]


def test_differences_are_paired_over_the_same_cells(made):
    _, plain, tuned, results = made
    assert tuned.info.rows_file_sha256 == plain.info.rows_file_sha256
    for arm, baseline in (("lora", "frozen"), ("adaptor+lora", "adaptor")):
        found = [row for row in results["comparisons"] if (row["arm"], row["baseline"]) == (arm, baseline)]
        assert {row["fraction"] for row in found} == {0.3, 1.0}
        assert {row["n_seeds"] for row in found} == {2}
        for row in found:
            place = {name: row[name] for name in ("fraction", "metric", "label")}
            (ours,), (theirs,) = values(results, arm, **place), values(results, baseline, **place)
            assert row["difference"] == pytest.approx(ours["value"] - theirs["value"])
            assert (ours["n_train"], ours["n_positive"]) == (theirs["n_train"], theirs["n_positive"])
    gaps = {row["difference"] for row in results["comparisons"] if row["arm"] == "lora" and row["label"] == "macro"}
    assert gaps != {0.0}
    assert {row["baseline"] for row in results["comparisons"]} == {"frozen", "adaptor-untrained", "adaptor"}


def test_they_are_the_frozen_and_the_adaptor_probe_of_a_study_of_the_tuned_bank(made, tmp_path):
    folder, _, tuned, results = made
    settings = replace(SETTINGS, arms=("frozen", "adaptor"))
    alone = study([tuned], [folder / "run-l"], tmp_path / "out", settings=settings, examples=False)
    for ours, theirs in (("lora", "frozen"), ("adaptor+lora", "adaptor")):
        one, two = values(results, ours), values(alone, theirs)
        assert [row["value"] for row in one] == [row["value"] for row in two]
        assert {a["trainable_parameters"] - b["trainable_parameters"] for a, b in zip(one, two, strict=True)} == {48}


def test_all_that_was_trained_is_counted(made):
    folder, plain, tuned, results = made
    lora = sum(tensor.numel() for tensor in LORA.values())
    subject = prepare(plain, folder / "run", SETTINGS, tuned=(tuned, folder / "run-l"))
    fusion = trainable_parameters(subject.tuned.adaptor.fusion)
    count = {arm: {row["trainable_parameters"] for row in values(results, arm)} for arm in SETTINGS.arms}
    probes = {2 * (width + 1) for width in (12, 24)}  # two labels on one token or two
    assert count["lora"] <= {probe + lora for probe in probes}
    probes = {2 * (width + 1) for width in (16, 16 + 24)}  # on the embedding, alone or beside both tokens
    assert count["adaptor+lora"] <= {probe + fusion + lora for probe in probes}


def test_a_second_run_computes_nothing_and_a_lost_cell_comes_back(made):
    folder, plain, tuned, results = made
    cells = sorted((folder / "out" / "cells").rglob("*.safetensors"))
    lost = next(path for path in cells if path.match("adaptor+lora/0.3-1.safetensors"))
    stand = {arm: {path.parts[-3] for path in cells if path.parts[-2] == arm} for arm in SETTINGS.arms}
    assert stand["lora"] == stand["adaptor+lora"]
    assert stand["frozen"] == stand["adaptor"]
    assert not stand["lora"] & stand["frozen"]
    before = {path: path.stat().st_mtime_ns for path in cells if path != lost}
    lost.unlink()
    again = study([plain], [folder / "run"], folder / "out", settings=SETTINGS, tuned=[(tuned, folder / "run-l")])
    assert again["comparisons"] == results["comparisons"]
    assert lost.exists()
    assert {path: path.stat().st_mtime_ns for path in cells if path != lost} == before


def test_the_plain_arms_are_those_of_a_study_without_lora(made, tmp_path):
    folder, plain, _, results = made
    plainly = replace(SETTINGS, arms=("frozen", "adaptor-untrained", "adaptor"))
    alone = study([plain], [folder / "run"], tmp_path / "out", settings=plainly)
    for arm in plainly.arms:
        ours, theirs = ([row["value"] for row in values(found, arm)] for found in (results, alone))
        assert ours == theirs
    assert "tuned" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_they_need_no_adaptor_of_the_plain_bank(made, tmp_path):
    folder, plain, tuned, results = made
    asked = replace(SETTINGS, arms=("frozen", *TUNED_ARMS))
    alone = study([plain], [], tmp_path / "out", settings=asked, tuned=[(tuned, folder / "run-l")])
    for arm in asked.arms:
        ours, theirs = ([row["value"] for row in values(found, arm)] for found in (results, alone))
        assert ours == theirs
    assert {row["arm"] for row in alone["retrieval"]} == {"adaptor+lora"}


def test_cells_of_another_tuned_run_are_not_taken(made, tmp_path):
    folder, plain, tuned, _ = made
    shutil.copytree(folder / "run-l", tmp_path / "run")
    file = tmp_path / "run" / "adaptor" / "adaptor.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    places = {
        prepare(plain, folder / "run", SETTINGS, tuned=(tuned, run)).tuned.identity
        for run in (folder / "run-l", tmp_path / "run")
    }
    assert len(places) == 2
    with pytest.raises(InputError, match="tuned: "):
        study([plain], [folder / "run"], folder / "out", settings=SETTINGS, tuned=[(tuned, tmp_path / "run")])


def test_the_report_shows_the_arms_and_what_they_rest_on(made):
    page = (made[0] / "out" / "report.html").read_text()
    for words in (
        "adaptor+lora − adaptor<",
        "lora − frozen<",
        ">adaptor+lora, image to text<",
        "LoRA parameters",
        "<dd>cccccccccccc…</dd>",
        ">48<",
    ):
        assert words in page
    assert page.count(">adaptor − frozen<") == 1
    assert page.count("frozen − adaptor<") == 0


def test_the_arms_run_by_default_where_there_is_a_tuned_bank():
    assert replace(SETTINGS, arms=None).chosen(adaptor=True, tuned=True) == (*ARMS, "lora", "adaptor+lora")
    assert replace(SETTINGS, arms=None).chosen(adaptor=True, tuned=False) == ARMS


@pytest.mark.parametrize("arm", TUNED_ARMS)
def test_without_a_tuned_bank_they_are_refused(made, tmp_path, arm):
    folder, plain, _, _ = made
    with pytest.raises(InputError, match=rf"but got {arm.replace('+', '.')} without a tuned bank\. Pass --tuned-bank"):
        study([plain], [folder / "run"], tmp_path / "out", settings=replace(SETTINGS, arms=("frozen", arm)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 3}, r"expected the rows of .*bank \(rows\.parquet [0-9a-f]{64}\), but got [0-9a-f]{64}"),
        ({"pairs": 90}, r"expected the rows of"),
        ({"image_lora": None}, r"Tokens of encoders with LoRA, but got encoders without it"),
    ],
)
def test_a_bank_that_cannot_stand_beside_the_plain_one_is_refused(made, tmp_path, other, message):
    folder, plain, _, _ = made
    foreign = write_tiny_bank(tmp_path / "bank", **{"pairs": 120, "image_lora": "cc" * 32, **other})
    with pytest.raises(InputError, match=message):
        prepare(plain, folder / "run", SETTINGS, tuned=(foreign, folder / "run-l"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: {"images": replace(info.images, fingerprint="dd" * 32)}, "image encoder: aaaa.* there, dddd"),
        (lambda info: {"texts": replace(info.texts, fingerprint="dd" * 32)}, "text encoder: bbbb.* there, dddd"),
        (lambda info: {"texts": replace(info.texts, max_tokens=7)}, "longest text: 9 there, 7 here"),
        (lambda _: {"layout": "all"}, "layout: grid8 there, all here"),
        (lambda _: {"dtype": "float32"}, "number format: float16 there, float32 here"),
        (
            lambda info: {"images": replace(info.images, preprocessing=replace(info.images.preprocessing, fit="pad"))},
            "differ from those of .* by LoRA alone, but got preprocessing: ",
        ),
    ],
)
def test_tokens_that_differ_by_more_than_lora_are_refused(made, change, message):
    folder, plain, tuned, _ = made
    other = Bank.open(tuned.folder)
    other.info = replace(tuned.info, **change(tuned.info))
    with pytest.raises(InputError, match=message):
        prepare(plain, folder / "run", SETTINGS, tuned=(other, folder / "run-l"))


def test_banks_in_the_wrong_order_are_refused(made):
    folder, plain, tuned, _ = made
    with pytest.raises(
        InputError, match=r"encoders without LoRA, but got encoders with it\. The plain bank comes first"
    ):
        prepare(tuned, folder / "run-l", SETTINGS, tuned=(plain, folder / "run"))


def test_a_tuned_run_of_other_lora_is_refused(made, tmp_path):
    folder, plain, tuned, _ = made
    with pytest.raises(InputError, match=r"expected Tokens of fake:image \(a{64}\), which .* but got .* LoRA c{64}\)"):
        prepare(plain, folder / "run", SETTINGS, tuned=(tuned, folder / "run"))
    other = tuned_tiny_bank(tmp_path / "bank", image_lora="ee" * 32)
    with pytest.raises(InputError, match=r"LoRA c{64}\), which .* but got .* LoRA e{64}\)"):
        prepare(plain, folder / "run", SETTINGS, tuned=(other, folder / "run-l"))


def test_saved_adaptors_that_lost_their_lora_are_refused(made, tmp_path):
    folder, plain, tuned, _ = made
    shutil.copytree(folder / "run-l", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adaptor" / "image_lora")
    with pytest.raises(InputError, match=r"LoRA in adapter_model\.safetensors, but got none"):
        prepare(plain, folder / "run", SETTINGS, tuned=(tuned, tmp_path / "run"))


def test_one_tuned_bank_per_bank(made, tmp_path):
    folder, plain, tuned, _ = made
    pair = (tuned, folder / "run-l")
    with pytest.raises(
        InputError, match=r"`tuned`: expected one per bank \(1\), in the same order, or none, but got 2"
    ):
        study([plain], [folder / "run"], tmp_path / "out", settings=SETTINGS, tuned=[pair, pair])


@pytest.fixture
def leaking(made, tmp_path):
    """The tuned run, as if it had read one of the test patients."""
    folder, plain, _, _ = made
    shutil.copytree(folder / "run-l", tmp_path / "run")
    write_seen(tmp_path / "run", patient_digest([plain.rows.loc[plain.rows["split"] == "test", "patient"].iloc[0]]))
    return tmp_path / "run"


def test_test_patients_that_only_the_tuned_run_has_seen_are_refused_and_marked(made, leaking, tmp_path):
    folder, plain, tuned, _ = made
    with pytest.raises(OverlapError, match="test patients that no training has seen, but got 1 that were seen"):
        prepare(plain, folder / "run", SETTINGS, tuned=(tuned, leaking))
    allowed = replace(SETTINGS, allow_overlap=True, seeds=1, fractions=(1.0,), arms=("frozen", "lora"))
    results = study([plain], [folder / "run"], tmp_path / "out", settings=allowed, tuned=[(tuned, leaking)])
    assert results["settings"]["overlapping_test_patients"] == 1
    assert "Mean AUROC (1 test patients were seen in training)" in (tmp_path / "out" / "report.html").read_text()


def test_the_report_says_when_the_patients_of_lora_are_not_known(made, tmp_path):
    folder, plain, tuned, _ = made
    few = replace(SETTINGS, seeds=1, fractions=(1.0,), arms=("frozen", "lora"))
    shutil.copytree(folder / "run-l" / "adaptor", tmp_path / "alone")
    for run, known in ((folder / "run-l" / "adaptor", True), (tmp_path / "alone", False)):
        study([plain], [folder / "run"], tmp_path / f"out-{known}", settings=few, tuned=[(tuned, run)])
        page = (tmp_path / f"out-{known}" / "report.html").read_text()
        assert ("which patients LoRA was trained on, and whether labels were read, is not known" in page) is not known


@pytest.mark.parametrize(
    ("trained", "fractions", "refused"),
    [
        ({"fraction": 0.1}, (0.1,), True),
        ({"fraction": 1.0}, (0.1, 1.0), True),
        ({"fraction": 0.5}, (1.0,), True),
        ({}, (1.0,), True),
        ({"command": "pretrain", "labels_read": 0.1}, (0.1,), True),
        ({"command": "pretrain", "labels_read": None}, (0.1,), False),
        ({"fraction": 1.0}, (1.0,), False),
    ],
)
@pytest.mark.parametrize("which", ["plain", "tuned"])
def test_runs_that_read_labels_outside_a_fraction_are_refused(made, tmp_path, trained, fractions, refused, which):
    folder, plain, tuned, _ = made
    runs = {"plain": folder / "run", "tuned": folder / "run-l"}
    shutil.copytree(runs[which], tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"command": "finetune", **trained}))
    runs[which], settings = tmp_path / "run", replace(SETTINGS, fractions=fractions)
    if not refused:
        prepare(plain, runs["plain"], settings, tuned=(tuned, runs["tuned"]))
        return
    for named in ("run", "run/adaptor"):
        runs[which] = tmp_path / named
        with pytest.raises(InputError, match=r"no label has trained, but got one that has read labels at .*Labels"):
            prepare(plain, runs["plain"], settings, tuned=(tuned, runs["tuned"]))
