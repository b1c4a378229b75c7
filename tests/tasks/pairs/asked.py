"""A small bank of questions about hidden causes, which need the image and the question, and a saved ``co`` adaptor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank, BankInfo, Plan, TokenSource
from adaptmed.bank.seal import seal
from adaptmed.bank.shards import Shard
from adaptmed.bank.write import begin, write_image_shard, write_text_shard
from adaptmed.tasks.finetune import finetune
from adaptmed.tasks.pairs.settings import PairChoices
from adaptmed.tasks.pairs.task import Pairs
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import RunOptions
from adaptmed.types import Preprocessing, TokenIds

HALF = (0.5, 0.5, 0.5)
ASKED = ("is there an effusion?", "is there a nodule?", "which side is it?", "what is seen?")
SETTINGS = FinetuneSettings(epochs=2, batch_size=8, precision="fp32")


def write_asked_bank(
    folder: Path, *, images: int = 40, classes: bool = False, noise: float = 0.3, blank: int = 0
) -> Bank:
    """Every image has four questions: two of yes or no about a cause each, a side, and one with an answer of its own.

    The first rows may have no answer. Two images a patient; of ten patients six train, two validate, two test. The text
    is the question.
    """
    generator = torch.Generator().manual_seed(0)
    causes = (torch.rand(images, 3, generator=generator) < 0.5).float()
    mix, words = torch.randn(3, 12, generator=generator), torch.randn(len(ASKED), 10, generator=generator)
    values = (2 * causes - 1) @ mix
    tokens = values[:, None] + noise * torch.randn(images, 7, 12, generator=generator)
    texts = words[:, None] + 0.05 * torch.randn(len(ASKED), 3, 10, generator=generator)
    source = TokenSource("fake:image", "aa" * 32, preprocessing=Preprocessing((8, 12), HALF, HALF))
    plan = Plan(source, TokenSource("fake:text", "bb" * 32, max_tokens=9), "m" * 64, f"{images}", shard_size=16)
    begin(folder, plan)
    for number, start in enumerate(range(0, images, 16)):
        part = tokens[start : start + 16].half()
        write_image_shard(folder, number, [{"values": part, "pooled": part.mean(1)}], Shard(grid=(2, 3), prefix=1))
    ids = TokenIds(torch.ones(4, 3, dtype=torch.long), torch.ones(4, 3) > 0, torch.tensor([False, False, False, True]))
    write_text_shard(folder, 0, list(texts.half()), [text.half().mean(0) for text in texts], ids)
    kind = {"class_column": "kind", "classes": ("healthy", "ill", "unclear")} if classes else {"labels": ("a", "b")}
    info = BankInfo(manifest="m.csv", manifest_sha256="m" * 64, has_patients=True, **kind)
    seal(folder, plan, info, _rows(causes.numpy(), blank))
    return Bank.open(folder)


def _rows(causes: np.ndarray, blank: int) -> pd.DataFrame:
    lines = []
    for image, (effusion, nodule, left) in enumerate(causes):
        patient = image // 2
        split = "train" if patient % 10 < 6 else "validate" if patient % 10 < 8 else "test"
        answers = (("No", "Yes")[int(effusion)], ("no.", "yes")[int(nodule)], ("right", " Left ")[int(left)], "A lung")
        for number, (question, answer) in enumerate(zip(ASKED, answers, strict=True)):
            right = {"image_index": image, "text_index": number, "question": question, "text": question}
            facts = {
                "answer": "" if len(lines) < blank else answer,
                "patient": f"p{patient}",
                "split": split,
                "image": f"{image}.png",
            }
            labels = {"a": effusion, "b": nodule if image % 9 else np.nan}
            kind = {"kind": -1 if image % 7 == 3 else int(effusion if number % 2 else nodule)}
            lines.append({"row": f"r{len(lines)}", **right, **facts, **labels, **kind})
    return pd.DataFrame(lines)


def save_adaptor(bank: Bank, folder: Path, *, fusion: str = "co", dropout: float = 0.1) -> Path:
    """A fresh adaptor with input statistics, as pre-training leaves it."""
    torch.manual_seed(0)
    adaptor = Adaptor.from_bank(bank, fusion=fusion, width=16, layers=2, heads=2, dropout=dropout)
    adaptor.standardise(bank, bank.subset("train"))
    adaptor.save_pretrained(folder)
    return folder


def tune(bank, run, out, *, callbacks=(), every=1, settings=SETTINGS, task="answering", **choices):
    options = RunOptions(device="cpu", checkpoint_every=every, callbacks=callbacks)
    return finetune(bank, run, out, Pairs(PairChoices(task=task, settings=settings, **choices)), options)


def with_answers(bank: Bank, rows: np.ndarray, answers: list[str] | str) -> Bank:
    """The bank with other answers in some rows."""
    changed = Bank.open(bank.folder)
    changed.rows.loc[rows, "answer"] = answers
    return changed


LONG = replace(SETTINGS, epochs=12, learning_rate=5e-3, fusion_learning_rate=5e-3, batch_size=24)
