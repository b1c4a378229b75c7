"""Banks of codes: half a step from what the encoder gave, resumed and verified like any other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adaptmed.bank import Layout, verify
from adaptmed.bank.quantised import LARGEST
from adaptmed.embedding.embed import EmbedOptions, embed, estimate_size
from adaptmed.errors import BankError, InputError
from adaptmed.files import sha256_of
from tests.tiny_encoders import EXACT, PatchEncoder, WordEncoder, make_manifest, make_table
from tests.tiny_models import vit

SMALL = replace(EXACT, dtype="int8", taps=3)
CODES = pytest.mark.parametrize("dtype", ["int8", "int4"])
ITEMS = [11, -1, 0, 4, 4]


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "data")


def both(manifest, folder, encoder=None, options=SMALL):
    """The same bank in float32 and in codes."""
    encoder, words = encoder or PatchEncoder(), WordEncoder()
    exact = embed(manifest, encoder, words, folder / "exact", options=replace(options, dtype="float32"))
    return exact, embed(manifest, encoder, words, folder / "small", options=options)


def within_half_a_step(found, expected, over, dtype="int8"):
    step = expected.abs().amax(over, keepdim=True) / LARGEST[dtype] * 1.01
    return bool(((found - expected).abs() <= 0.5 * step + 1e-12).all())


@CODES
def test_everything_comes_back_within_half_a_step(manifest, tmp_path, dtype):
    exact, small = both(manifest, tmp_path, options=replace(SMALL, dtype=dtype))
    found, expected = small.item_tokens(ITEMS), exact.item_tokens(ITEMS)
    assert found.values.dtype == found.pooled.dtype == torch.float32
    assert within_half_a_step(found.values, expected.values, 1, dtype)
    assert not torch.equal(found.values, expected.values)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.valid, expected.valid)
    assert found.values[1].eq(0).all()
    for tap, other in zip(small.item_taps(ITEMS), exact.item_taps(ITEMS), strict=True):
        assert within_half_a_step(tap, other, (2, 3), dtype)
    rows = np.array([7, 0, 2, 3])
    text, wanted = small.text_tokens(rows), exact.text_tokens(rows)
    assert torch.equal(text.valid, wanted.valid)
    assert within_half_a_step(text.values, wanted.values, 1, dtype)
    assert text.values[~text.valid].eq(0).all()
    assert (small.images.width, small.images.taps) == (exact.images.width, exact.images.taps)
    assert small.texts.width == exact.texts.width
    assert verify(small.folder) == []
    assert small.item_tokens(ITEMS, torch.bfloat16).values.dtype == torch.bfloat16
    batch = small.batch(rows, torch.float16)
    assert {side.values.dtype for side in (batch.image, batch.text)} == {torch.float16}


@CODES
def test_masked_views_come_back_within_half_a_step(manifest, tmp_path, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = vit("vit_tiny_patch16_224", patch_size=8)
    options = replace(SMALL, layout=Layout("grid", 7), taps=0, masked_views=2, dtype=dtype)
    exact, small = both(manifest, tmp_path, encoder, options)
    rows, views = np.array([11, 0, 4, 0]), np.array([1, 0, 1, 1])
    found, expected = small.masked_tokens(rows, views), exact.masked_tokens(rows, views)
    seen = expected.valid
    assert within_half_a_step(found.values, expected.values, 1, dtype)
    assert found.values.dtype == found.pooled.dtype == torch.float32
    assert torch.equal(found.valid, seen)
    assert found.values[~seen].eq(0).all()
    assert verify(small.folder) == []
    size = estimate_size(manifest, encoder, WordEncoder(), options=replace(options, shard_size=12))
    assert sum(shard.size_bytes for shard in small.info.shards) == pytest.approx(size.total_bytes, rel=0.2)


def test_codes_are_mapped_beside_their_scales(manifest, tmp_path):
    _, small = both(manifest, tmp_path)
    small.item_tokens([0])
    name = f"{small.info.shards[0].file}.safetensors"
    assert [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    with safe_open(small.folder / name, framework="pt") as file:
        found = {name: (file.get_tensor(name).dtype, file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert found == {
        "values": (torch.int8, (4, 101, 6)),
        "values_scale": (torch.bfloat16, (4, 1, 6)),
        "pooled": (torch.float16, (4, 6)),
        "tap0": (torch.int8, (4, 6, 10, 10)),
        "tap0_scale": (torch.bfloat16, (4, 6, 1, 1)),
        "tap1": (torch.int8, (4, 6, 10, 10)),
        "tap1_scale": (torch.bfloat16, (4, 6, 1, 1)),
    }


def test_numbers_do_not_hang_on_shards_and_neighbours(manifest, tmp_path):
    _, small = both(manifest, tmp_path)
    options = replace(SMALL, shard_size=3, batch_size=5)
    other = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "other", options=options)
    table = make_table(tmp_path / "data").iloc[[9, 4, 7]]
    part = embed(make_manifest(tmp_path / "data", table), PatchEncoder(), None, tmp_path / "part", options=SMALL)
    whole = small.item_tokens(range(12)).values
    torch.testing.assert_close(other.item_tokens(range(12)).values, whole, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(part.item_tokens(range(3)).values, whole[[9, 4, 7]], rtol=1e-3, atol=1e-5)


def test_an_interrupted_bank_goes_on_byte_for_byte(manifest, tmp_path):
    def stop(kind, done, _total):
        if (kind, done) == ("image", 7):
            raise RuntimeError("the power is gone")

    _, small = both(manifest, tmp_path)
    out = tmp_path / "again"
    with pytest.raises(RuntimeError, match="the power is gone"):
        embed(manifest, PatchEncoder(), WordEncoder(), out, options=SMALL, progress=stop)
    embed(manifest, PatchEncoder(), WordEncoder(), out, options=SMALL)
    for path in small.folder.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (out / path.relative_to(small.folder)).read_bytes()


def test_another_dtype_is_another_bank(manifest, tmp_path):
    exact, small = both(manifest, tmp_path)
    assert exact.images.token_key != small.images.token_key
    assert exact.texts.token_key != small.texts.token_key
    assert small.info.dtype == "int8"
    with pytest.raises(BankError, match=r"expected .*dtype = int8.*but got .*dtype = float16"):
        embed(manifest, PatchEncoder(), WordEncoder(), small.folder, options=replace(SMALL, dtype="float16"))


def test_damaged_scales_are_found(manifest, tmp_path):
    _, small = both(manifest, tmp_path)
    for number, name in ((0, "shards/image-00000.safetensors"), (3, "shards/text-00000.safetensors")):
        shard = small.folder / name
        whole, tensors = shard.read_bytes(), load_file(shard)
        without = {key: tensor for key, tensor in tensors.items() if key != "values_scale"}
        for damaged, fault in (
            (tensors | {"values_scale": tensors["values_scale"].half()}, "expected bfloat16, but got torch.float16"),
            (tensors | {"values": tensors["values"].half()}, "expected int8, but got torch.float16 in values"),
            (without, "expected shapes"),
        ):
            save_file(damaged, shard)
            facts = json.loads((small.folder / "bank.json").read_text())
            facts["shards"][number]["sha256"] = sha256_of(shard)
            (small.folder / "bank.json").write_text(json.dumps(facts))
            (found,) = verify(small.folder)
            assert found.startswith(f"{name}: {fault}")
        shard.write_bytes(whole)
        facts["shards"][number]["sha256"] = sha256_of(shard)
        (small.folder / "bank.json").write_text(json.dumps(facts))


@CODES
def test_the_size_counts_codes_and_scales(manifest, tmp_path, dtype):
    options = replace(SMALL, shard_size=12, dtype=dtype)
    size = estimate_size(manifest, PatchEncoder(), WordEncoder(), options=options)
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=options)
    assert sum(shard.size_bytes for shard in bank.info.shards) == pytest.approx(size.total_bytes, rel=0.2)


def test_values_beyond_float16_fit_but_pooled_vectors_say_what_to_do(manifest, tmp_path):
    with pytest.raises(BankError, match=r"within the range of float16.*--dtype bfloat16"):
        embed(manifest, PatchEncoder(gain=4e5), None, tmp_path / "bank", options=SMALL)


@CODES
def test_pooled_vectors_alone_have_nothing_to_share_a_scale_with(dtype):
    words = f"`dtype`: expected float16, bfloat16 or float32 with the layout pooled, but got {dtype}"
    with pytest.raises(InputError, match=words):
        EmbedOptions(layout=Layout("pooled"), dtype=dtype)
