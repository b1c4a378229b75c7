"""Damaged files of a bank are told in words, by opening it, by verifying it and by going on with it."""

import json
from dataclasses import replace

import pytest

from adaptmed.bank import Bank, verify
from adaptmed.bank.write import begin, pending_shards
from adaptmed.errors import BankError

CUTS = {"empty": b"", "half": b'{"schema": 1, "lab', "list": b"[1]", "bytes": b"\xff\xfe"}


@pytest.mark.parametrize("content", CUTS.values(), ids=CUTS)
def test_a_cut_bank_json(known, content):
    (known.bank.folder / "bank.json").write_bytes(content)
    with pytest.raises(BankError, match=r"bank\.json`: expected a JSON object.*again"):
        Bank.open(known.bank.folder)
    (damage,) = verify(known.bank.folder)
    assert damage.startswith("bank.json: ")


@pytest.mark.parametrize("change", [{"schema": 99}, {"shards": None}, {"images": {"name": "x"}}, {"new": 1}])
def test_a_bank_json_of_another_form(known, change):
    path = known.bank.folder / "bank.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BankError, match=r"expected (bank schema 1|the facts of a bank), but got"):
        Bank.open(known.bank.folder)
    (damage,) = verify(known.bank.folder)
    assert damage.startswith("bank.json: ")


@pytest.mark.parametrize("content", [None, b"", b"PAR1 cut", "half"])
def test_missing_and_cut_rows(known, content):
    path = known.bank.folder / "rows.parquet"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(BankError, match=r"rows\.parquet`: expected the rows of the bank.*again"):
        Bank.open(known.bank.folder)
    (damage,) = verify(known.bank.folder)
    assert damage.startswith("rows.parquet: ")


@pytest.mark.parametrize("content", CUTS.values(), ids=CUTS)
def test_an_unreadable_record_counts_as_not_whole(known, content):
    (known.bank.folder / "shards/image-00001.json").write_bytes(content)
    assert pending_shards(known.bank.folder, "image", count=10, shard_size=4) == [(1, range(4, 8))]


def test_a_plan_is_replaced_until_a_shard_is_whole(known, tmp_path):
    folder, other = tmp_path / "new", replace(known.plan, dtype="float32")
    assert begin(folder, known.plan) is False
    (folder / "shards").mkdir()
    (folder / "shards/image-00000.json").write_text("{}")
    for content in (None, b""):
        if content is not None:
            (folder / "plan.json").write_bytes(content)
        assert begin(folder, other) is False
        assert json.loads((folder / "plan.json").read_text())["dtype"] == "float32"
    (known.bank.folder / "bank.json").unlink()
    with pytest.raises(BankError, match=r"dtype = float16, but got .*dtype = float32"):
        begin(known.bank.folder, other)
    (known.bank.folder / "plan.json").write_bytes(b"")
    with pytest.raises(BankError, match=r"plan\.json`: expected a JSON object"):
        begin(known.bank.folder, known.plan)


def test_a_file_is_no_folder(known, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BankError, match="a bank or an empty folder, but got a file"):
        begin(tmp_path / "file", known.plan)
