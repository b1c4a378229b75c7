"""What Lightning and our module cost: a LoRA training step of ours against a loop written by hand on torch and peft.

Run: python benchmarks/lora_step.py [--batch 8] [--steps 12]
Bars: step of ours ÷ step by hand <= 1.05; the two loss curves are equal. Both train the same LoRA (rank 8, attention)
inside DINOv2 ViT-S/14 and the same fusion on the same batches, in fp32, with matching and dropped tokens left out.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from adaptmed import Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.bank import BankLoader
from adaptmed.bank.layout import Layout, arrange_image
from adaptmed.cohort.rows import pairs_of
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import embed
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.pretraining.job import fresh_adaptor
from adaptmed.pretraining.module import Pretraining
from adaptmed.training.encoders import Online, OnlineEncoders
from adaptmed.training.optimiser import learning_rate_factor
from adaptmed.training.pixels import PixelReader
from adaptmed.training.trainer import quiet_lightning

CONTRASTIVE = {"token_dropout": 0.0, "positives": "pair", "image_to_text": 0.5}
METHOD = methods.changed(methods.adaptor(), {"contrastive": CONTRASTIVE, "matching": {"weight": 0.0}})


class Watch(Callback):
    """Losses, and the seconds from one optimiser step to the next."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_end(self, *said):
        """Note the loss and the time."""
        self.losses.append(float(said[2]["loss"]))
        self.ends.append(time.perf_counter())


class InMemory:
    """The batches as a loader: Lightning takes a list for several loaders."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def by_hand(fusion, batches) -> tuple[list[float], list[float]]:
    """The same training without any of our loop: peft on the library's module, torch's optimiser, a for loop."""
    encoder = load_image_encoder("bundled:dinov2-small")
    torch.manual_seed(step_seed(0, -3))
    get_peft_model(encoder.module, LoraConfig(r=8, lora_alpha=16, target_modules=["attn.qkv", "attn.proj"]))
    lora = [parameter for parameter in encoder.module.parameters() if parameter.requires_grad]
    matrices = [p for name, p in fusion.named_parameters() if name.endswith("weight") and p.ndim == 2]
    others = [p for name, p in fusion.named_parameters() if not (name.endswith("weight") and p.ndim == 2)]
    settings = METHOD.schedule
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
            {"params": lora, "lr": 3e-4, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: learning_rate_factor(s, len(batches), settings.warmup_share)
    )
    losses, ends = [], []
    for batch in batches:
        image = arrange_image(encoder(batch.pixels), Layout.parse("grid8"))
        logits = fusion.embed_image(image) @ fusion.embed_text(batch.text).T * fusion.scale()
        target = torch.arange(len(logits))
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*fusion.parameters(), *lora], settings.clip)
        optimiser.step()
        rate.step()
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return losses, ends


def ours(adaptor, batches) -> tuple[list[float], list[float]]:
    """Our module under Lightning."""
    online = Online(image_lora=LoRA(rank=8), augment=False)
    adaptor.encoders.attach_lora("image", online.image_lora, seed=step_seed(0, -3))
    task = Pretraining(
        adaptor.fusion, METHOD, seed=0, steps=len(batches), online=OnlineEncoders(adaptor.encoders, online)
    )
    watch = Watch()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with quiet_lightning():
        Trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=METHOD.schedule.clip,
            callbacks=[watch],
            enable_model_summary=False,
            **quiet,
        ).fit(task.train(), InMemory(batches))
    return watch.losses, watch.ends


def main() -> None:
    """Make the batches, then train twice in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    count = arguments.batch * arguments.steps
    manifest = Manifest.read(write_phantom(arguments.work / f"lora-phantom-{count}", splits={"train": count}, seed=6))
    image, text = load_image_encoder("bundled:dinov2-small"), load_text_encoder("bundled:minilm-l6")
    bank = embed(manifest, image, text, arguments.work / f"lora-bank-{count}")
    rows = pairs_of(bank, "train")
    reader = PixelReader(bank, image.preprocessing, seed=None, workers=2)
    batches = list(BankLoader(bank, rows, batch_size=arguments.batch, drop_last=True, pixels=reader))
    ratios, gaps = [], []
    for number in range(arguments.rounds + 1):
        runs = {}
        for name, train in (("hand", by_hand), ("ours", ours)):
            adaptor = fresh_adaptor(bank, METHOD, rows, seed=0)
            subject = adaptor.fusion.train() if name == "hand" else adaptor
            runs[name] = train(subject, batches)
        seconds = {name: statistics.median(b - a for a, b in pairwise(ends[1:])) for name, (_, ends) in runs.items()}
        gaps.append(max(abs(a - b) for a, b in zip(runs["hand"][0], runs["ours"][0], strict=True)))
        if number:
            ratios.append(seconds["ours"] / seconds["hand"])
        print({name: f"{value * 1000:.0f} ms" for name, value in seconds.items()}, f"largest loss gap {gaps[-1]:.1e}")
    print(f"step of ours ÷ by hand: {statistics.median(ratios):.3f} (bar: 1.05)")
    print(f"losses {', '.join(f'{loss:.4f}' for loss in runs['ours'][0])}; largest gap to the hand's {max(gaps):.1e}")


if __name__ == "__main__":
    main()
