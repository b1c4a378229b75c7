"""Taps and pixels beside the tokens of pictures, with networks of odd grids and with pyramids."""

import json
from dataclasses import replace

import pytest
import timm
import torch

from adaptmed.bank import Layout, StoredTap, verify
from adaptmed.data.images import from_bytes, prepare, read_image
from adaptmed.embedding.embed import embed, estimate_size
from adaptmed.encoders._timm import TimmImageEncoder
from adaptmed.errors import BankError, InputError
from tests.tiny_encoders import EXACT, PatchEncoder, make_manifest

OPTIONS = replace(EXACT, taps=3, pixels=True)
SMALL = {"depth": 4, "embed_dim": 16, "num_heads": 2, "dynamic_img_size": True}
ENCODERS = {
    "patch-14": lambda: timm_encoder("vit_small_patch14_reg4_dinov2", 70, **SMALL),
    "pyramid": lambda: timm_encoder("test_efficientnet", 72),
}


def timm_encoder(architecture, size_px, **options):
    module = timm.create_model(architecture, num_classes=0, **options)
    return TimmImageEncoder(module, name=f"timm:{architecture}", image_size_px=size_px)


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "data")


@pytest.mark.parametrize("name", ENCODERS)
def test_stored_taps_are_those_of_the_encoder_but_the_deepest(manifest, tmp_path, name):
    encoder = ENCODERS[name]()
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=replace(OPTIONS, layout=Layout("grid", 2)))
    bare = embed(manifest, encoder, None, tmp_path / "bare", options=replace(EXACT, layout=Layout("grid", 2)))
    items = [11, 0, 4]
    pictures = [prepare(read_image(manifest.root / f"{item}.png"), encoder.preprocessing) for item in items]
    with torch.inference_mode():
        expected = encoder.taps(torch.stack(pictures), 3)
    found = bank.item_taps(items)
    assert len(found) == 2
    for tap, other in zip(found, expected[:-1], strict=True):
        assert torch.allclose(tap, other, rtol=1e-4, atol=1e-4)
    shapes = [tuple(tap.shape[1:]) for tap in found]
    assert bank.info.images.taps == tuple(StoredTap(shape[0], shape[1:]) for shape in shapes)
    assert shapes == {"patch-14": [(16, 5, 5)] * 2, "pyramid": [tuple(t.shape[1:]) for t in expected[:-1]]}[name]
    assert (name == "pyramid") == (shapes[0][1] > shapes[1][1])
    assert torch.equal(bank.item_tokens(items).values, bare.item_tokens(items).values)
    assert bank.info.images.token_key == bare.info.images.token_key
    assert verify(bank.folder) == []


def test_pixels_give_the_encoder_s_input_back(manifest, tmp_path):
    encoder = PatchEncoder()
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=OPTIONS)
    pictures = [prepare(read_image(manifest.root / f"{item}.png"), encoder.preprocessing) for item in range(12)]
    assert bank.item_pixels(range(12)).dtype == torch.uint8
    again = from_bytes(bank.item_pixels(range(12)), encoder.preprocessing)
    assert torch.allclose(again, torch.stack(pictures), rtol=0, atol=1e-6), "exact, for the pictures are of 8 bits"
    assert bank.items_of(7) == range(7, 8)
    assert not bank.holds_volumes


def test_what_a_bank_lacks_is_named(manifest, tmp_path):
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=EXACT)
    with pytest.raises(BankError, match=r"holds taps, but got none of them.*--taps 4"):
        bank.item_taps([0])
    with pytest.raises(BankError, match=r"holds pixels, but got none of them.*--pixels"):
        bank.item_pixels([0])


def test_another_choice_is_refused_but_plans_from_before_are_taken_as_without(manifest, tmp_path):
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=EXACT)
    plan = json.loads((bank.folder / "plan.json").read_text())
    for name in ("taps", "pixels"):
        del plan[name]
    for name in ("plane", "window"):
        del plan["image"][name]
    (bank.folder / "plan.json").write_text(json.dumps(plan))
    assert len(embed(manifest, PatchEncoder(), None, bank.folder, options=EXACT)) == 12
    with pytest.raises(BankError, match=r"taps = 0, pixels = False, but got taps = 3, pixels = True"):
        embed(manifest, PatchEncoder(), None, bank.folder, options=OPTIONS)


def test_more_taps_than_there_are(manifest, tmp_path):
    with pytest.raises(InputError, match="`count`: expected between 1 and 4"):
        embed(manifest, ENCODERS["patch-14"](), None, tmp_path / "bank", options=replace(OPTIONS, taps=5))
    assert not (tmp_path / "bank").exists()


def test_the_size_counts_taps_and_pixels(manifest, tmp_path):
    options = replace(OPTIONS, dtype="float16", shard_size=12)
    size = estimate_size(manifest, PatchEncoder(), None, options=options)
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=options)
    assert size.slices is None
    assert sum(shard.size_bytes for shard in bank.info.shards) == pytest.approx(size.total_bytes, rel=0.2)


def test_a_tap_outside_float16_is_refused(manifest, tmp_path):
    with pytest.raises(BankError, match="bfloat16"):
        embed(manifest, PatchEncoder(gain=4e4), None, tmp_path / "bank", options=replace(OPTIONS, dtype="float16"))
