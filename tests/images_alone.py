"""A saved adaptor of images alone, untrained, as anything that starts from a run takes it."""

from pathlib import Path

import torch

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.rows import with_image

SIZES = {"cross": {"fusion": "cross", "layers": 1}, "co": {"fusion": "co", "layers": 2}}


def save_images_alone(bank: Bank, out: Path, kind: str = "co") -> Path:
    torch.manual_seed(0)
    adaptor = Adaptor.from_bank(bank, width=16, heads=2, **SIZES[kind])
    adaptor.standardise(bank, with_image(bank, "train"))
    adaptor.eval().save_pretrained(out)
    return out
