"""Forty pictures with reports of several lengths, embedded by two small transformers that can hide parts of them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from adaptmed import Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.bank import Bank, Layout
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.methods import Method, changed
from adaptmed.pretraining.pretext import PRETEXT
from tests.online_bank import SIDES, save_image_model
from tests.tiny_models import SIZES

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ENTRIES = (*SPECIAL, "no", "seen", *SIDES, "##s", "##ly", "lung", "heart")
OPTIONS = EmbedOptions(layout=Layout("grid", 4), dtype="float32", precision="fp32", workers=1, shard_size=16)
SCHEDULE = methods.Schedule(epochs=2, batch_size=8, learning_rate=1e-3, warmup_share=0.0)


def save_words_model(folder: Path) -> Path:
    """Save a BERT of two layers whose tokenizer has [MASK] and pieces of words."""
    folder.mkdir(parents=True)
    vocabulary = {entry: number for number, entry in enumerate(ENTRIES)}
    sizes = {**SIZES, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, vocab_size=len(ENTRIES), max_position_embeddings=24)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def write_pictures(folder: Path, pairs: int = 40) -> Manifest:
    """26 pairs to train on, 8 to validate, 6 to test, each of a patient of its own; the label is in the text."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(pairs):
        pixels = generator.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        words = generator.choice([*SIDES, "effusions", "largely"], 2 + number % 4)
        split = "train" if number < 26 else "validate" if number < 34 else "test"
        text = " ".join(["no" if number % 2 else "lung", *words, "seen"])
        rows.append({"image": f"{number}.png", "text": text, "patient": number, "split": split, "a": number % 2})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    return Manifest.read(folder / "m.csv")


def write_masked_banks(folder: Path, *, dtype: str = "float32") -> dict[str, Bank]:
    """Two banks of the same pairs: ``views`` with two masked views of every picture, ``plain`` without."""
    torch.manual_seed(0)
    image = load_image_encoder(f"hf:{save_image_model(folder / 'vit')}")
    text = load_text_encoder(f"hf:{save_words_model(folder / 'bert')}")
    manifest = write_pictures(folder)
    plain = replace(OPTIONS, dtype=dtype, pixels=True)
    options = {"views": replace(plain, pixels=None, masked_views=2), "plain": plain}
    return {name: embed(manifest, image, text, folder / name, options=how) for name, how in options.items()}


def tiny(method: Method, **terms: dict[str, Any]) -> Method:
    """Make a preset of masked pre-training small; dropout stays, so that its draws are tested too."""
    layer = None if method.term("patches").layer is None else 2
    patches = {"decoder_width": 8, "decoder_blocks": 1, "decoder_heads": 2, "layer": layer}
    sizes = {"width": 16, "layers": 3, "heads": 2, "dropout": 0.1}
    changes = {"fusion": sizes, **terms, "patches": patches | terms.get("patches", {})}
    return replace(changed(method, changes), schedule=SCHEDULE)


SLOW = {"image_features": {"teacher_decay": 0.9}, "text_features": {"teacher_decay": 0.9}}
M3AE, UMD = tiny(methods.m3ae()), tiny(methods.umd(), **SLOW)


class Watch(Callback):
    """Keeps what a task holds when its training starts and when it ends, and the gradients of its first step."""

    def on_train_start(self, _trainer, module):
        self.module, self.before = module, state_of(module)

    def on_before_optimizer_step(self, _trainer, module, _optimizer):
        if not hasattr(self, "gradients"):
            named = module.named_parameters()
            self.gradients = {name: parameter.grad for name, parameter in named if parameter.requires_grad}

    def on_train_end(self, _trainer, module):
        self.after = state_of(module)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copy every parameter and every buffer, kept in checkpoints or not."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    """Read the adaptor and the pretext modules of a finished run."""
    return load_file(run / "adaptor" / "adaptor.safetensors") | load_file(run / PRETEXT)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare tensors bit for bit."""
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert different == []


def copy_with_rows(bank: Bank, folder: Path, change: dict[str, object]) -> Bank:
    """Copy a bank and replace whole columns of its table of rows."""
    shutil.copytree(bank.folder, folder)
    rows = pd.read_parquet(folder / "rows.parquet")
    for column, values in change.items():
        rows[column] = values
    rows.to_parquet(folder / "rows.parquet", index=False)
    return Bank.open(folder)
