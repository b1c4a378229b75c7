"""Masked pictures, their banks with and without LoRA, and a run on each; made once."""

import pytest

from adaptmed.bank import Bank
from adaptmed.study.segmentation.subject import open_subject, prepare
from tests.masked_pictures import EVERY, embed_pictures, pretrain_one_epoch, write_masked_table


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    table = write_masked_table(folder / "data")
    pretrain_one_epoch(embed_pictures(table, folder / "bank"), folder / "run")
    pretrain_one_epoch(embed_pictures(table, folder / "bank-l", tuned=True), folder / "run-l")
    return folder


@pytest.fixture
def subject(masked, tmp_path):
    bank, tuned = Bank.open(masked / "bank"), (Bank.open(masked / "bank-l"), masked / "run-l")
    return prepare(open_subject(bank, masked / "run", EVERY, tuned=tuned), tmp_path / "masks", EVERY)
