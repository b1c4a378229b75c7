"""Pixels of volumes: kept once at their own size, or as the encoder's input by banks from before."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adaptmed.bank import Bank, verify
from adaptmed.data.images import from_bytes, to_bytes
from adaptmed.data.volumes.reading import slices_to_input
from adaptmed.data.volumes.stored import slices_from_store, slices_to_store, stored_pixels
from adaptmed.embedding import embed as module
from adaptmed.embedding.embed import embed, estimate_size
from adaptmed.errors import BankError
from adaptmed.files import sha256_of
from adaptmed.tasks.segmentation.reading import Wanted, WindowReader
from adaptmed.types import Preprocessing
from tests.tiny_encoders import EXACT, PatchEncoder, make_manifest
from tests.volume_files import DEPTHS, make_volumes, write_nifti

VOLUMES = replace(EXACT, shard_size=2)
PIXELS = Wanted(tokens=False, taps=False, pixels=True)
FITS = st.sampled_from(["crop", "pad", "squash"])


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "data", make_volumes(tmp_path / "data"))


@pytest.fixture
def before(monkeypatch):
    """Make banks as they were when the pixels of volumes were the encoder's input."""

    def plan_before(*arguments):
        return replace(plan_of(*arguments), own_size=False)

    plan_of = module.plan_of
    return partial(monkeypatch.setattr, module, "plan_of", plan_before)


def facts_of(size, fit, interpolation="bicubic"):
    return Preprocessing(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation, 0.9, fit)


@given(st.integers(3, 40), st.integers(3, 40), FITS, st.sampled_from(["bicubic", "bilinear"]), st.integers(0, 99))
def test_a_slice_comes_back_within_the_stated_rounding(height, width, fit, interpolation, seed):
    facts = facts_of((24, 20), fit, interpolation)
    grey = np.random.default_rng(seed).random((2, height, width), dtype=np.float32)
    inputs = slices_to_input(grey, facts)
    stored = slices_to_store(grey, inputs, facts)
    assert stored.shape == (2, stored_pixels((height, width), facts))
    again = slices_from_store(stored, torch.tensor([[height, width]] * 2), facts)
    steps = (again - inputs).abs() * 255 * torch.tensor(facts.std)[:, None, None]
    assert steps.max() <= 0.8
    if height * width > 24 * 20:
        assert steps.max() <= 0.501
        assert torch.equal(again, from_bytes(to_bytes(inputs, facts), facts))


def test_slices_of_several_sizes_are_read_together(tmp_path):
    table = make_volumes(tmp_path / "data")
    large = np.random.default_rng(0).integers(0, 900, (90, 70, 2)).astype(np.int16)
    write_nifti(tmp_path / "data/0.nii", large)
    bank = embed(make_manifest(tmp_path / "data", table), PatchEncoder(), None, tmp_path / "bank", options=VOLUMES)
    planes, sizes = bank.item_slices([0, 2, 9])
    assert sizes.tolist() == [[70, 90], [37, 39], [38, 38]]
    assert planes.shape == (3, 40 * 40), "a slice with more pixels than the input is kept as it lies there"
    together = WindowReader(bank, PIXELS)(np.array([0, 3]), np.array([[0, 1], [2, 0]])).pixels
    assert together.shape == (4, 3, 40, 40)
    for row, place, offset in ((0, 1, 1), (3, 2, 2), (3, 3, 0)):
        alone = WindowReader(bank, PIXELS)(np.array([row]), np.array([[offset]])).pixels
        assert torch.equal(together[place], alone[0])
    assert verify(bank.folder) == []


def test_pixels_at_their_own_size_are_what_the_decoder_saw_before(manifest, tmp_path, before):
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=VOLUMES)
    before()
    old = embed(manifest, PatchEncoder(), None, tmp_path / "old", options=VOLUMES)
    assert (bank.images.own_size, old.images.own_size) == (True, False)
    assert bank.images.token_key == old.images.token_key
    std = torch.tensor(old.images.preprocessing.std)[:, None, None]
    for row, depth in enumerate(DEPTHS):
        offsets = np.arange(depth)[None]
        new, seen = (WindowReader(one, PIXELS)(np.array([row]), offsets).pixels for one in (bank, old))
        assert ((new - seen).abs() * 255 * std).max() <= 1.3
    sizes = [sum(shard.size_bytes for shard in one.info.shards) for one in (bank, old)]
    assert sizes[1] - sizes[0] > 0.6 * 3 * 40 * 40 * sum(DEPTHS)


def test_a_bank_from_before_opens_and_goes_on_as_it_was_begun(manifest, tmp_path, before, monkeypatch):
    before()
    old = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=VOLUMES)
    whole = {path: path.read_bytes() for path in old.folder.rglob("*") if path.is_file()}
    for name in ("plan.json", "bank.json"):
        facts = json.loads((old.folder / name).read_text())
        del (facts if name == "plan.json" else facts["images"])["own_size"]
        (old.folder / name).write_text(json.dumps(facts))
    monkeypatch.undo()  # what asks now keeps slices at their own size
    assert Bank.open(old.folder).info == old.info
    assert verify(old.folder) == []
    assert old.item_pixels([0]).shape == (1, 3, 40, 40)
    (old.folder / "bank.json").unlink()
    (old.folder / "shards/image-00001.json").unlink()
    embed(manifest, PatchEncoder(), None, old.folder, options=VOLUMES)
    assert all(path.read_bytes() == content for path, content in whole.items() if path.suffix == ".safetensors")
    assert Bank.open(old.folder).info == old.info


def test_the_reader_of_the_other_form_is_named(manifest, tmp_path, before):
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=VOLUMES)
    with pytest.raises(BankError, match=r"size of the encoder's input, but got pixels at their own.*Bank\.item_slices"):
        bank.item_pixels([0])
    before()
    old = embed(manifest, PatchEncoder(), None, tmp_path / "old", options=VOLUMES)
    with pytest.raises(BankError, match=r"their own size, but got pixels at the size.*Bank\.item_pixels"):
        old.item_slices([0])
    bare = embed(manifest, PatchEncoder(), None, tmp_path / "bare", options=replace(VOLUMES, pixels=False))
    with pytest.raises(BankError, match=r"holds pixels, but got none of them.*--pixels"):
        bare.item_slices([0])


def test_a_damaged_size_is_found(manifest, tmp_path):
    folder = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=VOLUMES).folder
    shard = folder / "shards/image-00001.safetensors"
    tensors = load_file(shard)
    for damage, fault in (
        ({"pixel_sizes": tensors["pixel_sizes"].long()}, "expected int32"),
        ({"pixels": tensors["pixels"][:-1].clone()}, "expected shapes"),
        ({"pixel_offsets": tensors["pixel_offsets"][:-1].clone()}, "expected shapes"),
    ):
        save_file(tensors | damage, shard)
        facts = json.loads((folder / "bank.json").read_text())
        facts["shards"][1]["sha256"] = sha256_of(shard)
        (folder / "bank.json").write_text(json.dumps(facts))
        (found,) = verify(folder)
        assert found.startswith(f"shards/image-00001.safetensors: {fault}")


def test_the_size_counts_slices_at_their_own_size(manifest, tmp_path):
    options = replace(VOLUMES, shard_size=6)
    size = estimate_size(manifest, PatchEncoder(), None, options=options)
    bank = embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=options)
    assert sum(shard.size_bytes for shard in bank.info.shards) == pytest.approx(size.total_bytes, rel=0.01)
