"""Paths and names are printed as they are, whatever brackets they hold."""

from types import SimpleNamespace

import pytest

from adaptmed.cli.phantom import phantom
from adaptmed.cli.pretrain import pretrain
from adaptmed.cli.show import print_table
from adaptmed.cli.study import study
from tests.tiny_bank import write_tiny_bank


@pytest.fixture
def odd(tmp_path):
    return tmp_path / "[red]a[" / "b]"  # its path holds [/b]


def test_phantom(odd, capsys):
    phantom(odd, studies=1, image_size_px=64)
    said = capsys.readouterr().out
    assert f"no medical data: {odd / 'manifest.csv'}" in said
    assert f"Next: adaptmed check {odd / 'manifest.csv'}" in said


def test_pretrain(odd, tmp_path, monkeypatch, capsys):
    made = SimpleNamespace(print_trainable_parameters=lambda: None)
    monkeypatch.setattr("adaptmed.pretraining.pretrain.pretrain", lambda *_, **__: made)
    bank = write_tiny_bank(tmp_path / "bank [1]").folder
    pretrain(bank, out=odd)
    said = capsys.readouterr().out
    assert "Method adaptor (light)" in said
    assert f"into {odd}" in said
    assert f"Adaptor at its best epoch: {odd / 'adaptor'}" in said
    assert f"Next: adaptmed study {bank} --adaptor {odd}" in said


def test_study(odd, tmp_path, monkeypatch, capsys):
    row = {
        "label": "macro",
        "metric": "auroc",
        "fraction": 1.0,
        "dataset": "d.csv",
        "encoder": "[/b] e",
        "arm": "[/b] a",
        "ci_low": None,
    }
    rows = [row | {"value": 0.5}, row | {"value": None, "arm": "x", "reason": "only [/b]"}]
    monkeypatch.setattr("adaptmed.study.classification.study.study", lambda *_, **__: {"summaries": rows})
    study(write_tiny_bank(tmp_path / "bank").folder, adaptor=[odd], out=odd)
    assert f"Report: {odd / 'report.html'}" in capsys.readouterr().out


def test_names_in_the_table_of_a_study(capsys):
    row = {
        "label": "all",
        "metric": "auroc",
        "fraction": 1.0,
        "dataset": "d.csv",
        "encoder": "[/b] e",
        "arm": "[red]a",
        "ci_low": None,
    }
    print_table({"summaries": [row | {"value": None, "reason": "only [/b]"}]})
    said = capsys.readouterr().out
    for words in ("Mean AUROC, d.csv, [/b] e", "[red]a", "undefined: only [/b]"):
        assert words in said
