"""Masked views beside the tokens of pictures: seen in part by the encoder, read back on the whole grid."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from adaptmed.adaptor.masked import masked_image_tokens
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank, Layout, TokenSource, verify
from adaptmed.data.images import prepare, read_image
from adaptmed.embedding.embed import embed, estimate_size
from adaptmed.encoders import load_image_encoder
from adaptmed.errors import BankError, InputError
from adaptmed.pretext.masking import kept_patches
from adaptmed.runs.same_tokens import check_tokens
from tests.tiny_encoders import EXACT, WordEncoder, make_manifest, make_table
from tests.tiny_models import vit
from tests.volume_files import make_volumes

GRID = Layout("grid", 7)
PLAIN = replace(EXACT, layout=GRID)
OPTIONS = replace(PLAIN, masked_views=3, mask_ratio=0.75)


def small_vit():
    """112 px in patches of 8: a grid of 14."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vit("vit_tiny_patch16_224", patch_size=8)


@pytest.fixture(scope="module")
def encoder():
    return small_vit()


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "data")


@pytest.mark.parametrize("layout", ["grid7", "all"])
def test_a_view_is_the_masked_pass_of_the_encoder(manifest, encoder, tmp_path, layout):
    layout = Layout.parse(layout)
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=replace(OPTIONS, layout=layout))
    rows, views = np.array([11, 0, 4, 0]), np.array([2, 0, 1, 1])
    found = bank.masked_tokens(rows, views)
    cells = (7, 7) if layout.kind == "grid" else (14, 14)
    assert (found.grid, found.prefix) == (cells, 1)
    for place, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
        pixels = prepare(read_image(manifest.root / f"{row}.png"), encoder.preprocessing)[None]
        with torch.inference_mode():
            whole, kept = masked_image_tokens(encoder, pixels, layout, items=torch.tensor([row]), seed=view, ratio=0.75)
        assert torch.equal(kept, kept_patches(torch.tensor([row]), cells, seed=view, ratio=0.75))
        torch.testing.assert_close(found.values[place : place + 1], whole.values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.pooled[place : place + 1], whole.pooled, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.valid[place : place + 1], whole.valid)
    assert not found.values[~found.valid].any()
    assert found.valid.sum(1).tolist() == [1 + (12 if layout.kind == "grid" else 49)] * 4
    assert verify(bank.folder) == []


def test_hidden_cells_are_nowhere_in_the_file(manifest, encoder, tmp_path):
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=replace(OPTIONS, dtype="float16"))
    with safe_open(bank.folder / "shards/image-00000.safetensors", framework="pt") as file:
        facts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: (tuple(facts[name].shape), facts[name].dtype) for name in facts if name.startswith("masked")} == {
        "masked_values": ((4, 3, 13, 32), torch.float16),
        "masked_pooled": ((4, 3, 32), torch.float16),
        "masked_kept": ((4, 3, 12), torch.int32),
    }
    assert bank.masked_tokens(np.array([0]), np.array([0]), torch.float32).values.dtype == torch.float32


def test_the_other_tokens_are_as_without_views(manifest, encoder, tmp_path):
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=OPTIONS)
    bare = embed(manifest, encoder, None, tmp_path / "bare", options=PLAIN)
    rows = bank.subset(None)
    assert torch.equal(bank.image_tokens(rows).values, bare.image_tokens(rows).values)
    assert torch.equal(bank.image_tokens(rows).pooled, bare.image_tokens(rows).pooled)
    assert (bank.info.images.masked_views, bank.info.images.mask_ratio) == (3, 0.75)
    assert (bare.info.images.masked_views, bare.info.images.mask_ratio) == (0, None)
    assert bank.info.images.pixels, "what hidden patches looked like is what training predicts"
    assert not bare.info.images.pixels
    without = embed(manifest, encoder, None, tmp_path / "no-pixels", options=replace(OPTIONS, pixels=False))
    assert not without.info.images.pixels


def test_an_adaptor_fits_banks_with_and_without_views(manifest, encoder, tmp_path):
    both = (("with", OPTIONS), ("without", PLAIN))
    banks = [embed(manifest, encoder, WordEncoder(), tmp_path / name, options=options) for name, options in both]
    for own in banks:
        adaptor = Adaptor.from_bank(own, width=16, heads=2)
        for bank in banks:
            check_tokens(bank, adaptor, Path("run"))


def test_the_token_key_names_the_views_and_is_as_ever_without():
    source = TokenSource("bundled:a", "0f" * 32, max_tokens=256)
    key = source.token_key(layout="all", dtype="float16")
    assert key == "45b4e1350beb6f3fca74e6db3db9e0b4cf4eb9211a7734b6c9bdd685f40ed0ac", "banks of before"
    views = replace(source, mask_seeds=(0, 1), mask_ratio=0.75)
    keys = {key, *(s.token_key(layout="all", dtype="float16") for s in (views, replace(views, mask_ratio=0.5)))}
    assert len(keys) == 3


def test_rows_without_image_and_rejected_images(tmp_path, encoder):
    table = make_table(tmp_path / "data")
    table.loc[2, "text"], table.loc[2, "image"] = "no picture", ""
    manifest = make_manifest(tmp_path / "data", table)
    (manifest.root / "1.png").write_bytes(b"no picture")
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=OPTIONS)
    assert bank.rows["row"].tolist()[:3] == ["1", "3", "4"]
    tokens = bank.masked_tokens(np.array([1, 2, 10]), np.array([0, 2, 1]))
    assert not tokens.valid[0].any()
    assert not tokens.values[0].any()
    assert not tokens.pooled[0].any()
    for place, (number, view) in enumerate([(2, 2), (10, 1)], start=1):  # distinct images, the rejected one counted
        kept = kept_patches(torch.tensor([number]), (7, 7), seed=view, ratio=0.75)[0]
        assert tokens.valid[place].nonzero()[:, 0].tolist() == [0, *(kept + 1).tolist()]


def test_what_a_bank_lacks_is_named(manifest, encoder, tmp_path):
    bare = embed(manifest, encoder, None, tmp_path / "bare", options=PLAIN)
    with pytest.raises(BankError, match=r"holds masked views, but got none of them.*--masked-views 4"):
        bare.masked_tokens(np.array([0]), np.array([0]))
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=OPTIONS)
    with pytest.raises(BankError, match=r"`views`: expected numbers from 0 to 2, but got \[3\]"):
        bank.masked_tokens(np.array([0]), np.array([3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": Layout("grid", 8)}, r"a side that divides 14 x 14 patches.*--grid 7"),
        ({"layout": Layout("pooled")}, "a grid of cells to hide, but got pooled"),
        ({"mask_ratio": 0.99}, r"`ratio`: .*leaves at least one of 49 patches, but got 0\.99"),
        ({"mask_ratio": 1.0}, r"`ratio`: expected a ratio in \[0, 1\)"),
    ],
)
def test_views_that_cannot_be(manifest, encoder, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        embed(manifest, encoder, None, tmp_path / "bank", options=replace(OPTIONS, **change))
    assert not (tmp_path / "bank").exists()


def test_cnns_volumes_and_texts_have_no_views(manifest, encoder, tmp_path):
    cnn = load_image_encoder("bundled:efficientnet-lite0")
    with pytest.raises(InputError, match="a CNN can only have its outputs hidden"):
        embed(manifest, cnn, None, tmp_path / "cnn", options=OPTIONS)
    volumes = make_manifest(tmp_path / "volumes", make_volumes(tmp_path / "volumes"))
    with pytest.raises(InputError, match="`masked_views`: expected pictures and an image encoder, but got volumes"):
        embed(volumes, encoder, None, tmp_path / "v", options=OPTIONS)
    with pytest.raises(InputError, match="but got no image encoder"):
        embed(manifest, None, WordEncoder(), tmp_path / "t", options=OPTIONS)
    with pytest.raises(InputError, match="`masked_views`: expected at least 0, but got -1"):
        replace(OPTIONS, masked_views=-1)


def test_another_choice_is_refused_but_plans_from_before_are_taken_as_without(manifest, encoder, tmp_path):
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=PLAIN)
    plan = json.loads((bank.folder / "plan.json").read_text())
    del plan["image"]["mask_ratio"]
    (bank.folder / "plan.json").write_text(json.dumps(plan))
    info = json.loads((bank.folder / "bank.json").read_text())
    for name in ("masked_views", "mask_ratio"):
        del info["images"][name]
    (bank.folder / "bank.json").write_text(json.dumps(info))
    again = embed(manifest, encoder, None, bank.folder, options=PLAIN)
    assert (again.info.images.masked_views, again.info.images.mask_ratio) == (0, None)
    assert verify(bank.folder) == []
    with pytest.raises(BankError, match=r"image\.mask_seeds = \[\].*but got .*image\.mask_seeds = \[0, 1, 2\]"):
        embed(manifest, encoder, None, bank.folder, options=OPTIONS)


def test_the_size_counts_views(manifest, encoder, tmp_path):
    options = replace(OPTIONS, dtype="float16", shard_size=12)
    size = estimate_size(manifest, encoder, None, options=options)
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=options)
    (shard,) = bank.info.shards
    assert size.total_bytes <= shard.size_bytes <= size.total_bytes + 1000


def test_a_damaged_view_is_seen(manifest, encoder, tmp_path):
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=OPTIONS)
    info = json.loads((bank.folder / "bank.json").read_text())
    info["images"]["masked_views"] = 2
    (bank.folder / "bank.json").write_text(json.dumps(info))
    assert "expected shapes" in verify(bank.folder)[0]


class SlowViT:
    """What the killed process encodes with."""

    def __init__(self) -> None:
        self.encoder = small_vit()
        self.module, self.entrance = self.encoder.module, self.encoder.entrance
        self.name, self.width, self.preprocessing = "slow", 32, self.encoder.preprocessing
        self.roles, self.blocks, self.lora = {}, (), None

    def __call__(self, pixels):
        time.sleep(0.1)
        return self.encoder(pixels)

    def fingerprint(self):
        return self.encoder.fingerprint()


def embed_slowly(folder: str) -> None:
    manifest = make_manifest(Path(folder) / "data")
    embed(manifest, SlowViT(), None, Path(folder) / "bank", options=OPTIONS)


def test_kill_9_and_run_again(manifest, encoder, tmp_path):
    script = f"import runpy; runpy.run_path({__file__!r})['embed_slowly']({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    first = tmp_path / "bank/shards/image-00000.json"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(BankError, match="not finished"):
        Bank.open(tmp_path / "bank")
    bank = embed(manifest, encoder, None, tmp_path / "bank", options=OPTIONS)
    fresh = embed(manifest, encoder, None, tmp_path / "fresh", options=OPTIONS)
    assert [shard.sha256 for shard in bank.info.shards] == [shard.sha256 for shard in fresh.info.shards]
