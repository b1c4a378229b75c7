"""Random changes: image and mask move together, before an encoder in the loop or behind the bank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch.nn import functional

from adaptmed.lora import LoRA
from adaptmed.tasks.segmentation.masks import find_masks
from adaptmed.tasks.segmentation.reading import Examples, Wanted, WindowReader
from tests.masked_images import QUICK, tune, write_pictures


@pytest.fixture
def changed(embedded, tmp_path):
    """Examples whose pictures are their masks: white where the label is; all of it lies in the upper left."""
    table = write_pictures(tmp_path / "data", pictures=10)
    for number in range(10):
        mask = np.zeros((32, 32), np.uint8)
        mask[4 + number % 3 : 15, 5:13] = 1
        Image.fromarray(mask).save(tmp_path / "data" / f"{number}-mask.png")
        Image.fromarray(mask * 255).save(tmp_path / "data" / f"{number}.png")
    bank = embedded(table)
    masks = find_masks(bank, tmp_path / "masks")
    reader = WindowReader(bank, Wanted(tokens=False, pixels=True))
    return Examples(reader, masks, masks.rows("train"), 1, seed=0, changed="before the encoder")


def drawn(examples, draws):
    batches = [examples.batch(np.arange(len(examples.rows)), draw) for draw in range(draws)]
    return torch.cat([windows.pixels for windows, _ in batches]), torch.cat([mask for _, mask in batches])


def test_image_and_mask_move_together(changed):
    pixels, masks = drawn(changed, 6)
    around = masks[:, None].float()
    inner = functional.max_pool2d(around, 3, stride=1, padding=1) == -functional.max_pool2d(
        -around, 3, stride=1, padding=1
    )
    white = pixels.mean(dim=1) > 0
    assert torch.equal(white[inner[:, 0]], masks[inner[:, 0]] == 1)
    assert len(masks.flatten(1).unique(dim=0)) > 30  # every draw is another one
    assert masks.unique().tolist() == [0, 1]


def test_nothing_is_mirrored(changed):
    pixels, masks = drawn(changed, 20)
    for values in (masks.double(), pixels.mean(dim=1).double() + 1):
        total = values.sum(dim=(1, 2))
        ramp = torch.arange(32.0, dtype=torch.float64)
        rows, columns = (values.sum(2) @ ramp) / total, (values.sum(1) @ ramp) / total
        assert rows.max() < 15.5
        assert columns.max() < 15.5


def test_a_change_is_drawn_from_seed_step_and_row(changed):
    windows, masks = changed.batch(np.array([2, 0, 4]), draw=3)
    alone, mask = changed.batch(np.array([0]), draw=3)
    assert torch.equal(windows.pixels[1], alone.pixels[0])
    assert torch.equal(masks[1], mask[0])
    assert not torch.equal(changed.batch(np.array([0]), draw=4)[0].pixels, alone.pixels)


class Keep(Callback):
    """Keeps the pictures and masks of every training step."""

    def __init__(self):
        self.pictures, self.masks = set(), set()

    def on_train_batch_start(self, _trainer, _module, batch, _index):
        self.pictures |= {picture.numpy().tobytes() for picture in batch[0].pixels}
        self.masks |= {mask.numpy().tobytes() for mask in batch[1]}


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
@pytest.mark.parametrize("augment", [True, False])
def test_training_changes_pictures_before_the_encoder_only_with_lora(pictures, run, tmp_path, lora, augment):
    keep = Keep()
    settings = replace(QUICK, augment=augment)
    result = tune(pictures, run, tmp_path / "out", settings=settings, lora=lora, callbacks=(keep,))
    read = 6 * 4  # steps of 4 pictures: every one of the 12 twice
    assert result["train_images"] == 12
    assert len(keep.pictures) == (read if augment and lora else 12)
    assert len(keep.masks) > 12 if augment else len(keep.masks) <= 12
