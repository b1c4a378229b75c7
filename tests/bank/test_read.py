import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptmed.bank import Bank, Layout
from adaptmed.errors import BankError


def test_image_tokens_come_back_in_the_order_asked(known):
    rows = np.array([19, 0, 3, 3, 12, 7])
    tokens = known.bank.image_tokens(rows)
    assert torch.equal(tokens.values, known.images[rows % 10])
    assert torch.equal(tokens.pooled, known.pooled[rows % 10])
    assert tokens.grid == (2, 3)
    assert tokens.prefix == 1
    assert tokens.valid.all()


def test_the_result_is_the_callers_own(known):
    first = known.bank.image_tokens(np.array([0, 1]))
    first.values.zero_()
    assert torch.equal(known.bank.image_tokens(np.array([0, 1])).values, known.images[:2])


def test_ragged_texts_are_padded_to_the_longest_of_the_rows_asked(known):
    rows = np.array([2, 9, 0, 16, 2])
    tokens = known.bank.text_tokens(rows, torch.float32)
    ids, ids_valid = known.bank.input_ids(rows)
    texts = [known.texts[row * 3 % 7] for row in rows]
    assert tokens.values.shape == (5, max(map(len, texts)), 5)
    assert tokens.values.dtype == torch.float32
    assert torch.equal(tokens.valid, ids_valid)
    assert ids.dtype == torch.int64
    for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
        assert tokens.valid[place].tolist() == [n < len(text) for n in range(tokens.values.shape[1])]
        assert torch.equal(tokens.values[place, : len(text)], text.float())
        assert torch.equal(tokens.pooled[place], text.mean(0).float())
        assert tokens.values[place, len(text) :].eq(0).all()
        assert torch.equal(ids[place, : len(text)], known.ids[row * 3 % 7])


def test_a_missing_side_has_no_valid_token_and_disturbs_nobody(known):
    rows = np.array([4, 5, 6, 7])
    batch = known.bank.batch(rows)
    assert batch.text.valid.any(1).tolist() == [True, False, True, True]
    assert batch.image.valid.any(1).tolist() == [True, True, False, True]
    assert batch.image.values[2].eq(0).all()
    assert batch.image.pooled[2].eq(0).all()
    assert torch.equal(batch.image.values[3], known.images[7])
    assert batch.text_group.tolist() == [5, -1, 4, 0]
    assert batch.ids == ("r4", "r5", "r6", "r7")
    assert known.bank.text_tokens(np.array([5])).valid.tolist() == [[False]]


def test_labels_and_classes(known):
    labels = known.bank.labels(np.array([1, 3]))
    assert labels[0].tolist() == [1.0, 1.0]
    assert labels[1].isnan().tolist() == [True, False]
    assert known.bank.class_numbers(np.array([0, 1, 2])).tolist() == [-1, 0, 1]
    assert known.bank.classes == ("x", "y")


def test_subset(known):
    assert known.bank.subset("test").tolist() == [0, 4, 8, 12, 16]
    assert known.bank.subset("train").dtype == np.int64
    assert len(known.bank.subset(None)) == len(known.bank) == 20
    known.bank.rows = known.bank.rows.drop(columns="split")
    with pytest.raises(BankError, match="a column with train rows"):
        known.bank.subset("train")


def test_values_are_mapped_not_read(known):
    known.bank.image_tokens(np.array([0]))
    name = known.bank.info.shards_of("image")[0].file
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{name}.safetensors" in line]
    assert mapped


def test_opening_what_is_no_whole_bank(known, tmp_path):
    folder = known.bank.folder
    with pytest.raises(BankError, match=r"no bank.json"):
        Bank.open(tmp_path / "nowhere")
    shard = folder / "shards/image-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(BankError, match=rf"image-00001.*{len(content)} bytes.*{len(content) - 1} bytes"):
        Bank.open(folder)
    facts = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps({**facts, "schema": 99}))
    with pytest.raises(BankError, match="bank schema 1, but got 99"):
        Bank.open(folder)
    (folder / "bank.json").unlink()
    with pytest.raises(BankError, match=r"not finished.*again to finish"):
        Bank.open(folder)


def test_a_part_that_the_bank_lacks_is_named(known):
    bank = known.bank
    lacking = Bank(bank.folder, type(bank.info)("m", "s"), bank.rows)
    with pytest.raises(BankError, match=r"holds images.*--image-encoder"):
        lacking.image_tokens(np.array([0]))
    with pytest.raises(BankError, match=r"holds images, but got none of them\..*--image-encoder"):
        _ = lacking.images
    with pytest.raises(BankError, match=r"holds texts, but got none of them\..*--text-encoder"):
        _ = lacking.texts
    assert (lacking.holds_texts, bank.holds_texts) == (False, True)
    with pytest.raises(BankError, match=r"holds texts.*--text-encoder"):
        lacking.text_tokens(np.array([0]))
    with pytest.raises(BankError, match=r"word ids.*--text-encoder"):
        lacking.input_ids(np.array([0]))
    with pytest.raises(BankError, match=r"classes.*--class-column"):
        lacking.class_numbers(np.array([0]))


def test_info_survives_its_json(known):
    info = known.bank.info
    assert info.images.preprocessing == known.plan.image.preprocessing
    assert info.images.token_key == known.plan.key("image")
    assert (info.images.count, info.texts.count, info.rows, info.rejected) == (10, 7, 20, 0)
    assert info.texts.truncated_share == sum(len(text) == 9 for text in known.texts) / 7
    assert Layout.parse(info.layout) == Layout("all")
    assert [shard.count for shard in info.shards_of("image")] == [4, 4, 2]
