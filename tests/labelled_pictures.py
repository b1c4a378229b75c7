"""Faint squares in noise, with labels that say which are there, embedded with two tiny encoders, and a run on them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from adaptmed import Manifest, load_image_encoder, load_text_encoder
from adaptmed.bank import Bank
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.pretraining.pretrain import pretrain
from tests.online_bank import save_image_model
from tests.short_training import METHOD
from tests.tiny_models import bert_config, save_text_model

EXACT = EmbedOptions(dtype="float32", precision="fp32", workers=1)
PLACES = {"high": (slice(4, 14), slice(4, 14)), "low": (slice(22, 32), slice(24, 34))}


def make_labelled_bank(folder: Path, *, pictures: int = 60, contrast: int = 60, holds_texts: bool = True) -> Bank:
    """Two pictures per patient; of every ten patients six train, two validate, two test; every ninth label is blank."""
    torch.manual_seed(0)
    image = load_image_encoder(f"hf:{save_image_model(folder / 'vit')}")
    text = load_text_encoder(f"hf:{save_text_model(folder / 'bert', bert_config())}") if holds_texts else None
    generator = np.random.default_rng(0)
    rows = []
    for number in range(pictures):
        pixels = generator.integers(0, 256 - contrast, (36, 40), dtype=np.uint8)
        there = {name: int(generator.random() < 0.5) for name in PLACES}
        for name, place in PLACES.items():
            pixels[place] += np.uint8(contrast * there[name])
        Image.fromarray(pixels).save(folder / f"{number}.png")
        patient = number // 2
        split = "train" if patient % 10 < 6 else "validate" if patient % 10 < 8 else "test"
        words = " ".join(generator.choice(("effusion", "nodule", "small"), 3))
        labels = {name: None if number % 9 == place else there[name] for place, name in enumerate(PLACES)}
        rows.append({"image": f"{number}.png", "text": words, "patient": f"p{patient}", "split": split, **labels})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    return embed(Manifest.read(folder / "m.csv"), image, text, folder / "bank", options=EXACT)


def pretrain_shortly(bank: Bank, out: Path) -> Path:
    method = replace(METHOD, schedule=replace(METHOD.schedule, epochs=1))
    pretrain(bank, method, out, device="cpu")
    return out
