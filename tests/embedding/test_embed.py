import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank, Layout, verify
from adaptmed.data.images import prepare, read_image
from adaptmed.embedding.embed import embed, estimate_size
from adaptmed.errors import BankError, InputError
from tests.tiny_encoders import EXACT, PatchEncoder, WordEncoder, make_manifest, make_table


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "data")


def test_law_3_bank_or_encoder_same_numbers(manifest, tmp_path):
    image_encoder, text_encoder = PatchEncoder(), WordEncoder()
    bank = embed(manifest, image_encoder, text_encoder, tmp_path / "bank", options=EXACT)
    for row, line in manifest.frame.iterrows():
        batch = bank.batch(np.array([row]))
        pixels = prepare(read_image(manifest.root / line["image"]), image_encoder.preprocessing)[None]
        with torch.inference_mode():
            image = image_encoder(pixels)
        assert torch.allclose(batch.image.values, image.values, rtol=0, atol=1e-6)
        assert torch.allclose(batch.image.pooled, image.pooled, rtol=0, atol=1e-6)
        assert (batch.image.grid, batch.image.prefix) == (image.grid, image.prefix) == ((10, 10), 1)
        if not isinstance(line["text"], str) or not line["text"]:
            assert not batch.text.valid.any()
            continue
        ids = text_encoder.tokenize([line["text"]])
        with torch.inference_mode():
            text = text_encoder(ids.input_ids, ids.valid)
        assert torch.equal(batch.input_ids, ids.input_ids)
        assert torch.allclose(batch.text.values, text.values, rtol=0, atol=1e-6)
        assert torch.allclose(batch.text.pooled, text.pooled, rtol=0, atol=1e-6)
    assert bank.labels(np.array([0, 1])).isnan().tolist() == [[True], [False]]
    assert verify(bank.folder) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("layout", "tokens"), [("grid", 65), ("all", 101), ("pooled", 1)])
def test_every_layout_and_dtype_comes_back(manifest, tmp_path, layout, tokens, dtype):
    options = replace(EXACT, layout=Layout(layout), dtype=dtype)
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=options)
    exact = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "exact", options=EXACT)
    rows = bank.subset(None)
    image, whole = bank.image_tokens(rows), exact.image_tokens(rows)
    assert image.values.shape == (12, tokens, 6)
    assert str(image.values.dtype) == f"torch.{dtype}"
    rtol = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6}[dtype]
    assert torch.allclose(image.pooled.float(), whole.pooled, rtol=rtol, atol=1e-6)
    if layout == "grid":
        assert torch.allclose(image.values[:, 0].float(), whole.values[:, 0], rtol=rtol, atol=1e-6)
        corner = whole.values[:, [1, 2, 11, 12]].mean(1)
        assert torch.allclose(image.values[:, 1].float(), corner, rtol=rtol, atol=1e-3)
    text, words = bank.text_tokens(rows), exact.text_tokens(rows)
    assert torch.allclose(text.pooled.float(), words.pooled, rtol=rtol, atol=1e-6)
    assert text.values.shape[1] == (1 if layout == "pooled" else words.values.shape[1])
    assert torch.equal(bank.input_ids(rows)[0], exact.input_ids(rows)[0])
    assert verify(bank.folder) == []


def test_an_image_or_text_in_several_rows_is_encoded_once(tmp_path):
    frame = make_table(tmp_path / "data")
    frame.loc[3, "image"] = "../data/./0.png"
    frame.loc[4, "image"] = "0.png"
    manifest = make_manifest(tmp_path / "data", frame)
    image_encoder, text_encoder = PatchEncoder(), WordEncoder()
    bank = embed(manifest, image_encoder, text_encoder, tmp_path / "bank", options=EXACT)
    assert bank.info.images.count == 10
    assert image_encoder.seen == 10 + 1  # one blank image for the size
    assert text_encoder.seen == bank.info.texts.count == frame["text"].nunique() - 1
    values = bank.image_tokens(np.array([0, 3, 4, 5])).values
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[3])
    groups = bank.batch(np.array([0, 4, 5, 1, 2])).text_group
    assert groups.tolist() == [0, 0, 0, 1, -1]


def test_a_bad_image_leaves_out_its_rows_and_no_others(manifest, tmp_path):
    (manifest.root / "5.png").write_bytes(b"no picture")
    (manifest.root / "11.png").unlink()
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=EXACT)
    kept = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert bank.rows["row"].tolist() == manifest.frame["row"].iloc[kept].tolist()
    rejects = [json.loads(line) for line in (bank.folder / "rejects.jsonl").read_text().splitlines()]
    assert [reject["image"] for reject in rejects] == ["5.png", "11.png"]
    assert [reject["row"] for reject in rejects] == manifest.frame["row"].iloc[[5, 11]].tolist()
    assert all(reject["reason"] for reject in rejects)
    good = embed(make_manifest(tmp_path / "good"), PatchEncoder(), None, tmp_path / "sound", options=EXACT)
    mine, theirs = bank.image_tokens(np.arange(5, 10)), good.image_tokens(np.arange(6, 11))
    assert torch.allclose(mine.values, theirs.values, atol=1e-6)
    with pytest.raises(InputError, match=r"5\.png"):
        embed(manifest, PatchEncoder(), None, tmp_path / "strict", options=replace(EXACT, strict=True))


def test_one_modality_alone(manifest, tmp_path):
    images = embed(manifest, PatchEncoder(), None, tmp_path / "images", options=EXACT)
    batch = images.batch(np.array([1, 2]))
    assert batch.text is None
    assert batch.input_ids is None
    assert batch.text_group.tolist() == [-1, -1]
    texts = embed(manifest, None, WordEncoder(), tmp_path / "texts", options=EXACT)
    assert texts.batch(np.array([1, 2])).image is None
    assert texts.shard_of(np.array([1, 2])).tolist() == [0, -1]
    assert Adaptor.from_bank(images, width=8, heads=2).encoders.widths == (6, None)
    with pytest.raises(BankError, match="expected a bank that holds images, but got none of them"):
        Adaptor.from_bank(texts)
    with pytest.raises(InputError, match="at least one encoder"):
        embed(manifest, None, None, tmp_path / "none", options=EXACT)
    wordless = make_manifest(manifest.root, make_table(manifest.root).drop(columns="text"))
    with pytest.raises(InputError, match="a text in at least one row"):
        embed(wordless, None, WordEncoder(), tmp_path / "none", options=EXACT)


def test_a_whole_bank_is_opened_without_computing(manifest, tmp_path):
    embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=EXACT)
    again = PatchEncoder()
    assert len(embed(manifest, again, WordEncoder(), tmp_path / "bank", options=EXACT)) == 12
    assert again.seen == 0


def test_another_encoder_option_or_label_is_refused(manifest, tmp_path):
    out = tmp_path / "bank"
    bank = embed(manifest, PatchEncoder(), WordEncoder(), out, options=EXACT)
    before = (out / "bank.json").read_bytes()
    with pytest.raises(BankError, match=rf"{bank.info.images.token_key}.*{PatchEncoder(gain=2.0).fingerprint()}"):
        embed(manifest, PatchEncoder(gain=2.0), WordEncoder(), out, options=EXACT)
    with pytest.raises(BankError, match=r"text\.max_tokens = 6.* but got .*text\.max_tokens = 5"):
        embed(manifest, PatchEncoder(), WordEncoder(), out, options=replace(EXACT, max_tokens=5))
    with pytest.raises(BankError, match=r"fit = crop.*fit = pad"):
        embed(manifest, PatchEncoder(), WordEncoder(), out, options=replace(EXACT, fit="pad"))
    table = make_table(manifest.root)
    table.loc[0, "effusion"] = 0
    with pytest.raises(BankError, match=r"manifest_sha256.*rows_sha256"):
        embed(make_manifest(manifest.root, table), PatchEncoder(), WordEncoder(), out, options=EXACT)
    assert (out / "bank.json").read_bytes() == before


def test_only_what_is_missing_is_computed_again(manifest, tmp_path):
    out = tmp_path / "bank"
    embed(manifest, PatchEncoder(), WordEncoder(), out, options=EXACT)
    whole = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "bank.json").unlink()
    (out / "shards/image-00001.safetensors").unlink()
    (out / "shards/.part-image-00001.safetensors").write_bytes(b"half")
    calls = []
    encoder = PatchEncoder()
    embed(manifest, encoder, WordEncoder(), out, options=EXACT, progress=lambda *call: calls.append(call))
    assert encoder.seen == 4 + 1
    assert calls == [("image", 11, 12), ("image", 12, 12)]
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole


def embed_slowly(folder: str) -> None:
    """What the killed process runs."""
    manifest = make_manifest(Path(folder) / "data")
    embed(manifest, PatchEncoder(delay_s=0.15), WordEncoder(), Path(folder) / "bank", options=EXACT)


def test_kill_9_and_run_again(manifest, tmp_path):
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
    encoder = PatchEncoder()
    bank = embed(manifest, encoder, WordEncoder(), tmp_path / "bank", options=EXACT)
    assert encoder.seen < 12 + 1
    fresh = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "fresh", options=EXACT)
    assert [shard.sha256 for shard in bank.info.shards] == [shard.sha256 for shard in fresh.info.shards]


def test_a_value_outside_float16_names_bfloat16(manifest, tmp_path):
    options = replace(EXACT, dtype="float16")
    with pytest.raises(BankError, match="bfloat16"):
        embed(manifest, PatchEncoder(gain=1e5), None, tmp_path / "bank", options=options)


def test_truncated_texts_are_counted(manifest, tmp_path):
    bank = embed(manifest, None, WordEncoder(), tmp_path / "bank", options=replace(EXACT, max_tokens=3))
    texts = {text for text in manifest.frame["text"] if isinstance(text, str) and text}
    share = sum(len(text.split()) > 2 for text in texts) / len(texts)
    assert bank.info.texts.truncated_share == pytest.approx(share)
    assert any("cut at 3 tokens" in note for note in bank.info.notes)
    with pytest.raises(InputError, match="2 to 6, the limit of fake:words, but got 7"):
        embed(manifest, None, WordEncoder(), tmp_path / "long", options=replace(EXACT, max_tokens=7))


def test_the_size_is_known_before_and_a_small_disk_is_refused(manifest, tmp_path, monkeypatch):
    options = replace(EXACT, layout=Layout("grid"))
    size = estimate_size(manifest, PatchEncoder(), WordEncoder(), options=options)
    bank = embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "bank", options=options)
    written = sum(shard.size_bytes for shard in bank.info.shards)
    headers = 500 * len(bank.info.shards)
    assert size.total_bytes <= written <= size.total_bytes + headers
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(BankError, match="GB of free disk"):
        embed(manifest, PatchEncoder(), WordEncoder(), tmp_path / "small", options=options)
    assert not (tmp_path / "small/shards").exists()
