"""Every DICOM file that pydicom ships goes through check and embed: read, or rejected with its reason."""

import json
from pathlib import Path

import pandas as pd
import pydicom
import pytest

from adaptmed.bank import Bank
from adaptmed.cli import main


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    shipped = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))
    assert len(shipped) > 50
    path = tmp_path_factory.mktemp("dicom") / "m.csv"
    pd.DataFrame({"image": [str(file) for file in shipped]}).to_csv(path, index=False)
    return path, len(shipped)


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_check_lists_every_reason(manifest, tmp_path):
    path, total = manifest
    assert run("check", path, "--rejects", tmp_path / "rejects.jsonl") == 0
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert 0 < len(rejects) < total
    assert all(reject["reason"].strip() for reject in rejects)
    assert any("single frame" in reject["reason"] for reject in rejects)


def test_strict_turns_rejects_into_an_error(manifest, capsys):
    assert run("check", manifest[0], "--strict") == 1
    assert "Error" in capsys.readouterr().err


def test_embed_keeps_the_readable_ones(manifest, tmp_path):
    path, total = manifest
    assert run("embed", path, "--image-encoder", "bundled:efficientnet-lite0", "--out", tmp_path / "bank") == 0
    bank = Bank.open(tmp_path / "bank")
    rejects = [json.loads(line) for line in (tmp_path / "bank" / "rejects.jsonl").read_text().splitlines()]
    assert len(bank) + len(rejects) == total
    assert len(bank) > 20
    assert all(reject["reason"].strip() for reject in rejects)
