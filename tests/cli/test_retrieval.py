"""The command line of retrieval: a pre-trained run is judged, printed and written, and other options are refused."""

import json
from dataclasses import replace

import pytest

from adaptmed.cli import main
from adaptmed.methods import changed
from adaptmed.pretraining.pretrain import pretrain
from tests.short_training import METHOD
from tests.tiny_bank import write_tiny_bank

METHODS = {"run": METHOD, "bare": changed(METHOD, {"matching": {"weight": 0.0}})}


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def flat(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    bank = write_tiny_bank(folder / "bank")
    for name, method in METHODS.items():
        pretrain(bank, replace(method, schedule=replace(method.schedule, epochs=1)), folder / name, device="cpu")
    return folder


def test_a_pretrained_run_is_judged_printed_and_written(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    words = ("--task", "retrieval", "--top-k", 4, "--most", 9, "--seed", 3, "--device", "cpu", "--precision", "bf16")
    assert run("evaluate", folder / "run", folder / "bank", *words) == 0
    said = flat(capsys.readouterr().out)
    for text in (
        "9 of 12 test pairs were drawn (seed 3).",
        "Retrieval among 9 test pairs of",
        "by embedding",
        "first 4 re-ranked",
        "by chance",
        "image to text (9 among 9)",
        "text to image (9 among 9)",
        "R@10",
        "median_rank",
        f"Written: {folder}/run/retrieval-bank.json",
    ):
        assert text in said, text
    found = json.loads((folder / "run" / "retrieval-bank.json").read_text())
    assert (found["task"], found["top_k"], found["most"], found["seed"]) == ("retrieval", 4, 9, 3)
    assert found["precision"] == "bf16"
    assert set(found["test"]["reranked"]) == {"image to text", "text to image"}
    assert not [path for path in (folder / "run").iterdir() if path.suffix == ".tmp"]


def test_a_run_without_a_matching_head_is_judged_by_embedding_into_a_named_file(folder, capsys):
    out = folder / "elsewhere" / "found.json"
    assert run("evaluate", folder / "bare", folder / "bank", "--task", "retrieval", "--out", out) == 0
    said = flat(capsys.readouterr().out)
    assert "Nothing was re-ranked: the method adaptor was trained without matching" in said
    assert "re-ranked │" not in said
    assert json.loads(out.read_text())["top_k"] == 16
    assert not (folder / "bare" / "retrieval-bank.json").exists()


def test_a_pretrained_run_without_a_task_is_shown_the_way(folder, capsys):
    assert run("evaluate", folder / "run", folder / "bank") == 1
    said = capsys.readouterr().err
    assert "but got a run of `adaptmed pretrain`. Pass --task retrieval, or tune it first with `adaptmed fine" in said


@pytest.mark.parametrize(("option", "value"), [("top_k", 4), ("most", 9), ("seed", 0)])
def test_options_of_retrieval_are_refused_elsewhere(folder, capsys, option, value):
    words = (f"--{option.replace('_', '-')}", value)
    assert run("evaluate", folder / "run", folder / "bank", *words) == 1
    expected = (
        f"`{option}`: expected --task retrieval whenever --{option.replace('_', '-')} is given, but got {value}. Add"
    )
    assert expected in capsys.readouterr().err


def test_what_is_no_pretrained_run_is_refused(folder, capsys):
    assert run("evaluate", folder / "bank", folder / "bank", "--task", "retrieval") == 1
    assert "expected a finished run folder of `adaptmed pretrain` or of a calibration" in capsys.readouterr().err
