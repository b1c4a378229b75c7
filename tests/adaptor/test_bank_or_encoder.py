"""Bank or encoder, same numbers: what the fusion makes of stored Tokens is what it makes of the files themselves."""

import numpy as np
import pytest
import torch

from adaptmed.adaptor.features import embed_rows
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Layout
from adaptmed.data.manifest import Manifest
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.encoders import load_image_encoder, load_text_encoder


@pytest.mark.parametrize("layout", ["all", "grid4", "pooled"])
def test_a_float32_bank_gives_the_encoders_numbers(tmp_path, layout):
    manifest = Manifest.read(write_phantom(tmp_path / "phantom", splits={"train": 5}, seed=1))
    image, text = load_image_encoder("bundled:efficientnet-lite0"), load_text_encoder("bundled:minilm-l6")
    options = EmbedOptions(layout=Layout.parse(layout), dtype="float32", precision="fp32", batch_size=5)
    bank = embed(manifest, image, text, tmp_path / "bank", options=options)
    torch.manual_seed(0)
    adaptor = Adaptor.from_bank(bank, width=32, heads=2)
    adaptor.standardise(bank, np.arange(5))
    adaptor.eval().load_encoders()
    files = [manifest.root / name for name in manifest.frame["image"]]
    rows = np.arange(5)
    with torch.inference_mode():
        from_files = adaptor.embed_images(files), adaptor.embed_texts(list(manifest.frame["text"]))
    from_bank = (
        embed_rows(adaptor.fusion, bank, rows, modality="image"),
        embed_rows(adaptor.fusion, bank, rows, modality="text"),
    )
    for ours, theirs in zip(from_bank, from_files, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
