"""The files that the README's commands read, drawn as few and as small as every command takes them."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from PIL import Image

from tests.masked_bank import save_words_model
from tests.tiny_models import SIZES

PIXELS, PATCH = 16, 8
PAIRS = (
    ("train", "no effusion"),
    ("train", "lung effusion"),
    ("validate", "small nodule"),
    ("validate", "large heart"),
    ("test", "no effusion"),
    ("test", "lung effusion"),
)
"""Split and text of every picture; each has a patient of its own.

Nothing in `validate` is like what is trained on, so that its loss rises and early stopping ends the training.
"""


def write_readme_files(folder: Path) -> None:
    """Write ``m.csv``, ``questions.csv``, pictures, masks, ``new/``, and the encoders ``vit`` and ``bert``."""
    torch.manual_seed(0)
    save_small_image_model(folder / "vit")
    save_words_model(folder / "bert")
    (folder / "new").mkdir()
    generator = np.random.default_rng(0)
    rows, questions = [], []
    for number, (split, text) in enumerate(PAIRS):
        seen = bool(number % 2)
        mask = _mask() if seen else np.zeros_like(_mask())
        pixels = generator.integers(0, 120, mask.shape, dtype=np.uint8) + 100 * (mask > 0).astype(np.uint8)
        pixels = 255 - pixels if split == "validate" else pixels
        if split == "test":
            Image.fromarray(pixels).save(folder / "new" / f"{number}.png")
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"mask-{number}.png")
        facts = {"image": f"{number}.png", "patient": f"p{number}", "split": split}
        rows.append({**facts, "text": text, "effusion": int(seen), "mask": f"mask-{number}.png"})
        questions.append({**facts, "question": "effusion seen", "answer": "yes" if seen else "no"})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    pd.DataFrame(questions).to_csv(folder / "questions.csv", index=False)


def save_small_image_model(folder: Path) -> None:
    """Save a vision transformer of two blocks that reads four patches."""
    sizes = {**SIZES, "num_hidden_layers": 2}
    config = transformers.ViTConfig(**sizes, image_size=PIXELS, patch_size=PATCH)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": PIXELS, "width": PIXELS}).save_pretrained(folder)


def _mask() -> np.ndarray:
    """Return a mask with an effusion, 1, and a nodule, 2."""
    mask = np.zeros((PIXELS, PIXELS), dtype=np.uint8)
    mask[:PATCH, :PATCH], mask[PATCH:, PATCH:] = 1, 2
    return mask
