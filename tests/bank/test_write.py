import hashlib
import json
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from adaptmed.bank import Bank, BankInfo, Plan, Shard
from adaptmed.bank.seal import seal
from adaptmed.bank.write import begin, pending_shards, require_space, write_image_shard
from adaptmed.errors import BankError
from adaptmed.files import written_whole

FACTS = BankInfo(manifest="m.csv", manifest_sha256="m" * 64)


LIES = Shard(grid=(2, 2))


def piece(first: int, count: int) -> dict[str, torch.Tensor]:
    values = torch.arange(first, first + count, dtype=torch.float16)[:, None, None].repeat(1, 4, 3)
    return {"values": values, "pooled": values[:, 0]}


@pytest.fixture
def plan(known):
    return replace(known.plan, text=None)


def test_a_foreign_plan_is_refused_with_both_values(known):
    folder, plan = known.bank.folder, known.plan
    assert begin(folder, plan) is True
    foreign = replace(plan, image=replace(plan.image, fingerprint="cc" * 32))
    with pytest.raises(BankError, match=rf"image_token_key = {plan.key('image')}.*{foreign.key('image')}.*--out"):
        begin(folder, foreign)
    with pytest.raises(BankError, match=r"text\.max_tokens = 9, but got .*text\.max_tokens = 8"):
        begin(folder, replace(plan, text=replace(plan.text, max_tokens=8)))
    with pytest.raises(BankError, match=r"expected precision = bf16, but got precision = fp32.*or delete"):
        begin(folder, replace(plan, precision="fp32"))
    with pytest.raises(BankError, match="rows_sha256"):
        begin(folder, replace(plan, rows_sha256="s" * 64))


def test_the_same_weights_under_another_name_go_on(known):
    assert begin(known.bank.folder, replace(known.plan, image=replace(known.plan.image, name="alias"))) is True
    with pytest.raises(BankError, match=r"expected text_token_key = \w{64}, but got text_token_key = None"):
        begin(known.bank.folder, replace(known.plan, text=None))


def test_a_folder_of_other_files_is_refused(tmp_path, plan):
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(BankError, match="a bank or an empty folder"):
        begin(tmp_path, plan)


def test_only_shards_that_are_not_whole_are_pending(tmp_path, plan):
    folder = tmp_path / "new"
    begin(folder, plan)
    for number in range(3):
        write_image_shard(folder, number, [piece(4 * number, 4)], LIES)
    assert pending_shards(folder, "image", count=14, shard_size=4) == [(3, range(12, 14))]
    (folder / "shards/image-00000.json").unlink()
    (folder / "shards/image-00001.safetensors").write_bytes(b"cut")
    pending = pending_shards(folder, "image", count=14, shard_size=4)
    assert pending == [(0, range(4)), (1, range(4, 8)), (3, range(12, 14))]


def test_rejected_images_take_their_rows_along_and_numbers_close_up(tmp_path, plan):
    folder = tmp_path / "new"
    begin(folder, plan)
    write_image_shard(folder, 0, [], Shard(rejects=tuple((n, "black") for n in range(4))))
    write_image_shard(folder, 1, [piece(4, 1), piece(6, 2)], replace(LIES, rejects=((5, "torn"),)))
    rows = pd.DataFrame({"row": range(10), "image": [f"{n}.png" for n in range(10)], "text_index": -1})
    rows["image_index"] = [7, 6, 5, 4, 3, 2, 1, 0, -1, 6]
    info = seal(folder, plan, FACTS, rows, rejects=[{"row": 99, "reason": "no path"}])
    bank = Bank.open(folder)
    assert bank.rows["row"].tolist() == [0, 1, 3, 8, 9]
    assert bank.image_tokens(bank.subset(None)).values[:, 0, 0].tolist() == [7, 6, 4, 0, 6]
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert rejects[:2] == [
        {"row": 99, "image": None, "reason": "no path"},
        {"row": 2, "image": "2.png", "reason": "torn"},
    ]
    assert [reject["row"] for reject in rejects] == [99, 2, 4, 5, 6, 7]
    assert info.rejected == 6
    assert info.images.count == 3
    assert "6 rows were left out" in info.notes[0]


def test_nothing_left_is_an_error_and_no_bank(tmp_path, plan):
    folder = tmp_path / "new"
    begin(folder, plan)
    write_image_shard(folder, 0, [], Shard(rejects=((0, "torn"),)))
    rows = pd.DataFrame({"row": [0], "image": ["0.png"], "image_index": [0], "text_index": [-1]})
    with pytest.raises(BankError, match="1 rejected rows, the first: torn"):
        seal(folder, plan, FACTS, rows)
    assert not (folder / "bank.json").exists()


def test_a_small_disk_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 10**9))
    require_space(tmp_path / "a" / "b", 2 * 10**9)
    with pytest.raises(BankError, match=r"5\.00 GB of free disk, but got 2\.00 GB"):
        require_space(tmp_path / "a" / "b", 5 * 10**9)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError, match="division"), written_whole(path) as temporary:
        temporary.write_text(f"new {1 / 0}")
    assert path.read_text() == "old"


def test_the_token_key_hears_everything_that_changes_the_numbers(known):
    plan: Plan = known.plan
    smaller = replace(plan.image.preprocessing, image_size_px=(4, 4))
    others = [
        replace(plan, layout="pooled"),
        replace(plan, dtype="float32"),
        replace(plan, image=replace(plan.image, fingerprint="cc" * 32)),
        replace(plan, image=replace(plan.image, preprocessing=smaller)),
        replace(plan, image=replace(plan.image, lora="dd" * 32)),
        replace(plan, image=replace(plan.image, mask_seeds=(1,))),
        replace(plan, image=replace(plan.image, plane="axial")),
        replace(plan, image=replace(plan.image, plane="axial", window=(40.0, 400.0))),
    ]
    keys = {plan.key("image"), *(other.key("image") for other in others)}
    assert len(keys) == 1 + len(others)
    assert replace(plan, image=replace(plan.image, name="alias")).key("image") == plan.key("image")


def test_token_keys_of_pictures_and_texts_are_those_from_before_there_were_volumes_and_masked_views(known):
    for kind, source in (("image", known.plan.image), ("text", known.plan.text)):
        later = ("plane", "window", "mask_ratio")
        parts = {name: value for name, value in asdict(source).items() if name not in later}
        parts = {name: value for name, value in parts.items() if name not in ("name", "parameters")}
        parts |= {"layout": "all", "dtype": "float16", "schema": 1}
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        assert known.plan.key(kind) == hashlib.sha256(text.encode()).hexdigest()


def test_banks_and_shards_from_before_there_were_volumes_open(known):
    folder = known.bank.folder
    facts = json.loads((folder / "bank.json").read_text())
    for name in ("taps", "pixels", "plane", "window"):
        del facts["images"][name]
    for shard in facts["shards"]:
        del shard["slices"], shard["taps"]
    (folder / "bank.json").write_text(json.dumps(facts))
    assert Bank.open(folder).info == known.bank.info
    record = folder / "shards/image-00001.json"
    shard = json.loads(record.read_text())
    del shard["slices"], shard["taps"]
    record.write_text(json.dumps(shard))
    assert pending_shards(folder, "image", count=10, shard_size=4) == []
