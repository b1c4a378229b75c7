"""Volumes in a bank: slice by slice, in order, whole or not at all."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed.bank import Layout, verify
from adaptmed.data.volumes.reading import as_grey, read_volume, slices_to_input
from adaptmed.data.volumes.stored import slices_from_store
from adaptmed.embedding.embed import EmbedOptions, embed, estimate_size
from adaptmed.errors import BankError, InputError
from adaptmed.pretraining.pretrain import pretrain
from tests.short_training import METHOD
from tests.tiny_encoders import EXACT, PatchEncoder, WordEncoder, make_manifest, make_table
from tests.volume_files import DEPTHS, make_volumes

VOLUMES = replace(EXACT, shard_size=2, taps=3, window=(-100.0, 1200.0))


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "data", make_volumes(tmp_path / "data"))


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def slices_of(path, encoder, options=VOLUMES):
    grey = as_grey(read_volume(path, options.plane), options.window)
    return slices_to_input(grey, options.preprocessing_of(encoder, volumes=True))


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_every_slice_is_what_the_encoder_gives(manifest, tmp_path, plane):
    encoder, options = PatchEncoder(), replace(VOLUMES, plane=plane)
    bank = embed(manifest, encoder, WordEncoder(), tmp_path / "bank", options=options)
    assert bank.holds_volumes
    assert (bank.info.images.plane, bank.info.images.window, bank.info.images.pixels) == (plane, (-100.0, 1200.0), True)
    seen = 0
    for row, name in enumerate(manifest.frame["image"]):
        pixels = slices_of(manifest.root / name, encoder, options)
        items = bank.items_of(row)
        assert items == range(seen, seen + len(pixels))
        assert bank.rows["slices"].iloc[row] == len(pixels)
        tokens, taps = bank.item_tokens(items), bank.item_taps(items)
        with torch.inference_mode():
            alone = [encoder(picture[None]) for picture in pixels]
            expected = encoder.taps(pixels, 3)
        assert torch.allclose(tokens.values, torch.cat([one.values for one in alone]), atol=1e-6)
        assert torch.allclose(tokens.pooled, torch.cat([one.pooled for one in alone]), atol=1e-6)
        assert (tokens.grid, tokens.prefix, bool(tokens.valid.all())) == ((10, 10), 1, True)
        assert all(torch.allclose(tap, found, atol=1e-6) for tap, found in zip(taps, expected[:-1], strict=True))
        again = slices_from_store(*bank.item_slices(items), bank.images.preprocessing)
        assert (again - pixels).abs().max() <= 0.8 / 255 / min(encoder.preprocessing.std) + 1e-5
        seen += len(pixels)
    assert bank.info.images.count == seen
    assert plane != "axial" or seen == sum(DEPTHS)
    assert [len(shard.slices) for shard in bank.info.shards_of("image")] == [2, 2, 2]
    assert len(bank.info.shards_of("text")) == 1
    assert bank.text_tokens(np.array([0, 2])).valid.any(1).tolist() == [True, False]
    assert verify(bank.folder) == []


def test_items_of_several_volumes_come_in_the_order_asked(manifest, tmp_path):
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=VOLUMES)
    items = [14, -1, 0, 21, 5, 14]
    tokens, taps, (pixels, sizes) = bank.item_tokens(items), bank.item_taps(items), bank.item_slices(items)
    assert tokens.valid.all(1).tolist() == [True, False, True, True, True, True]
    for place, item in enumerate(items):
        if item >= 0:
            assert torch.equal(tokens.values[place], bank.item_tokens([item]).values[0])
            assert torch.equal(taps[1][place], bank.item_taps([item])[1][0])
            alone, (size,) = bank.item_slices([item])
            assert torch.equal(pixels[place, : size.prod()], alone[0])
            assert torch.equal(sizes[place], size)
    assert tokens.values[1].eq(0).all()
    assert pixels[1].eq(0).all()
    assert sizes[1].tolist() == [0, 0]


def test_a_damaged_volume_takes_its_rows_along_and_comes_in_when_mended(manifest, tmp_path):
    fresh = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "fresh", options=VOLUMES)
    whole = (manifest.root / "2.nii.gz").read_bytes()
    (manifest.root / "2.nii.gz").write_bytes(whole[:100])
    out = tmp_path / "bank"
    bank = embed(manifest, PatchEncoder(), WordEncoder(), out, options=VOLUMES)
    (reject,) = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert reject["image"] == "2.nii.gz"
    assert "2.nii.gz" in reject["reason"]
    assert bank.rows["image"].tolist() == [name for name in manifest.frame["image"] if name != "2.nii.gz"]
    for row, other in enumerate([0, 1, 3, 4, 5]):
        found, expected = bank.item_tokens(bank.items_of(row)), fresh.item_tokens(fresh.items_of(other))
        assert torch.equal(found.values, expected.values)
        kept, wanted = bank.item_slices(bank.items_of(row)), fresh.item_slices(fresh.items_of(other))
        assert all(torch.equal(one, two) for one, two in zip(kept, wanted, strict=True))
    assert verify(out) == []
    with pytest.raises(InputError, match=r"2\.nii\.gz"):
        embed(manifest, PatchEncoder(), WordEncoder(), out, options=replace(VOLUMES, strict=True))
    (manifest.root / "2.nii.gz").write_bytes(whole)
    encoder = PatchEncoder()
    embed(manifest, encoder, WordEncoder(), out, options=VOLUMES)
    assert encoder.seen == 7 + 3 + 1  # the shard that lacked it, and the blank image for the size
    assert files_of(out) == files_of(fresh.folder)


def test_a_shard_without_a_readable_volume(manifest, tmp_path):
    (manifest.root / "2.nii.gz").unlink()
    (manifest.root / "3.nii").unlink()
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=VOLUMES)
    assert [shard.slices for shard in bank.info.shards] == [(5, 2), (), (1, 4)]
    assert [bank.items_of(row) for row in range(4)] == [range(5), range(5, 7), range(7, 8), range(8, 12)]
    assert bank.item_tokens([7]).valid.all()
    assert verify(bank.folder) == []


def test_a_volume_in_several_rows_and_a_row_without_one(tmp_path):
    table = make_volumes(tmp_path / "data")
    table["image"] = ["0.nii", "3.nii", "0.nii", None, "5.nii", "../data/3.nii"]
    bank = embed(make_manifest(tmp_path / "data", table), PatchEncoder(), WordEncoder(), tmp_path / "bank")
    kept = bank.rows["image"].tolist()
    items = [bank.items_of(row) for row in range(len(bank))]
    assert items[kept.index("0.nii")] == range(5)
    assert items[kept.index("")] == range(0)
    assert items[kept.index("5.nii")] == range(8, 12)
    assert items[-1] == items[kept.index("3.nii")] == range(5, 8)
    assert bank.info.images.count == 12


def test_an_interrupted_bank_goes_on_byte_for_byte(manifest, tmp_path):
    def stop(kind, done, _total):
        if (kind, done) == ("image", 3):
            raise RuntimeError("the power is gone")

    out = tmp_path / "bank"
    with pytest.raises(RuntimeError, match="the power is gone"):
        embed(manifest, PatchEncoder(), WordEncoder(), out, options=VOLUMES, progress=stop)
    assert not (out / "bank.json").exists()
    encoder = PatchEncoder()
    embed(manifest, encoder, WordEncoder(), out, options=VOLUMES)
    assert encoder.seen == sum(DEPTHS[2:]) + 1
    embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "fresh", options=VOLUMES)
    assert files_of(out) == files_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taps": 0}, "expected taps = 3, but got taps = 0"),
        ({"pixels": False}, "expected pixels = True, own_size = True, but got pixels = False, own_size = False"),
        ({"plane": "coronal"}, r"image\.plane = axial.*but got .*image\.plane = coronal"),
        ({"window": None}, r"image\.window = \[-100\.0, 1200\.0\].*but got .*image\.window = None"),
    ],
)
def test_another_choice_is_refused_with_both_values(manifest, tmp_path, change, words):
    options = replace(VOLUMES, shard_size=6)
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=options)
    with pytest.raises(BankError, match=words):
        embed(manifest, PatchEncoder(), None, bank.folder, options=replace(options, **change))


def test_pictures_beside_volumes_are_refused_by_name_and_count(tmp_path):
    volumes = make_volumes(tmp_path / "data")
    pictures = make_table(tmp_path / "data", rows=4)
    manifest = make_manifest(tmp_path / "data", volumes.merge(pictures, how="outer"))
    with pytest.raises(InputError, match=r"4 pictures \(0\.png, \.\.\.\) and 6 volumes \(0\.nii, \.\.\.\)"):
        embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=EXACT)
    assert not (tmp_path / "bank").exists()


def test_a_link_keeps_the_ending_that_says_nifti(tmp_path):
    table = make_volumes(tmp_path / "data")
    (tmp_path / "data/3.nii").rename(tmp_path / "blob")
    (tmp_path / "data/3.nii").symlink_to(tmp_path / "blob")
    bank = embed(make_manifest(tmp_path / "data", table), PatchEncoder(), None, tmp_path / "bank", options=VOLUMES)
    assert bank.info.rejected == 0
    assert len(bank.items_of(3)) == 3


def test_a_missing_series_beside_volumes_is_rejected_alone(tmp_path):
    table = make_volumes(tmp_path / "data")
    table.loc[0, "image"] = "gone"
    bank = embed(make_manifest(tmp_path / "data", table), PatchEncoder(), None, tmp_path / "bank")
    assert (bank.holds_volumes, len(bank), bank.info.rejected) == (True, 5, 1)


@pytest.mark.parametrize("change", [{"plane": "coronal"}, {"window": (40.0, 400.0)}])
def test_pictures_have_no_plane_and_no_window(tmp_path, change):
    with pytest.raises(InputError, match=f"`{next(iter(change))}`: expected volumes, but got none"):
        embed(make_manifest(tmp_path), PatchEncoder(), None, tmp_path / "bank", options=replace(EXACT, **change))


@pytest.mark.parametrize("read", ["image_tokens", "batch", "shard_of"])
def test_readers_of_pictures_are_refused(manifest, tmp_path, read):
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=VOLUMES)
    with pytest.raises(BankError, match=r"expected a bank of pictures, but got a bank of volumes.*--task segmentation"):
        getattr(bank, read)(np.array([0, 1]))


def test_pretraining_on_volumes_is_refused(manifest, tmp_path):
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=VOLUMES)
    with pytest.raises(BankError, match="expected a bank of pictures, but got a bank of volumes"):
        pretrain(bank, METHOD, tmp_path / "run", device="cpu")


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_the_size_is_that_of_all_slices_with_taps_and_pixels(manifest, tmp_path, plane):
    options = replace(VOLUMES, layout=Layout("grid"), dtype="float16", plane=plane, shard_size=6)
    size = estimate_size(manifest, PatchEncoder(), WordEncoder(), options=options)
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=options)
    assert (size.images, size.slices) == (6, bank.info.images.count)
    assert sum(shard.size_bytes for shard in bank.info.shards) == pytest.approx(size.total_bytes, rel=0.2)


@pytest.mark.parametrize("taps", [-1, 1])
def test_a_single_tap_would_store_nothing(taps):
    with pytest.raises(InputError, match=f"`taps`: expected 0 or at least 2, but got {taps}"):
        EmbedOptions(taps=taps)


@pytest.mark.parametrize("window", [(40.0, 0.0), (float("nan"), 10.0)])
def test_a_window_has_a_width(window):
    with pytest.raises(InputError, match=r"`window`: expected \(level, width\) with a width above 0"):
        EmbedOptions(window=window)
