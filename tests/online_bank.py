"""Forty pictures with reports, embedded by two small transformers that are saved beside them."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from PIL import Image

from adaptmed import Manifest, load_image_encoder, load_text_encoder
from adaptmed.bank import Bank
from adaptmed.embedding.embed import EmbedOptions, embed
from tests.tiny_models import bert_config, save_text_model

SIDES = ("effusion", "nodule", "small", "large", "left", "right")


def save_image_model(folder: Path) -> Path:
    """Save a vision transformer of two blocks."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_online_bank(folder: Path) -> Bank:
    """26 pairs to train on, 8 to validate, 6 to test, each of a patient of its own."""
    torch.manual_seed(0)
    image = load_image_encoder(f"hf:{save_image_model(folder / 'vit')}")
    text = load_text_encoder(f"hf:{save_text_model(folder / 'bert', bert_config())}")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(40):
        Image.fromarray(generator.integers(0, 255, (36, 40), dtype=np.uint8)).save(folder / f"{number}.png")
        words = " ".join(generator.choice(SIDES, 4))
        split = "train" if number < 26 else "validate" if number < 34 else "test"
        facts = {"patient": number, "split": split, "a": number % 2}
        rows.append({"image": f"{number}.png", "text": f"{words} seen", **facts})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    options = EmbedOptions(layout=EmbedOptions().layout, dtype="float32", precision="fp32", workers=1)
    return embed(Manifest.read(folder / "m.csv"), image, text, folder / "bank", options=options)
