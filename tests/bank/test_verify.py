import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptmed.bank import Shard, verify
from adaptmed.bank.write import write_image_shard
from adaptmed.embedding.embed import embed
from adaptmed.errors import BankError
from adaptmed.files import sha256_of
from tests.tiny_encoders import EXACT, PatchEncoder, make_manifest


def test_a_sound_bank_has_no_damage(known):
    assert verify(known.bank.folder) == []


@pytest.mark.parametrize("name", ["shards/image-00001.safetensors", "shards/text-00000.safetensors", "rows.parquet"])
def test_one_flipped_bit_is_found_by_name(known, name):
    path = known.bank.folder / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    (damage,) = verify(known.bank.folder)
    assert damage.startswith(f"{name}: expected sha256")
    assert path.read_bytes() == bytes(content)


def test_a_missing_shard_is_found(known):
    (known.bank.folder / "shards/text-00001.safetensors").unlink()
    assert verify(known.bank.folder) == ["shards/text-00001.safetensors: missing"]


def test_a_shard_of_other_shape_or_dtype_is_found_behind_a_right_hash(known):
    folder = known.bank.folder
    for values, fault in ((torch.zeros(4, 6, 5), "got torch.float32"), (torch.zeros(4, 6, 5).half(), "shapes")):
        write_image_shard(folder, 0, [{"values": values, "pooled": values[:, 0]}], Shard(grid=(2, 3), prefix=1))
        facts = json.loads((folder / "bank.json").read_text())
        facts["shards"][0]["sha256"] = sha256_of(folder / "shards/image-00000.safetensors")
        (folder / "bank.json").write_text(json.dumps(facts))
        (damage,) = verify(folder)
        assert damage.startswith("shards/image-00000.safetensors")
        assert fault in damage


def test_a_shard_of_a_modality_that_the_facts_lack_is_found(known):
    facts = json.loads((known.bank.folder / "bank.json").read_text())
    (known.bank.folder / "bank.json").write_text(json.dumps(facts | {"texts": None}))
    assert {damage.partition("/text-")[2][6:] for damage in verify(known.bank.folder)} == {
        "safetensors: expected a shard of what bank.json describes, but got another"
    }


def test_a_damaged_tap_is_found(tmp_path):
    bank = embed(make_manifest(tmp_path), PatchEncoder(), None, tmp_path / "bank", options=replace(EXACT, taps=3))
    shard, record = (bank.folder / f"shards/image-00001.{ending}" for ending in ("safetensors", "json"))
    tensors = load_file(shard)
    for damaged, fault in (
        ({"tap1": tensors["tap1"][:, :, :9].clone()}, "shapes"),
        ({"tap0": tensors["tap0"].half()}, "tap0"),
    ):
        save_file(tensors | damaged, shard)
        facts = json.loads((bank.folder / "bank.json").read_text())
        facts["shards"][1]["sha256"] = sha256_of(shard)
        (bank.folder / "bank.json").write_text(json.dumps(facts))
        (damage,) = verify(bank.folder)
        assert damage.startswith("shards/image-00001.safetensors: expected")
        assert fault in damage
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    (damage,) = verify(bank.folder)
    assert damage.startswith("shards/image-00001.safetensors: expected sha256")
    assert record.exists()


def test_an_unfinished_bank_cannot_be_verified(known):
    (known.bank.folder / "bank.json").unlink()
    with pytest.raises(BankError, match=r"no bank\.json"):
        verify(known.bank.folder)
