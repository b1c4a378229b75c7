"""Faint squares in noise with the masks that say where they are, embedded with and without LoRA by a tiny encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from adaptmed import Manifest, load_image_encoder, load_text_encoder, lora
from adaptmed.bank import Bank
from adaptmed.embedding.embed import embed
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.segmentation.settings import KNOWN, SegmentationStudy
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from tests.labelled_pictures import EXACT
from tests.online_bank import save_image_model
from tests.short_training import METHOD
from tests.tiny_models import bert_config, save_text_model

PLACES = {1: (slice(4, 16), slice(4, 16)), 2: (slice(20, 32), slice(22, 36))}
NAMES = {0: "background", 1: "high", 2: "low"}
METHOD_SHORT = replace(METHOD, schedule=replace(METHOD.schedule, epochs=1))
TRAINING = SegmentationSettings(steps=2, validations=1, batch_size=4, channels=4, precision="fp32")
STUDY = SegmentationStudy(
    fractions=(0.25, 1.0), seeds=2, replicates=30, training=TRAINING, labels=NAMES, learning_rates=(0.01,)
)
EVERY = replace(STUDY, arms=KNOWN)


def write_masked_table(folder: Path, *, pictures: int = 40) -> Path:
    """Two pictures per patient; of every ten patients six train, two validate and two test; some hold nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(pictures):
        pixels = generator.integers(0, 150, (36, 40), dtype=np.uint8)
        mask = np.zeros((36, 40), dtype=np.uint8)
        for value, place in PLACES.items():
            if generator.random() < 0.5 and number % 19:
                pixels[place] += np.uint8(100)
                mask[place] = value
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"m{number}.png")
        patient = number // 2
        split = "train" if patient % 10 < 6 else "validate" if patient % 10 < 8 else "test"
        words = " ".join(generator.choice(("effusion", "nodule", "small"), 3))
        facts = {"patient": f"p{patient}", "split": split}
        rows.append({"image": f"{number}.png", "mask": f"m{number}.png", "text": words, **facts})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


def embed_pictures(table: Path, out: Path, *, tuned: bool = False, holds_texts: bool = True) -> Bank:
    """Embed a table with two small transformers that are saved beside the bank, the first with random LoRA if tuned."""
    torch.manual_seed(0)
    image = load_image_encoder(f"hf:{save_image_model(out.parent / 'vit')}")
    text = load_text_encoder(f"hf:{save_text_model(out.parent / 'bert', bert_config())}") if holds_texts else None
    if tuned:
        lora.attach(image, lora.LoRA(rank=2))
        with torch.no_grad():
            for name, parameter in image.module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    return embed(Manifest.read(table), image, text, out, options=EXACT)


def pretrain_one_epoch(bank: Bank, out: Path) -> Path:
    pretrain(bank, METHOD_SHORT, out, device="cpu")
    return out
