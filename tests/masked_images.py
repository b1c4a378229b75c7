"""Squares in noise and their masks of two labels, as pictures and as volumes, for a tiny encoder and an adaptor on it.

The masks are drawn while the images are, and written by PIL and nibabel: nothing of the package has touched them.
"""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import torch
import transformers
from PIL import Image

from adaptmed import Manifest, load_image_encoder, load_text_encoder
from adaptmed.bank import Bank, Layout
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.tasks.finetune import finetune
from adaptmed.tasks.segmentation.settings import MaskChoices, SegmentationSettings
from adaptmed.tasks.segmentation.task import Segmentation
from adaptmed.training.trainer import RunOptions
from tests.online_bank import save_image_model
from tests.short_training import METHOD
from tests.tiny_models import bert_config, save_text_model

WHOLE = EmbedOptions(layout=Layout("all"), dtype="float32", precision="fp32", workers=1, shard_size=8, taps=2)
LOW, HIGH = 2, 5
"""Values of the two labels: without a gap between them no class would differ from its value."""
VALUES = np.array([0, LOW, HIGH])
SIZES = ((37, 45), (40, 40), (45, 33))
DEPTHS = (5, 2, 7, 3, 1, 4, 6, 2, 3, 5)
SPLITS = ("train", "train", "train", "validate", "test")
SPACING_MM = (1.5, 1.0, 2.5)  # of the stored axes


def save_encoders(folder: Path) -> tuple[str, str]:
    """Save a vision transformer of 32 pixels and a BERT; return their names."""
    torch.manual_seed(0)
    image, text = save_image_model(folder / "vit"), save_text_model(folder / "bert", bert_config())
    return f"hf:{image}", f"hf:{text}"


def save_pyramid(folder: Path) -> str:
    """Save a ResNet of four stages whose taps shrink; return its name."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def draw(number: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Draw noise with a grey square (label 2) and a bright one (label 5); some images lack one or both."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 60, shape).astype(np.uint8)
    mask = np.zeros(shape, dtype=np.uint8)
    for value, grey, missing in ((LOW, 130, 3), (HIGH, 230, 4)):
        row, column = generator.integers(4, 18, 2)
        place = (..., slice(row, row + 11), slice(column, column + 11))
        if number % missing:
            pixels[place], mask[place] = grey, value
    return pixels, mask


def write_pictures(folder: Path, *, pictures: int = 20) -> pd.DataFrame:
    """Write two pictures per patient with their masks, and return a table of them; of ten patients six train."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(pictures):
        pixels, mask = draw(number, SIZES[number % 3])
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}-mask.png")
        split = SPLITS[number // 2 % 5]
        facts = {"patient": f"p{number // 2}", "split": split, "text": "no effusion" if number % 2 else "small nodule"}
        rows.append({"image": f"{number}.png", "mask": f"{number}-mask.png", **facts})
    return pd.DataFrame(rows)


def write_volumes(folder: Path, depths: tuple[int, ...] = DEPTHS) -> pd.DataFrame:
    """Write one volume per depth with its mask, each of a patient of its own, and return a table of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, depth in enumerate(depths):
        height, width = SIZES[number % 3]
        pixels, mask = draw(number, (depth, height, width))
        affine = np.diag([*SPACING_MM, 1.0])
        affine[:3, 3] = number, -5.0, 3.0
        for name, values in ((f"{number}.nii", pixels), (f"{number}-mask.nii.gz", mask)):
            nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), folder / name)
        facts = {"patient": f"v{number}", "split": SPLITS[number % 5]}
        rows.append({"image": f"{number}.nii", "mask": f"{number}-mask.nii.gz", **facts})
    return pd.DataFrame(rows)


def embed_table(table: pd.DataFrame, folder: Path, out: Path, *encoders: str, **options: object) -> Bank:
    """Write a table beside its files and embed it; without a text encoder its texts are left out."""
    table.to_csv(folder / f"{out.name}.csv", index=False)
    image, text = load_image_encoder(encoders[0]), load_text_encoder(encoders[1]) if encoders[1:] else None
    return embed(Manifest.read(folder / f"{out.name}.csv"), image, text, out, options=replace(WHOLE, **options))


SHORT_METHOD = replace(METHOD, schedule=replace(METHOD.schedule, epochs=1))
QUICK = SegmentationSettings(
    steps=6, validations=3, batch_size=4, channels=4, window_slices=3, precision="fp32", learning_rate=3e-3
)


def tune(bank: Bank, run: Path, out: Path, **options: object) -> dict:
    """Fine-tune shortly on the CPU; what is no choice is an option of the run."""
    chosen = {name: options.pop(name) for name in [*options] if name in MaskChoices.__dataclass_fields__}
    choices = MaskChoices(**{"settings": QUICK, **chosen})
    more = {"reading": options.pop("reading")} if "reading" in options else {}
    how = RunOptions(**{"device": "cpu", "checkpoint_every": 1, **options})
    return finetune(bank, run, out, Segmentation(choices), how, **more)
