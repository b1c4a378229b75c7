"""Peak memory of one pre-training step: the fusion fed from a bank, and LoRA trained in both encoders in the loop.

Run: python benchmarks/memory.py
Bars, on CUDA, with ViT-B/16 and BERT-base at batch 64, 224 px, 128 words a text, in bf16: at most 4 GB fed from a bank,
at most 16 GB with LoRA of rank 8 in both encoders and checkpointing. There the figure is all that torch has allocated.
Without CUDA these are not measured; a smaller case is, as resident memory above what stood before the step (Linux).
Weights and inputs are random. Every way runs in a process of its own, through the module and Trainer of `pretrain`, and
the second of two steps is measured, when the optimiser's moments stand.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
from lightning.pytorch import Callback, Trainer
from transformers import BertConfig, BertModel

from adaptmed import methods
from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.bank import Layout
from adaptmed.encoders._timm import TimmImageEncoder
from adaptmed.encoders._transformers import HFTextEncoder
from adaptmed.fusion import CrossConfig, build_fusion
from adaptmed.lora import LoRA
from adaptmed.pretraining.module import Pretraining
from adaptmed.training.encoders import Online, OnlineEncoders
from adaptmed.training.trainer import quiet_lightning
from adaptmed.types import Batch, Tokens

WORDS, SIDE_PX, GRID = 128, 224, 8
BANK, CHECKPOINTED, KEPT = "bank-fed", "LoRA, checkpointing", "LoRA, activations kept"
WAYS = (BANK, CHECKPOINTED, KEPT)
BARS_GB = {BANK: 4, CHECKPOINTED: 16}
GB = 1e9


@dataclass(frozen=True)
class Case:
    """Two encoders and a batch size."""

    title: str
    vit: str
    batch: int
    width: int = 768
    bert: dict[str, int] = field(default_factory=dict)


SMALL_BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
CASES = {
    "cuda": Case("ViT-B/16 + BERT-base, batch 64", "vit_base_patch16_224", 64),
    "cpu": Case("ViT-S/16 + BERT of 6 layers, 384 wide, batch 8", "vit_small_patch16_224", 8, 384, SMALL_BERT),
}


class Peak(Callback):
    """Peak memory of the last step in bytes; on the CPU, what stood before it is taken off."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = self.bytes = 0

    def on_train_batch_start(self, *_):
        """Forget the peaks so far."""
        reset_peak(self.device)
        self.before = 0 if self.device == "cuda" else resident("VmRSS")

    def on_train_batch_end(self, *_):
        """Read the peak."""
        now = torch.cuda.max_memory_allocated() if self.device == "cuda" else resident("VmHWM")
        self.bytes = now - self.before


def reset_peak(device: str) -> None:
    """Start both peaks anew, with as little garbage standing as can be."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def resident(field_name: str) -> int:
    """Resident memory of this process in bytes, by its name in Linux's status file."""
    found = re.search(rf"^{field_name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


class Twice:
    """One batch, given twice; Lightning takes a list for several loaders."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        return iter((self.batch, self.batch))


def random_batch(case: Case, *, pixels: bool) -> Batch:
    """What a bank's loader gives: stored tokens in fp16, word ids, and pixels where the image encoder is tuned."""
    ids = torch.randint(1, 30_000, (case.batch, WORDS))
    images, texts = (torch.randn(case.batch, tokens, case.width).half() for tokens in (GRID * GRID + 1, WORDS))
    return Batch(
        rows=torch.arange(case.batch),
        ids=tuple(map(str, range(case.batch))),
        image=Tokens(images, torch.ones(images.shape[:2], dtype=torch.bool), images[:, 0], (GRID, GRID), 1),
        text=Tokens(texts, torch.ones(ids.shape, dtype=torch.bool), texts[:, 0]),
        text_group=torch.arange(case.batch),
        input_ids=ids,
        ids_valid=torch.ones(ids.shape, dtype=torch.bool),
        pixels=torch.randn(case.batch, 3, SIDE_PX, SIDE_PX) if pixels else None,
    )


def tuned_encoders(case: Case, *, checkpointing: bool) -> OnlineEncoders:
    """Both encoders with random weights and fresh LoRA; the ids come ready, so that no tokenizer is needed."""
    vit = timm.create_model(case.vit, num_classes=0, dynamic_img_size=True)
    bert = BertModel(BertConfig(**case.bert), add_pooling_layer=False)
    image = TimmImageEncoder(vit, name=f"timm:{case.vit}")
    text = HFTextEncoder(bert, SimpleNamespace(model_max_length=512, pad_token_id=0), name="hf:bert")
    encoders = FrozenEncoders.of(image, text, str(Layout("grid", GRID)))
    for side in ("image", "text"):
        encoders.attach_lora(side, LoRA(rank=8))
    return OnlineEncoders(
        encoders, Online(image_lora=LoRA(rank=8), text_lora=LoRA(rank=8), checkpointing=checkpointing)
    )


def measure(way: str, device: str) -> int:
    """Train two steps, and return the peak of the second in bytes."""
    case, method = CASES[device], methods.adaptor()
    shape = {name: getattr(method.fusion, name) for name in ("width", "layers", "heads", "dropout")}
    fusion = build_fusion(CrossConfig(image_width=case.width, text_width=case.width, **shape))
    online = None if way == BANK else tuned_encoders(case, checkpointing=way == CHECKPOINTED)
    task, peak = Pretraining(fusion, method, seed=0, steps=2, online=online), Peak(device)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with quiet_lightning():
        Trainer(
            accelerator=device,
            devices=1,
            precision="bf16-mixed",
            max_epochs=1,
            gradient_clip_val=method.schedule.clip,
            callbacks=[peak],
            enable_model_summary=False,
            **quiet,
        ).fit(task.train(), Twice(random_batch(case, pixels=online is not None)))
    return peak.bytes


def in_a_process(way: str, device: str) -> int:
    """Measure in a fresh process, which gives large blocks back to the system as soon as they are free."""
    words = [sys.executable, __file__, "--way", way, "--device", device]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every way in turn and set them against each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=list(CASES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=WAYS, help="measure this one alone, in this process, in bytes")
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(measure(arguments.way, arguments.device)))
        return
    if arguments.device == "cpu":
        for way, bar in BARS_GB.items():
            print(f"{CASES['cuda'].title}, {way}: not measured: no CUDA device (bar: {bar} GB)")
        if not Path("/proc/self/clear_refs").exists():
            print(f"{CASES['cpu'].title}: not measured: no /proc/self/clear_refs, which Linux has")
            return
    found = {way: in_a_process(way, arguments.device) for way in WAYS}
    kind = "allocated by torch" if arguments.device == "cuda" else "resident, above what stood before the step"
    print(f"{CASES[arguments.device].title}, {SIDE_PX} px, {WORDS} words, bf16; peak of one step, {kind}")
    for way, size in found.items():
        bar = f" (bar: {BARS_GB[way]} GB)" if arguments.device == "cuda" and way in BARS_GB else ""
        print(f"  {way:24s} {size / GB:7.3f} GB{bar}")
    for one, other in ((CHECKPOINTED, KEPT), (BANK, CHECKPOINTED), (BANK, KEPT)):
        print(f"  {one} ÷ {other}: {found[one] / found[other]:.3f}")


if __name__ == "__main__":
    main()
