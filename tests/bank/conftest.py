"""A small bank of random tokens, written without any encoder; the tests know every number in it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from adaptmed.bank import Bank, BankInfo, Plan, TokenSource
from adaptmed.bank.seal import seal
from adaptmed.bank.shards import Shard
from adaptmed.bank.write import begin, write_image_shard, write_text_shard
from adaptmed.types import Preprocessing, TokenIds

GRID, WIDTH = (2, 3), 5
IMAGE = TokenSource("fake:image", "aa" * 32, preprocessing=Preprocessing((8, 12), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
TEXT = TokenSource("fake:text", "bb" * 32, max_tokens=9)


@dataclass
class Known:
    bank: Bank
    plan: Plan
    images: torch.Tensor
    pooled: torch.Tensor
    texts: list[torch.Tensor]
    ids: list[torch.Tensor]


def write_bank(folder: Path, *, dtype: str = "float16", images: int = 10, texts: int = 7, rows: int = 20) -> Known:
    generator = torch.Generator().manual_seed(0)
    plan = Plan(IMAGE, TEXT, "m" * 64, "r" * 64, layout="all", dtype=dtype, shard_size=4)
    assert begin(folder, plan) is False
    kind = getattr(torch, dtype)
    values = torch.randn(images, 7, WIDTH, generator=generator).to(kind)
    pooled = torch.randn(images, WIDTH, generator=generator).to(kind)
    for number, start in enumerate(range(0, images, 4)):
        part, vectors = values[start : start + 4], pooled[start : start + 4]
        write_image_shard(folder, number, [{"values": part, "pooled": vectors}], Shard(grid=GRID, prefix=1))
    lengths = [int(length) for length in torch.randint(1, 10, (texts,), generator=generator)]
    ragged = [torch.randn(length, WIDTH, generator=generator).to(kind) for length in lengths]
    ids = [torch.randint(1, 99, (length,), generator=generator) for length in lengths]
    for number, start in enumerate(range(0, texts, 4)):
        span = slice(start, start + 4)
        padded = torch.nn.utils.rnn.pad_sequence(ids[span], batch_first=True)
        tokens = TokenIds(padded, padded > 0, torch.tensor([length == 9 for length in lengths[span]]))
        write_text_shard(folder, number, ragged[span], [text.mean(0) for text in ragged[span]], tokens)
    info = BankInfo(
        manifest="m.csv", manifest_sha256="m" * 64, labels=("a", "b"), class_column="kind", classes=("x", "y")
    )
    seal(folder, plan, info, _rows(rows, images, texts))
    return Known(Bank.open(folder), plan, values, pooled, ragged, ids)


def _rows(rows: int, images: int, texts: int) -> pd.DataFrame:
    number = np.arange(rows)
    frame = pd.DataFrame(
        {
            "row": [f"r{n}" for n in number],
            "image_index": number % images,
            "text_index": number * 3 % texts,
            "split": np.where(number % 4 == 0, "test", "train"),
            "a": np.where(number % 3 == 0, np.nan, number % 2),
            "b": (number % 2).astype(float),
            "kind": number % 3 - 1,
        }
    )
    frame.loc[5, "text_index"] = -1
    frame.loc[6, "image_index"] = -1
    return frame


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return write_bank(tmp_path / "bank")
