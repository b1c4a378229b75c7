"""Judging the masks of a finished run again: the numbers of its fine-tuning, and what is refused."""

import json
import shutil

import pytest

from adaptmed.bank import Bank
from adaptmed.errors import InputError
from adaptmed.tasks.evaluate import evaluate
from adaptmed.tasks.task import How

CPU = How(device="cpu")


@pytest.mark.parametrize(("tuning", "images"), [("tuned", "pictures"), ("deep", "volumes")])
def test_the_numbers_are_those_of_fine_tuning(request, tmp_path, tuning, images):
    run, bank = request.getfixturevalue(tuning), request.getfixturevalue(images)
    expected = json.loads((run / "metrics.json").read_text())["test"]
    found = evaluate(run, bank, out=tmp_path / "again.json", how=CPU)
    assert (found["task"], found["run"], found["bank"]) == ("segmentation", str(run), str(bank.folder))
    for name in ("images", "patients", "tuned", "empty"):
        assert found["test"][name] == expected[name]
    assert found["test"]["rejected_masks"] == 0
    assert found["test"]["tuned"] != found["test"]["empty"]
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_it_is_written_beside_the_run(tuned, pictures, tmp_path):
    shutil.copytree(tuned, tmp_path / "copy")
    found = evaluate(tmp_path / "copy", pictures, how=CPU)
    assert json.loads((tmp_path / "copy" / "evaluation-bank.json").read_text()) == found


def test_a_mask_that_does_not_open_costs_its_own_row(tuned, pictures, tmp_path):
    bank = Bank.open(pictures.folder)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    bank.rows.loc[bank.subset("test")[0], "mask"] = str(damaged)
    test = evaluate(tuned, bank, out=tmp_path / "out.json", how=CPU)["test"]
    assert (test["images"], test["rejected_masks"]) == (len(bank.subset("test")) - 1, 1)


@pytest.mark.parametrize("damage", ["decoder.json", "decoder.safetensors"])
def test_a_damaged_head_is_refused(tuned, pictures, tmp_path, damage):
    shutil.copytree(tuned, tmp_path / "copy")
    (tmp_path / "copy" / damage).write_bytes(b"{}")
    with pytest.raises(InputError, match="expected a whole decoder, but got"):
        evaluate(tmp_path / "copy", pictures, out=tmp_path / "out.json", how=CPU)
    assert not (tmp_path / "out.json").exists()


def test_a_bank_without_a_test_mask_is_refused(tuned, pictures, tmp_path):
    bank = Bank.open(pictures.folder)
    bank.rows["mask"] = ""
    with pytest.raises(InputError, match="a test row to judge, but got none"):
        evaluate(tuned, bank, out=tmp_path / "out.json", how=CPU)
