"""A small bank of image-text pairs that share a hidden cause, written without any encoder."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from adaptmed.bank import Bank, BankInfo, Plan, TokenSource
from adaptmed.bank.seal import seal
from adaptmed.bank.shards import Shard
from adaptmed.bank.write import begin, write_image_shard, write_text_shard
from adaptmed.types import Preprocessing, TokenIds

GRID, IMAGE_WIDTH, TEXT_WIDTH, CAUSES = (2, 3), 12, 10, 4
HALF = (0.5, 0.5, 0.5)


def write_tiny_bank(
    folder: Path,
    *,
    pairs: int = 60,
    seed: int = 0,
    noise: float = 0.5,
    shard_size: int = 16,
    image_lora: str | None = None,
    holds_texts: bool = True,
) -> Bank:
    """60 pairs of 40 patients; label ``a`` and ``b`` are two of the hidden causes, ``b`` unknown for every tenth.

    Without texts its image Tokens and labels are the same.
    """
    generator = torch.Generator().manual_seed(seed)
    cause = (torch.rand(pairs, CAUSES, generator=generator) < 0.4).float()
    mix = {width: torch.randn(CAUSES, width, generator=generator) for width in (IMAGE_WIDTH, TEXT_WIDTH)}

    def tokens(length: int, width: int) -> torch.Tensor:
        values = (cause @ mix[width])[:, None] + noise * torch.randn(pairs, length, width, generator=generator)
        return values.half()

    source = TokenSource("fake:image", "aa" * 32, preprocessing=Preprocessing((8, 12), HALF, HALF), lora=image_lora)
    beside = TokenSource("fake:text", "bb" * 32, max_tokens=9) if holds_texts else None
    plan = Plan(source, beside, "m" * 64, f"{seed}", shard_size=shard_size)
    begin(folder, plan)
    images, texts = tokens(7, IMAGE_WIDTH), tokens(5, TEXT_WIDTH)
    lengths = torch.randint(2, 6, (pairs,), generator=generator)
    for number, start in enumerate(range(0, pairs, shard_size)):
        span = slice(start, start + shard_size)
        part = images[span]
        write_image_shard(folder, number, [{"values": part, "pooled": part.mean(1)}], Shard(grid=GRID, prefix=1))
        if not holds_texts:
            continue
        ragged = [text[:length] for text, length in zip(texts[span], lengths[span], strict=True)]
        kept = torch.arange(5)[None] < lengths[span, None]
        ids = TokenIds(torch.randint(1, 99, kept.shape, generator=generator) * kept, kept, torch.zeros(len(ragged)) > 0)
        write_text_shard(folder, number, ragged, [text.mean(0) for text in ragged], ids)
    info = BankInfo(manifest="m.csv", manifest_sha256="m" * 64, labels=("a", "b"), has_patients=True)
    rows = _rows(cause.numpy())
    seal(folder, plan, info, rows if holds_texts else rows.assign(text_index=-1))
    return Bank.open(folder)


def _rows(cause: np.ndarray) -> pd.DataFrame:
    number = np.arange(len(cause))
    patient = number * 2 // 3
    split = np.select([patient % 5 == 0, patient % 5 == 1], ["test", "validate"], "train")
    return pd.DataFrame(
        {
            "row": [f"r{n}" for n in number],
            "image": [f"{n}.png" for n in number],
            "text": [f"report {n}" for n in number],
            "image_index": number,
            "text_index": number,
            "patient": [f"p{n}" for n in patient],
            "split": split,
            "a": cause[:, 0].astype(float),
            "b": np.where(number % 10 == 9, np.nan, cause[:, 1]),
        }
    )
