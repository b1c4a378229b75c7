"""Two frozen encoders small enough to compute by hand, and a folder of pictures with a table to embed with them."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from adaptmed.bank import Layout
from adaptmed.data.manifest import Manifest
from adaptmed.embedding.embed import EmbedOptions
from adaptmed.types import Preprocessing, TokenIds, Tokens

EXACT = EmbedOptions(layout=Layout("all"), dtype="float32", precision="fp32", batch_size=3, shard_size=4, workers=2)


class PatchEncoder:
    """Four-pixel patches, a non-linearity, and the mean of all patches as the CLS token."""

    name, width, roles, blocks = "fake:patches", 6, {}, ()
    preprocessing = Preprocessing((40, 40), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

    def __init__(self, *, gain: float = 1.0, delay_s: float = 0.0) -> None:
        self.module = nn.Conv2d(3, 6, 4, stride=4)
        weight = torch.linspace(-1, 1, self.module.weight.numel()).reshape(self.module.weight.shape)
        self.module.load_state_dict({"weight": weight, "bias": torch.arange(6.0)})
        self.gain, self.delay_s, self.seen = gain, delay_s, 0

    def __call__(self, pixels):
        time.sleep(self.delay_s)
        self.seen += len(pixels)
        maps = self.module(pixels).tanh() * self.gain
        cells = maps.flatten(2).transpose(1, 2)
        values = torch.cat([cells.mean(1, keepdim=True), cells], dim=1)
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool), cells.amax(1), tuple(maps.shape[2:]), 1)

    def taps(self, pixels, count=4):
        maps = self.module(pixels).tanh() * self.gain
        return [maps * (depth + 1) for depth in range(count)]

    def fingerprint(self):
        return f"{self.gain:064}"


class WordEncoder:
    """One id per word length; every token also holds the mean of its sentence, so that padding would show."""

    name, width, max_tokens, roles, blocks = "fake:words", 4, 6, {}, ()

    def __init__(self) -> None:
        self.module = nn.Embedding(30, 4)
        self.module.load_state_dict({"weight": torch.linspace(-2, 2, 120).reshape(30, 4).sin()})
        self.seen = 0

    def tokenize(self, texts, max_tokens=None):
        words = [[1, *map(len, text.split())] for text in texts]
        limit = max_tokens or self.max_tokens
        rows = [torch.tensor(ids[:limit]) for ids in words]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return TokenIds(padded, padded > 0, torch.tensor([len(ids) > limit for ids in words]))

    def __call__(self, input_ids, valid):
        self.seen += len(input_ids)
        words = self.module(input_ids) * valid[..., None]
        mean = words.sum(1) / valid.sum(1, keepdim=True)
        return Tokens(words + mean[:, None], valid, mean)

    taps = __call__

    def fingerprint(self):
        return "ee" * 32


def make_table(folder: Path, rows: int = 12) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(rows):
        pixels = generator.integers(0, 256, (40 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    sentences = ["a small left effusion", "no effusion", "", "heart normal", "a small left effusion"]
    return pd.DataFrame(
        {
            "image": [f"{number}.png" for number in range(rows)],
            "text": [sentences[number % 5] + (f" {'x' * number}" if number % 5 == 3 else "") for number in range(rows)],
            "split": ["train", "test"] * (rows // 2),
            "effusion": [None if number % 3 == 0 else number % 2 for number in range(rows)],
        }
    )


def make_manifest(folder: Path, table: pd.DataFrame | None = None) -> Manifest:
    table = make_table(folder) if table is None else table
    table.to_csv(folder / "m.csv", index=False)
    return Manifest.read(folder / "m.csv")
