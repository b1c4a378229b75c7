"""What a training step of `finetune --task answering` costs with the fusion `co`, beside hand-written torch.

Run: python benchmarks/answer_step.py [--batch 32] [--layers 6] [--width 256]
Noise of the size that DINOv2-S gives in 8 x 8 cells and MiniLM gives of 16 words; 500 answers; fp32. Our steps run as
`finetune` runs them: Lightning's Trainer, clipping, AdamW with its schedule. By hand the same layers are products of
matrices and `scaled_dot_product_attention`, and a step is forward, backward, clipping and AdamW.
Bar: the median of the ratios is at most 1.05. Peak resident memory above what stood before the first step is printed
for each way, measured in a process of its own (Linux).
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from timing import compare
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.fusion import CoConfig, CoFusion
from adaptmed.tasks.pairs.model import PairClassifier, pair_head, tuning_of
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import Length
from adaptmed.training.work import Work, fit
from adaptmed.types import Batch, Tokens

ANSWERS, GRID, WORDS, FROZEN, STEPS = 500, (8, 8), 16, 384, 4
OURS, HAND = "finetune", "by hand"


class HandAttention(nn.Module):
    """Several heads over one projection each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.o = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Let x read y."""
        batch, length, width = x.shape
        head = width // self.heads
        q = self.q(x).view(batch, length, self.heads, head).transpose(1, 2)
        k, v = self.kv(y).view(batch, y.shape[1], 2, self.heads, head).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(q, k, v)
        return self.o(read.transpose(1, 2).reshape(batch, length, width))


class HandLayer(nn.Module):
    """Itself, the other side, feed-forward; each followed by its norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own, self.other = HandAttention(width, heads), HandAttention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Update x."""
        first, second, third = self.norms
        x = first(x + self.drop(self.own(x, x)))
        x = second(x + self.drop(self.other(x, y)))
        return third(x + self.drop(self.down(functional.gelu(self.up(x)))))


class HandModel(nn.Module):
    """Two stacks of layers, two poolers and the head."""

    def __init__(self, config: CoConfig) -> None:
        super().__init__()
        width = config.width
        self.enter = nn.ModuleList(nn.Linear(FROZEN, width) for _ in range(2))
        self.kinds = nn.Parameter(torch.randn(2, width) * 0.02)
        layers = [[HandLayer(width, config.heads, config.dropout) for _ in range(2)] for _ in range(config.layers)]
        self.layers = nn.ModuleList(nn.ModuleList(both) for both in layers)
        self.pools = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = pair_head(2 * width, ANSWERS)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Return logits."""
        x, y = self.enter[0](image) + self.kinds[0], self.enter[1](text) + self.kinds[1]
        for of_image, of_text in self.layers:
            x, y = of_image(x, y), of_text(y, x)
        return self.head(torch.cat([self.pools[1](y[:, 0]).tanh(), self.pools[0](x[:, 0]).tanh()], dim=1))


def noise(count: int) -> tuple[Batch, Tensor]:
    """Pairs and their answers."""
    image, text = torch.randn(count, 65, FROZEN), torch.randn(count, WORDS, FROZEN)
    sides = {
        "image": Tokens(image, torch.ones(image.shape[:2], dtype=torch.bool), image.mean(1), GRID, 1),
        "text": Tokens(text, torch.ones(text.shape[:2], dtype=torch.bool), text.mean(1), None, 0),
    }
    batch = Batch(rows=torch.arange(count), ids=("",) * count, text_group=torch.arange(count), **sides)
    return batch, torch.arange(count) % ANSWERS


class Repeated:
    """The same batch again and again."""

    def __init__(self, batch: tuple[Batch, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        return iter([self.batch] * STEPS)


def ours(config: CoConfig, batch: tuple[Batch, Tensor]) -> Callable[[], None]:
    """Build four steps as `finetune` makes them."""
    settings = FinetuneSettings(epochs=1, precision="fp32")
    model = PairClassifier(CoFusion(config), pair_head(2 * config.width, ANSWERS))
    tuning = tuning_of(model, settings, functional.cross_entropy, seed=0, items=STEPS * len(batch[1]))
    length = Length(epochs=1, monitor=None, patience=1, clip=1.0)
    work = Work(tuning=tuning, train=lambda *_: Repeated(batch), length=length, precision="fp32")
    return lambda: fit(work, "cpu")


def by_hand(config: CoConfig, batch: tuple[Batch, Tensor]) -> Callable[[], None]:
    """Build four steps of plain torch."""
    model = HandModel(config).train()
    (pairs, answers) = batch
    assert pairs.image is not None
    assert pairs.text is not None
    image, text = pairs.image.values, pairs.text.values

    def steps() -> None:
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
        for _ in range(STEPS):
            loss = functional.cross_entropy(model(image, text), answers)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    return steps


WAYS = {HAND: by_hand, OURS: ours}


def resident_mb(name: str) -> float:
    """A figure of this process's memory, as Linux counts it."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def peak_mb(way: str, arguments: list[str]) -> float:
    """Run one way in a process of its own and return how far its resident memory rose, in MB."""
    command = [sys.executable, str(Path(__file__)), *arguments, "--alone", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Print medians, their ratio and the peaks of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    config = CoConfig(image_width=FROZEN, text_width=FROZEN, layers=asked.layers, width=asked.width)
    batch = noise(asked.batch)
    if asked.alone:
        steps = WAYS[asked.alone](config, batch)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
        before = resident_mb("VmRSS")
        steps()
        print(resident_mb("VmHWM") - before)
        return
    ways = {name: make(config, batch) for name, make in WAYS.items()}
    compare(f"a step of {asked.batch} pairs", ways, rounds=asked.rounds, items=dict.fromkeys(ways, float(STEPS)))
    for way in WAYS:
        print(f"  {way:32s} {peak_mb(way, sys.argv[1:]):8.0f} MB above the start")


if __name__ == "__main__":
    main()
