"""What goes wrong around embedding: odd paths, strictness, repaired images, a refused beginning, bad options."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from adaptmed.bank import Bank, Layout
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.errors import BankError, InputError
from tests.tiny_encoders import EXACT, PatchEncoder, WordEncoder, make_manifest, make_table

STRICT = replace(EXACT, strict=True)


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "data")


def rejects_of(bank):
    return [json.loads(line) for line in (bank.folder / "rejects.jsonl").read_text().splitlines()]


def test_paths_that_cannot_be_resolved_are_rejected_with_their_rows(tmp_path):
    table = make_table(tmp_path / "data")
    (tmp_path / "data/loop.png").symlink_to("loop.png")
    table.loc[[2, 3, 4], "image"] = ["loop.png", "a\0b.png", "x" * 300 + ".png"]
    bank = embed(make_manifest(tmp_path / "data", table), PatchEncoder(), None, tmp_path / "bank", options=EXACT)
    assert bank.info.images.count == 9
    assert [reject["image"] for reject in rejects_of(bank)] == table.loc[[2, 3, 4], "image"].tolist()
    assert all(reject["reason"] for reject in rejects_of(bank))


def test_strict_is_heard_on_a_whole_bank_and_on_whole_shards(manifest, tmp_path):
    (manifest.root / "1.png").write_bytes(b"no picture")
    out = tmp_path / "bank"
    embed(manifest, PatchEncoder(), None, out, options=EXACT)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"1\.png"):
        embed(manifest, PatchEncoder(), None, out, options=STRICT)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "bank.json").unlink()
    (out / "shards/image-00002.json").unlink()
    with pytest.raises(InputError, match=r"1\.png"):
        embed(manifest, PatchEncoder(), None, out, options=STRICT)


@pytest.mark.parametrize("options", [EXACT, STRICT], ids=["lenient", "strict"])
def test_a_mended_image_comes_in_when_embed_runs_again(manifest, tmp_path, options):
    picture = (manifest.root / "5.png").read_bytes()
    (manifest.root / "5.png").write_bytes(b"no picture")
    out = tmp_path / "bank"
    first = embed(manifest, PatchEncoder(), WordEncoder(), out, options=EXACT)
    assert first.info.rejected == 1
    assert "again takes in images that were mended" in first.info.notes[-1]
    (manifest.root / "5.png").write_bytes(picture)
    encoder = PatchEncoder()
    bank = embed(manifest, encoder, WordEncoder(), out, options=options)
    assert encoder.seen == 4 + 1  # only the shard that lacked it, and the blank image for the size
    assert (len(bank), bank.info.rejected, bank.info.notes) == (12, 0, first.info.notes[:-1])
    assert rejects_of(bank) == []
    fresh = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "fresh", options=EXACT)
    assert bank.info.shards == fresh.info.shards


def test_an_image_that_stays_bad_leaves_a_whole_bank_as_it_is(manifest, tmp_path):
    (manifest.root / "5.png").write_bytes(b"no picture")
    embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=EXACT)
    encoder = PatchEncoder()
    assert embed(manifest, encoder, None, tmp_path / "bank", options=EXACT).info.rejected == 1
    assert encoder.seen == 0


def test_a_link_that_leads_elsewhere_by_now_is_another_plan(tmp_path):
    table, link = make_table(tmp_path / "data"), tmp_path / "data/link.png"
    link.symlink_to("link.png")
    table.loc[3, "image"] = "link.png"
    manifest = make_manifest(tmp_path / "data", table)
    embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=EXACT)
    link.unlink()
    link.symlink_to("0.png")
    with pytest.raises(BankError, match="images_sha256"):
        embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=EXACT)


def test_what_a_refused_beginning_advises_can_be_done(manifest, tmp_path, monkeypatch):
    out = tmp_path / "bank"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(BankError, match="--layout pooled"):
            embed(manifest, PatchEncoder(), None, out, options=EXACT)
    assert not out.exists()
    with pytest.raises(BankError, match="bfloat16"):
        embed(manifest, PatchEncoder(gain=1e5), None, out, options=replace(EXACT, dtype="float16"))
    options = replace(EXACT, layout=Layout("pooled"), dtype="bfloat16")
    assert embed(manifest, PatchEncoder(gain=1e5), None, out, options=options).info.dtype == "bfloat16"


def test_a_bank_that_is_begun_is_not_given_to_another_plan(manifest, tmp_path):
    out = tmp_path / "bank"
    embed(manifest, PatchEncoder(), None, out, options=EXACT)
    (out / "bank.json").unlink()
    with pytest.raises(BankError, match=r"dtype = float32, but got .*dtype = float16"):
        embed(manifest, PatchEncoder(), None, out, options=replace(EXACT, dtype="float16"))
    assert len(embed(manifest, PatchEncoder(), None, out, options=EXACT)) == 12


def test_a_file_is_no_folder_for_a_bank(manifest, tmp_path):
    (tmp_path / "bank").write_text("a thesis")
    with pytest.raises(BankError, match="a bank or an empty folder, but got a file"):
        embed(manifest, PatchEncoder(), None, tmp_path / "bank", options=EXACT)


@pytest.mark.parametrize("name", ["batch_size", "shard_size", "workers"])
def test_counts_begin_at_one(name):
    with pytest.raises(InputError, match=f"`{name}`: expected at least 1, but got 0"):
        EmbedOptions(**{name: 0})


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("gpu", "auto, cpu, cuda, cuda:N or mps, but got 'gpu'"),
        ("cuda:x", "auto, cpu, cuda, cuda:N or mps"),
        ("cuda", "a device that torch sees, but got 'cuda' beside no CUDA device"),
        ("cuda:3", "a device that torch sees, but got 'cuda:3' beside no CUDA device"),
        ("mps", "a device that torch sees, but got 'mps' beside no MPS"),
    ],
)
def test_devices_that_are_not_there_are_told_in_words(monkeypatch, device, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        EmbedOptions(device=device)


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert [EmbedOptions(device=name).device for name in ("auto", "cpu", "cuda", "cuda:1")]
    with pytest.raises(InputError, match="'cuda:2' beside 2 CUDA devices, numbered from 0"):
        EmbedOptions(device="cuda:2")


def test_a_damaged_record_costs_its_shard_only(manifest, tmp_path):
    out = tmp_path / "bank"
    whole = embed(manifest, PatchEncoder(), None, out, options=EXACT)
    (out / "bank.json").unlink()
    for damage in (b"", b"{}", b"[1]", b"\xff\xfe"):
        (out / "shards/image-00001.json").write_bytes(damage)
        encoder = PatchEncoder()
        assert embed(manifest, encoder, None, out, options=EXACT).info == whole.info
        assert encoder.seen == 4 + 1
        (out / "bank.json").unlink()
    (out / "plan.json").write_bytes(b"")
    with pytest.raises(BankError, match=r"plan\.json`: expected a JSON object.*another --out"):
        embed(manifest, PatchEncoder(), None, out, options=EXACT)
    with pytest.raises(BankError, match="not finished"):
        Bank.open(out)
