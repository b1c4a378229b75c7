"""What GM-Coord costs: a step of tuning for answers with it, noise on, beside the same step without.

Run: python benchmarks/coordination.py [--batch 32]
A `co` fusion of the size `light` on random Tokens as DINOv2-S gives at 224 px in 7 x 7 cells and MiniLM of 16 words.
Bar: the median of the ratios of two steps is at most 1.05.
"""

import argparse
from collections.abc import Callable

import torch
from timing import compare
from torch import nn

from adaptmed.fusion import CoConfig, CoFusion
from adaptmed.tasks.pairs.coordination import Coordinator
from adaptmed.tasks.pairs.model import PairClassifier, pair_head
from adaptmed.tasks.pairs.settings import Coordination
from adaptmed.types import Batch, Tokens

ANSWERS, CELLS, WORDS = 500, 49, 16


def random_pairs(count: int) -> Batch:
    """Pairs of noise."""
    image, text = torch.randn(count, CELLS + 1, 384), torch.randn(count, WORDS, 384)
    sides = {
        "image": Tokens(image, torch.ones(image.shape[:2], dtype=torch.bool), image.mean(1), (7, 7), 1),
        "text": Tokens(text, torch.ones(text.shape[:2], dtype=torch.bool), text.mean(1), None, 0),
    }
    return Batch(rows=torch.arange(count), ids=("",) * count, text_group=torch.arange(count), **sides)


def stepper(batch: Batch, targets: torch.Tensor, *, coordinated: bool) -> Callable[[], None]:
    """Build one optimiser step of a fresh model."""
    torch.manual_seed(0)
    fusion = CoFusion(CoConfig(image_width=384, text_width=384))
    model = PairClassifier(fusion, pair_head(512, ANSWERS)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    binary = nn.functional.binary_cross_entropy_with_logits

    def score(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        return (logits.sigmoid() * answers).sum()

    coordinator = Coordinator.of(model, Coordination(), score) if coordinated else None

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            joint = model.read(batch)
            loss = binary(model.head(joint).float(), targets)
            if coordinator is not None:
                coordinator.add(model.head, joint, targets, lambda part: part[None])
        optimiser.zero_grad()
        loss.backward()
        if coordinator is not None:
            coordinator.apply(1, seed=0)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def main() -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    count = parser.parse_args().batch
    batch, targets = random_pairs(count), torch.eye(ANSWERS)[torch.arange(count) % ANSWERS]
    ways = {
        "plain step": stepper(batch, targets, coordinated=False),
        "with GM-Coord": stepper(batch, targets, coordinated=True),
    }
    compare(f"a step of {count} pairs", ways, rounds=15, items=dict.fromkeys(ways, float(count)))


if __name__ == "__main__":
    main()
