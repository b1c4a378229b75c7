"""The phantom as a table of labels without reports, from drawing to a study of LoRA, on the command line."""

import json
from dataclasses import replace

import jaxtyping
import pandas as pd
import pytest
import torch

from adaptmed.cli import main
from adaptmed.study.classification import again
from adaptmed.training.pixels import PixelReader
from tests.online_bank import save_image_model


@pytest.fixture(autouse=True)
def as_installed(monkeypatch):
    """Leave out the checks of shapes that tests add to every function: they take half of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """150 phantom pictures with labels and no reports, embedded by a tiny transformer."""
    folder = tmp_path_factory.mktemp("labels")
    torch.manual_seed(0)
    model = save_image_model(folder / "vit")
    assert run("phantom", "--out", folder, "--studies", 150, "--image-size-px", 64) == 0
    table = pd.read_csv(folder / "manifest.csv")
    table.drop(columns=["text", "mask"]).to_csv(folder / "labels.csv", index=False)
    assert run("embed", folder / "labels.csv", "--image-encoder", f"hf:{model}", "--out", folder / "bank") == 0
    return folder


@pytest.fixture
def short(monkeypatch):
    """Tune for 12 steps, where there are 120 otherwise."""
    few = {"lora-tuned": replace(again.SETTINGS["lora-tuned"], least_steps=12, most_steps=12)}
    monkeypatch.setattr(again, "SETTINGS", {**again.SETTINGS, **few})


def words_of(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("short")
def test_labels_alone_are_studied_and_the_cost_is_said_first(labelled, tmp_path, capsys, monkeypatch):
    command = (
        "study",
        labelled / "bank",
        "--fractions",
        0.1,
        "--seeds",
        1,
        "--replicates",
        50,
        "--out",
        tmp_path / "s",
    )
    capsys.readouterr()
    assert run(*command) == 0
    said = words_of(capsys)
    assert "lora-tuned at 10 % of the labels, 1 cell: 12 steps on" in said
    assert said.index("images through the image encoder in all") < said.index("Mean AUROC")
    results = json.loads((tmp_path / "s" / "results.json").read_text())
    assert {row["arm"] for row in results["records"]} == {"frozen", "lora-tuned"}
    assert {(row["arm"], row["baseline"]) for row in results["comparisons"]} == {("lora-tuned", "frozen")}
    assert "the arm lora-tuned reaches" in (tmp_path / "s" / "report.html").read_text()

    monkeypatch.setattr(PixelReader, "__call__", lambda *_: pytest.fail("images were read again"))
    assert run(*command) == 0
    assert "through the image encoder" not in words_of(capsys)
    assert json.loads((tmp_path / "s" / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ("adaptor", "but got adaptor without an adaptor. Pass --adaptor RUN"),
        ("lora", "but got lora without a tuned bank. Pass --tuned-bank"),
        ("lora-tune", "distinct names among frozen"),
    ],
)
def test_arms_that_cannot_run_are_refused_in_words(labelled, tmp_path, capsys, arm, says):
    assert run("study", labelled / "bank", "--arms", "frozen", arm, "--out", tmp_path / "s") == 1
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s").exists()


def test_a_study_can_be_repeated_by_its_configuration(labelled, tmp_path):
    first = ("study", labelled / "bank", "--fractions", 1, "--seeds", 1, "--replicates", 20)
    assert run(*first, "--arms", "frozen", "--out", tmp_path / "one") == 0
    held = json.loads((tmp_path / "one" / "config.json").read_text())
    assert "lora_tuned" not in held
    (tmp_path / "c.json").write_text(json.dumps({**held, "lora_tuned": {"rank": 8}}))
    assert run("study", labelled / "bank", "--config", tmp_path / "c.json", "--out", tmp_path / "two") == 0
    assert json.loads((tmp_path / "two" / "config.json").read_text()) == held
